"""Image sets in one ``.npz`` file, in the layout of Keras or of MedMNIST."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from common.training.errors import UsageError
from datasets.classes import lacking, require_distinct
from datasets.images import square_all
from datasets.sources import Source

# Names of (training images, their labels, test images, their labels).
LAYOUTS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
VAL = ("val_images", "val_labels")  # of MedMNIST
EXPECTED = " or ".join(", ".join(layout) for layout in LAYOUTS)
IMAGES = "uint8 (N, H, W, 3), or grey (N, H, W)"
LABELS = "whole numbers 0…C-1, (N,) or (N, 1)"


@dataclass(frozen=True)
class Array:
    """An array of the file: what its header says, before its content is read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def wrong(self, right: str) -> UsageError:
        """The error that names the array and what it should be."""
        return UsageError(f"{self.path}: {self.name} is {self.dtype} {self.shape}; {right}")


def held_out(path: Path) -> list[str]:
    """``test``, and ``val`` to choose the best epoch on if the file has it.

    Raises:
        UsageError: no such file, or damaged.
    """
    with _open(path) as archive:
        found = _arrays(archive)
    return ["test", "val"] if {*LAYOUTS[1], *VAL} <= {*found} else ["test"]


def open_split(name: str, path: Path, split: str, size: int) -> Source:
    """See ``datasets.sources.open_source``."""
    pixels, targets, classes = read_split(path, split)
    notes = lacking(targets, classes, f"{split} of {path}")
    if split == "train":
        notes += _spare(path)
    return Source(name, targets, classes, lambda chosen: square_all(pixels[chosen], size), notes)


def read_split(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One split of an npz file: images (N, H, W, 3) uint8, labels (N,) int64, class names.

    Classes without a name (no array ``classes``) are called by their number. Nothing is unpickled.

    Args:
        split: ``train``, ``test`` or, in MedMNIST's layout, ``val``.
    Raises:
        UsageError: no such file, damaged, arrays missing, or of another shape, dtype or content;
            names the array, what it is and what would be right.
    """
    with _open(path) as archive:
        found = _arrays(archive)
        layout = next((names for names in LAYOUTS if set(names) <= set(found)), None)
        if layout is None:
            raise UsageError(
                f"{path}: holds {', '.join(found[:9]) or 'nothing'}; expected {EXPECTED}"
            )
        for there, absent in (VAL, VAL[::-1]):
            if there in found and absent not in found:
                raise UsageError(
                    f"{path}: holds {there} without {absent}; add them or leave {there} out"
                )
        pairs = {"train": layout[:2], "test": layout[2:]}
        if split == "val":
            pairs["val"] = VAL
        images = {key: _header(path, archive, pair[0]) for key, pair in pairs.items()}
        labels = {key: _header(path, archive, pair[1]) for key, pair in pairs.items()}
        for key in pairs:
            _check_shapes(images[key], labels[key])
        targets = {key: _read(archive, array).reshape(-1) for key, array in labels.items()}
        count = _count_classes(labels, targets)
        classes = [str(c) for c in range(count)]
        if "classes" in found:
            classes = _names(archive, _header(path, archive, "classes"), count)
        pixels = _read(archive, images[split])
    if pixels.ndim == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=3)
    return pixels, targets[split].astype(np.int64), classes


def _open(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise UsageError(f"npz file {path}: no such file; give FILE.npz with {EXPECTED}")
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\3\4"
        return zipfile.ZipFile(path)
    except PermissionError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if is_zip:
            raise UsageError(
                f"{path}: cut short or damaged ({reason}); copy it or write it again"
            ) from None
        raise UsageError(f"{path}: not an .npz file ({reason}); expected {EXPECTED}") from None


def _arrays(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _spare(path: Path) -> list[str]:
    """A note about arrays that are not read, such as x_val, if there are any."""
    with _open(path) as archive:
        found = _arrays(archive)
    layout = next(names for names in LAYOUTS if set(names) <= set(found))
    read = {*layout, "classes", *(VAL if layout == LAYOUTS[1] else ())}
    spare = [name for name in found if name not in read]
    return [f"note: {path}: its arrays {', '.join(spare)} are not read"] if spare else []


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> Array:
    try:
        with archive.open(f"{name}.npy") as member:
            old = npy.read_magic(member) == (1, 0)
            read = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
            shape, _, dtype = read(member)
    except Exception as error:  # whatever the readers of zip and npy make of damaged bytes
        raise _damaged(path, name, error) from None
    return Array(path, name, shape, dtype)


def _read(archive: zipfile.ZipFile, array: Array) -> np.ndarray:
    try:
        with archive.open(f"{array.name}.npy") as member:
            return npy.read_array(member, allow_pickle=False)
    except Exception as error:  # as above
        raise _damaged(array.path, f"{array.name} ({array.dtype} {array.shape})", error) from None


def _damaged(path: Path, what: str, error: Exception) -> UsageError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(
        f"{path}: {what} cannot be read ({reason}); write the file again with numpy.savez"
    )


def _check_shapes(images: Array, labels: Array) -> None:
    for array in (labels, images):
        if array.shape[:1] == (0,):
            raise array.wrong("it is empty")
    numbers = len(labels.shape) == 1 or (len(labels.shape) == 2 and labels.shape[1] == 1)
    if not numbers or labels.dtype.kind not in "iu":
        raise labels.wrong(f"expected {LABELS}")
    grey, colour = len(images.shape) == 3, len(images.shape) == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not (grey or colour) or 0 in images.shape[1:]:
        raise images.wrong(f"expected {IMAGES}{_cure(images)}")
    if images.shape[0] != labels.shape[0]:
        raise images.wrong(
            f"expected an image for each of the {labels.shape[0]} labels in {labels.name}"
        )


def _cure(images: Array) -> str:
    """How images in other usual forms are brought to the expected one."""
    cures = []
    if len(images.shape) == 4 and images.shape[3] == 1:
        cures.append("squeeze(3)")
    elif len(images.shape) == 4 and images.shape[1] == 1:
        cures.append("squeeze(1)")
    elif len(images.shape) == 4 and images.shape[1] == 3:
        cures.append("transpose(0, 2, 3, 1)")
    if images.dtype.kind == "f":
        cures.append("scale to 0…255")
    if images.dtype.kind in "fiub" and images.dtype != np.uint8:
        cures.append("astype(numpy.uint8)")
    return f": {', '.join(cures)}" if cures else ""


def _count_classes(labels: dict[str, Array], targets: dict[str, np.ndarray]) -> int:
    """C of the training labels; the other splits have no further label."""
    for key, array in labels.items():
        if (lowest := int(targets[key].min())) < 0:
            raise array.wrong(f"it has the label {lowest}; number the classes from 0")
    train = labels["train"]
    present = np.unique(targets["train"])
    count = int(present[-1]) + 1
    if len(present) < count:
        lacking = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise train.wrong(
            f"it has labels up to {count - 1} but no {lacking}; "
            "number the classes 0…C-1 without a gap"
        )
    for key, array in labels.items():
        if (highest := int(targets[key].max())) >= count:
            raise array.wrong(
                f"it has the label {highest}, {train.name} only 0…{count - 1}; "
                "a class to be tested needs training images"
            )
    return count


def _names(archive: zipfile.ZipFile, array: Array, count: int) -> list[str]:
    if array.shape != (count,) or array.dtype.kind != "U":
        raise array.wrong(f"expected {count} texts (dtype str), one for each label")
    names = _read(archive, array).tolist()
    require_distinct(names, f"{array.path}: {array.name}")
    return names
