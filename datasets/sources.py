"""Image sets that fit in memory: labels at once, pixels of the chosen images when asked for."""

from __future__ import annotations

import os
import urllib.error
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets as tv

from common.training.errors import UsageError
from datasets import images
from datasets.npz import read_split

CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
SIDES = {"cifar10": 32, "cifar100": 32, "tinyimagenet": 64}
TINY_CLASSES = 200


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        name: what the data is, for reports ("cifar10", "imagefolder", …).
        targets: labels 0…C-1, (N,) int64.
        classes: class names.
        pixels: indices -> images, uint8 (n, H, W, 3).
    """

    name: str
    targets: np.ndarray
    classes: list[str]
    pixels: Callable[[Sequence[int]], np.ndarray]


def open_source(name: str, root: str | Path, train: bool, image_size: int = 32) -> Source:
    """Open the training or the test split of a data set.

    Args:
        name: ``cifar10``, ``cifar100``, ``digits``, ``imagefolder``, ``npz`` or ``tinyimagenet``.
        root: its folder, or the file of ``npz`` (unused by ``digits``). CIFAR is downloaded into
            it when absent.
        image_size: side of ``imagefolder`` and ``npz`` images: shorter side resized, centre
            cropped; and of ``digits``: their 8x8 pixels repeated.
    Raises:
        UsageError: data missing, of another layout or unreadable, or images that have their size;
            says what was expected.
    """
    if image_size not in (32, SIDES.get(name, image_size)):  # 32 is what nobody asked for
        raise UsageError(
            f"--image_size {image_size}: images of {name} have {SIDES[name]}x{SIDES[name]} pixels;"
            " imagefolder, npz and digits can be brought to another size"
        )
    if name in CIFAR_FOLDERS:
        return _cifar(name, Path(root), train)
    if name == "digits":
        return _digits(train, image_size)
    if name == "imagefolder":
        return _image_folder(Path(root), train, image_size)
    if name == "npz":
        pixels, targets, classes = read_split(Path(root), train)
        return Source("npz", targets, classes, lambda indices: _fit(pixels[indices], image_size))
    if name == "tinyimagenet":
        return _tiny_imagenet(Path(root), train)
    raise UsageError(
        f"--dataset {name}: choose cifar10, cifar100, tinyimagenet, digits, imagefolder or npz"
    )


def _from_array(
    name: str, pixels: np.ndarray, targets: Sequence[int], classes: list[str]
) -> Source:
    targets = np.asarray(targets, dtype=np.int64)
    return Source(name, targets, classes, lambda indices: pixels[np.asarray(indices)])


def _cifar(name: str, root: Path, train: bool) -> Source:
    kind = tv.CIFAR10 if name == "cifar10" else tv.CIFAR100
    try:
        data = kind(str(root), train=train, download=not (root / CIFAR_FOLDERS[name]).is_dir())
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--dataset {name}: not in {root.resolve()} and not to be had from {kind.url}"
            f" ({reason});"
            f" put that archive, or its folder {CIFAR_FOLDERS[name]}/, into {root}/"
        ) from None
    return _from_array(name, data.data, data.targets, list(data.classes))


def _digits(train: bool, size: int) -> Source:
    """The 1,797 digits of scikit-learn: 130 training images a class, 497 test images."""
    from sklearn.datasets import load_digits

    if size % 8:
        raise UsageError(f"--image_size {size}: the digits have 8x8 pixels, choose a multiple of 8")
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    chosen = []
    for digit in range(10):
        of_digit = order[digits.target[order] == digit]
        chosen.append(of_digit[:130] if train else of_digit[130:])
    indices = np.concatenate(chosen)
    grey = np.clip(digits.images[indices] * (255 / 16), 0, 255).astype(np.uint8)  # (n, 8, 8)
    large = grey.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    pixels = np.repeat(large[..., None], 3, axis=3)
    return _from_array("digits", pixels, digits.target[indices], [str(i) for i in range(10)])


def _image_folder(root: Path, train: bool, size: int) -> Source:
    layout = "expected DIR/train/<class>/* and DIR/val/<class>/* or DIR/test/<class>/*"
    if not root.is_dir():
        raise UsageError(f"image folder {root}: no such folder; {layout}")
    classes = _class_folders(root / "train", layout)
    folder = root / "train"
    if not train:
        splits = [root / split for split in ("val", "test") if (root / split).is_dir()]
        if not splits:
            raise UsageError(f"image folder {root}: neither val/ nor test/ in it; {layout}")
        folder = splits[0]
        if (found := _class_folders(folder, layout)) != classes:
            odd = sorted(set(found) ^ set(classes))
            raise UsageError(f"{folder}: other classes than in train/ (differs in {odd[0]!r})")
    files, targets = _list_classes(folder, classes)
    return Source("imagefolder", targets, classes, lambda indices: _read(files, indices, size))


def _class_folders(folder: Path, layout: str) -> list[str]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; {layout}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise UsageError(f"{folder}: no class folders in it; {layout}")
    return classes


def _list_classes(folder: Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Files of each class in torchvision's order: folders and names sorted as text, recursively."""
    files: list[str] = []
    targets: list[int] = []
    for label, name in enumerate(classes):
        found = [
            os.path.join(parent, file)
            for parent, _, names in sorted(os.walk(folder / name, followlinks=True))
            for file in sorted(names)
            if file.lower().endswith(images.SUFFIXES)
        ]
        if not found:
            raise UsageError(f"{folder / name}: no images in this class ({images.SUFFIXES})")
        files += found
        targets += [label] * len(found)
    return files, np.asarray(targets, dtype=np.int64)


