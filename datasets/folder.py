"""Folders of images: DIR/train/<class>/*, and DIR/val/<class>/* or DIR/test/<class>/* or both."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from common.training.errors import UsageError
from common.training.report import names_fingerprint
from datasets.classes import lacking, read_names, some
from datasets.images import SUFFIXES, read_rgb, read_squares
from datasets.sources import Source

LAYOUT = "expected DIR/train/<class>/* and DIR/val/<class>/* or DIR/test/<class>/*"
HELD_OUT = ("test", "val")  # in this order: with both there, test/ is reported
NAMES = "classes.txt"  # beside train/: names of the class folders, one a line, in label order
ENDINGS = f"files whose names end in {', '.join(SUFFIXES)}"
LITTER = ("__MACOSX", "@eaDir")  # of archives and file servers


@dataclass(frozen=True)
class Split:
    """Files and labels of one split, or of all images.

    Attributes:
        files: N paths, class by class; within a class in torchvision's order.
        targets: labels 0…C-1, (N,) int64.
        classes: names; those of classes.txt in its order, else the folders sorted as text.
        notes: what was skipped, and which classes lack images, for the user.
    """

    files: list[str]
    targets: np.ndarray
    classes: list[str]
    notes: list[str]


class FolderImages(Dataset):
    """``dataset[i]`` is (transformed RGB image, label) of image ``i`` of ``root``/``split``.

    Attributes:
        files, targets, classes, notes: see ``Split``.
        source: the folder, in words.

    Raises:
        UsageError: see ``read_folder``.
    """

    def __init__(self, root: Path, split: str, transform: Callable) -> None:
        found = read_folder(root, split)
        self.files, self.targets, self.transform = found.files, found.targets, transform
        self.classes, self.notes = found.classes, found.notes
        self.source, self._root = str(root / split), root

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(read_rgb(self.files[index])), int(self.targets[index])

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the images' names below the root, for the facts of a report."""
        return {"files_sha256": names_fingerprint(self.files, self._root)}


def held_out(root: Path) -> list[str]:
    """``test``, and ``val`` to choose the best epoch on; or the one of them that is there."""
    found = [split for split in HELD_OUT if (root / split).is_dir()]
    if not found:
        raise UsageError(f"image folder {root}: neither val/ nor test/ in it; {LAYOUT}")
    return found


def open_split(name: str, root: Path, split: str, size: int) -> Source:
    """See ``datasets.sources.open_source``."""
    found = read_folder(root, split)
    return Source(
        name,
        found.targets,
        found.classes,
        lambda indices: read_squares(found.files, indices, size),
        found.notes,
        found.files,
    )


def read_folder(root: Path, split: str) -> Split:
    """List the images of ``root``/``split``; no image is read.

    Raises:
        UsageError: a folder missing or without images, other classes than in train/, a classes.txt
            that does not fit.
    """
    if not root.is_dir():
        raise UsageError(f"image folder {root}: no such folder; {LAYOUT}")
    skipped = Skipped()
    folder = root / split
    there = class_folders(folder, LAYOUT, skipped)
    classes = there if split == "train" else class_folders(root / "train", LAYOUT, Skipped())
    if odd := sorted(set(there) - set(classes)):
        raise UsageError(f"{folder}: other classes than in train/ (differs in {odd[0]!r})")
    if (root / NAMES).is_file():
        classes = _in_order_of(root / NAMES, classes)
    files, targets = list_classes(folder, classes, skipped, all_present=split == "train")
    notes = [*skipped.notes(folder), *lacking(targets, classes, folder)]
    if split == "train":
        notes += _not_read(root)
    return Split(files, targets, classes, notes)


def _not_read(root: Path) -> list[str]:
    """A note about folders that are none of the splits, such as valid, if there are any."""
    splits = ("train", *HELD_OUT)
    spare = [entry.name for entry in entries(root) if entry.is_dir() and not is_hidden(entry.name)]
    spare = [name for name in spare if name not in splits]
    return [f"note: {root}: its folders {some(spare)} are not read"] if spare else []


