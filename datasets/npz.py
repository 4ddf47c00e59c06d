"""Image sets in one ``.npz`` file, in the layout of Keras or of MedMNIST."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from common.training.errors import UsageError

# Names of (training images, their labels, test images, their labels).
LAYOUTS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
EXPECTED = " or ".join(", ".join(layout) for layout in LAYOUTS)


def read_split(path: Path, train: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One split of an npz file: images (N, H, W, 3) uint8, labels (N,) int64, class names.

    Classes without a name (no array ``classes``) are called by their number.

    Raises:
        UsageError: no such file, damaged, arrays missing, or of another shape, dtype or content;
            names the array, what it is and what would be right.
    """
    if not path.is_file():
        raise UsageError(f"npz file {path}: no such file; give FILE.npz with {EXPECTED}")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UsageError(f"{path}: a single array; expected an .npz file with {EXPECTED}")
            return _read_arrays(path, file, train)
    except UsageError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{path}: not a readable .npz file ({reason}); expected {EXPECTED}, "
            "without pickled objects"
        ) from None


def _read_arrays(
    path: Path, file: np.lib.npyio.NpzFile, train: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    layout = next((names for names in LAYOUTS if set(names) <= set(file.files)), None)
    if layout is None:
        raise UsageError(f"{path}: holds {', '.join(file.files) or 'nothing'}; expected {EXPECTED}")
    labels = {name: _labels(path, name, file[name]) for name in layout[1::2]}
    count = 1 + int(labels[layout[1]].max())
    lacking = sorted(set(range(count)) - set(labels[layout[1]].tolist()))
    if lacking:
        raise UsageError(
            f"{path}: {layout[1]} has labels up to {count - 1} but none {lacking[0]}; "
            "number the classes 0…C-1 without a gap"
        )
    if (highest := int(labels[layout[3]].max())) >= count:
        raise UsageError(
            f"{path}: {layout[3]} has label {highest}, {layout[1]} only 0…{count - 1}; "
            "a class to be tested needs training images"
        )
    names = _names(path, file["classes"], count) if "classes" in file.files else None
    images_name, labels_name = layout[:2] if train else layout[2:]
    targets = labels[labels_name]
    images = file[images_name]
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
        raise _wrong(path, images_name, images, "uint8 (N, H, W, 3), or grey (N, H, W)")
    if len(images) != len(targets) or 0 in images.shape:
        raise _wrong(
            path, images_name, images, f"an image for each of the {len(targets)} {labels_name}"
        )
    if grey:
        images = np.repeat(images[..., None], 3, axis=3)
    return images, targets, names or [str(c) for c in range(count)]


def _labels(path: Path, name: str, labels: np.ndarray) -> np.ndarray:
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "iu" or not len(flat):
        raise _wrong(path, name, labels, "whole numbers 0…C-1, (N,) or (N, 1)")
    if flat.min() < 0:
        raise UsageError(f"{path}: {name} has label {flat.min()}; number the classes from 0")
    return flat.astype(np.int64)


def _names(path: Path, names: np.ndarray, count: int) -> list[str]:
    if names.shape != (count,) or names.dtype.kind != "U":
        raise _wrong(path, "classes", names, f"{count} texts, one for each label")
    return names.tolist()


def _wrong(path: Path, name: str, array: np.ndarray, right: str) -> UsageError:
    return UsageError(f"{path}: {name} is {array.dtype} {array.shape}; expected {right}")