def _read(files: Sequence[str], indices: Sequence[int], side: int) -> np.ndarray:
    """Decode images to RGB at ``side`` x ``side``, in threads: decoding releases the GIL."""

    def decode(index: int) -> np.ndarray:
        return np.asarray(images.square(images.read_rgb(files[index]), side))

    pixels = np.empty((len(indices), side, side, 3), dtype=np.uint8)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for row, image in enumerate(pool.map(decode, indices)):
            pixels[row] = image
    return pixels


def _fit(pixels: np.ndarray, side: int) -> np.ndarray:
    """The same for images (n, H, W, 3) in memory."""
    if pixels.shape[1:3] == (side, side):
        return pixels
    return np.stack([np.asarray(images.square(Image.fromarray(image), side)) for image in pixels])


def _tiny_imagenet(root: Path, train: bool) -> Source:
    """Tiny ImageNet as published (val_annotations.txt), or with one val folder per class."""
    folder = root / "tiny-imagenet-200"
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    if not (folder / "train").is_dir():
        raise UsageError(f"{folder.resolve()}: no Tiny ImageNet there; unpack {url} into {root}/")
    classes = _class_folders(folder / "train", f"unpack {url} into {root}/")
    if len(classes) != TINY_CLASSES:
        raise UsageError(
            f"{folder / 'train'}: {len(classes)} class folders instead of {TINY_CLASSES}; "
            f"unpack {url} into {root}/ again"
        )
    annotations = folder / "val" / "val_annotations.txt"
    if train:
        files, targets = _list_classes(folder / "train", classes)
    elif (folder / "val" / classes[0]).is_dir():
        files, targets = _list_classes(folder / "val", classes)
    elif annotations.is_file():
        label = {name: i for i, name in enumerate(classes)}
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
        unknown = {name for _, name in rows} - label.keys()
        if unknown:
            raise UsageError(f"{annotations}: class {sorted(unknown)[0]!r} is not in train/")
        files = [str(folder / "val" / "images" / file) for file, _ in rows]
        targets = np.asarray([label[name] for _, name in rows], dtype=np.int64)
    else:
        raise UsageError(
            f"{folder / 'val'}: neither val_annotations.txt nor class folders; unpack {url} again"
        )
    if not train and len(np.unique(targets)) != TINY_CLASSES:
        raise UsageError(f"{folder / 'val'}: images of fewer than {TINY_CLASSES} classes")
    return Source(
        "tinyimagenet",
        targets,
        classes,
        lambda indices: _read(files, indices, SIDES["tinyimagenet"]),
    )