def read_classes(root: Path, layout: str) -> Split:
    """List the images of ``root``/<class>/*, without splits; no image is read.

    Raises:
        UsageError: no such folders, a class without images, a classes.txt that does not fit.
    """
    skipped = Skipped()
    classes = class_folders(root, layout, skipped)
    if (root / NAMES).is_file():
        classes = _in_order_of(root / NAMES, classes)
    files, targets = list_classes(root, classes, skipped)
    return Split(files, targets, classes, skipped.notes(root))


def _in_order_of(path: Path, classes: Sequence[str]) -> list[str]:
    names = read_names(path)
    if odd := sorted(set(names) ^ set(classes)):
        raise UsageError(
            f"{path}: differs from the class folders in {odd[0]!r}; expected the name of each of "
            "them, one a line"
        )
    return names


@dataclass
class Skipped:
    """What a listing passed over: hidden files and folders, files that are no images by their
    ending, links to folders that are read, folders where none are entered, and images that are in
    no class folder.
    """

    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)

    def notes(self, folder: object) -> list[str]:
        """A note about what was passed over in ``folder``, if anything was."""
        what = [
            f"{kind}: {len(paths)} (such as {min(paths)})"
            for kind, paths in (
                ("hidden files and folders", self.hidden),
                ("files that are no images by their ending", self.others),
                ("links to folders that are read already", self.links),
                ("folders, as the images are expected beside them", self.folders),
                ("images beside the class folders", self.beside),
            )
            if paths
        ]
        return [f"note: {folder}: skipped {', '.join(what)}"] if what else []


def class_folders(folder: Path, layout: str, skipped: Skipped) -> list[str]:
    """Names of the folders in ``folder``, sorted as text."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; {layout}")
    found = []
    for entry in entries(folder):
        if entry.is_dir():
            found.append(entry.name)
        elif entry.name.lower().endswith(SUFFIXES) and not is_hidden(entry.name):
            skipped.beside.append(entry.path)
    skipped.hidden += [str(folder / name) for name in found if is_hidden(name)]
    classes = [name for name in found if not is_hidden(name)]
    if not classes:
        raise UsageError(f"{folder}: no class folders in it; {layout}")
    return classes


def list_classes(
    folder: Path, classes: Sequence[str], skipped: Skipped, all_present: bool = True
) -> tuple[list[str], np.ndarray]:
    """Files of each class folder, and their labels (N,) int64.

    Args:
        all_present: every class must have images; otherwise one at least.
    """
    seen: dict[tuple[int, int], object] = {}
    for name in classes:
        path = folder / name
        if path.is_dir() and (other := seen.setdefault(_identity(path), path)) is not path:
            raise UsageError(f"{path}: the same folder as {other}; an image has one class")
    files: list[str] = []
    targets: list[int] = []
    for label, name in enumerate(classes):
        found = image_files(folder / name, skipped, seen) if (folder / name).is_dir() else []
        if not found and all_present:
            raise UsageError(f"{folder / name}: no images in this class, {ENDINGS}")
        files += found
        targets += [label] * len(found)
    if not files:
        raise UsageError(f"{folder}: no images in it, {ENDINGS}")
    return files, np.asarray(targets, dtype=np.int64)


def image_files(
    folder: Path, skipped: Skipped, seen: dict[tuple[int, int], object] | None = None
) -> list[str]:
    """Image files below ``folder`` in torchvision's order: by their folder, then by name.

    Args:
        seen: identities of folders that are not to be entered; those that are entered join them.
    """
    seen = {} if seen is None else seen
    for path in (folder.absolute(), *folder.absolute().parents):
        seen.setdefault(_identity(path), path)
    found = []
    waiting = [str(folder)]
    while waiting:
        parent = waiting.pop()
        names = []
        for entry in entries(parent):
            if entry.is_dir():
                identity = _identity(entry.path)
                if is_hidden(entry.name):
                    skipped.hidden.append(entry.path)
                elif identity in seen:
                    skipped.links.append(entry.path)
                else:
                    seen[identity] = entry.path
                    waiting.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                if is_hidden(entry.name):
                    skipped.hidden.append(entry.path)
                else:
                    names.append(entry.name)
            elif not is_hidden(entry.name):
                skipped.others.append(entry.path)
        found.append((parent, names))
    return [os.path.join(parent, name) for parent, names in sorted(found) for name in names]


def entries(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, by name.

    Raises:
        UsageError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be listed ({error.strerror})") from None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of the data."""
    return name.startswith(".") or name in LITTER


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
