"""Image sets that fit in memory: labels at once, pixels of the chosen images when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.training.errors import UsageError

# What reads each data set. Imported when it is asked for: a program uses one of them.
READERS = {
    "cifar10": "cifar",
    "cifar100": "cifar",
    "digits": "digits",
    "imagefolder": "folder",
    "npz": "npz",
    "tinyimagenet": "tiny_imagenet",
}
SIDES = {"cifar10": 32, "cifar100": 32, "tinyimagenet": 64}


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        name: what the data is, for reports ("cifar10", "imagefolder", …).
        targets: labels 0…C-1, (N,) int64.
        classes: class names.
        pixels: indices -> images, uint8 (n, H, W, 3).
        notes: for the user.
        files: N paths, if each image is a file.
    """

    name: str
    targets: np.ndarray
    classes: list[str]
    pixels: Callable[[Sequence[int]], np.ndarray]
    notes: Sequence[str] = ()
    files: Sequence[str] | None = None


def open_source(name: str, root: str | Path, split: str, image_size: int = 32) -> Source:
    """Open the split ``train``, ``val`` or ``test`` of a data set.

    Args:
        name: ``cifar10``, ``cifar100``, ``digits``, ``imagefolder``, ``npz`` or ``tinyimagenet``.
        root: its folder, or the file of ``npz`` (unused by ``digits``). CIFAR is downloaded into
            it when absent.
        split: ``train``, or one that ``held_out`` names.
        image_size: side of ``imagefolder`` and ``npz`` images: shorter side resized, centre
            cropped; and of ``digits``: their 8x8 pixels repeated.
    Raises:
        UsageError: data missing, of another layout or unreadable, or images that have their size;
            says what was expected.
    """
    if image_size not in (32, SIDES.get(name, image_size)):  # 32 is what nobody asked for
        raise UsageError(
            f"image_size {image_size}: images of {name} have {SIDES[name]}x{SIDES[name]} pixels;"
            " imagefolder, npz and digits can be brought to another size"
        )
    return _reader(name).open_split(name, Path(root), split, image_size)


def held_out(name: str, root: str | Path) -> Sequence[str]:
    """The splits that a data set has beside ``train``: the one to evaluate on, and the one by which
    the best epoch is chosen if it has one for that.
    """
    return _reader(name).held_out(Path(root))


def place(name: str, root: str | Path, split: str) -> str:
    """Where a split is, in words."""
    if name == "imagefolder":
        return str(Path(root) / split)
    return f"{split} of {root if name == 'npz' else name}"


def _reader(name: str):
    if name not in READERS:
        raise UsageError(f"dataset {name}: choose one of {', '.join(READERS)}")
    return importlib.import_module(f"datasets.{READERS[name]}")
