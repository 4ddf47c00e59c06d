"""Tiny ImageNet as published (val_annotations.txt), or with one val folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.training.errors import UsageError
from datasets.folder import Skipped, class_folders, list_classes
from datasets.images import read_squares
from datasets.sources import SIDES, Source

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
NUM_CLASSES = 200
BOXES = "_boxes.txt"  # beside the training images of each class


def held_out(root: Path) -> tuple[str, ...]:
    """See ``datasets.sources.held_out``."""
    return ("val",)  # the labels of its test images are not public


def open_split(name: str, root: Path, split: str, size: int) -> Source:
    """See ``datasets.sources.open_source``."""
    folder = root / "tiny-imagenet-200"
    if not (folder / "train").is_dir():
        raise UsageError(f"{folder.resolve()}: no Tiny ImageNet there; unpack {URL} into {root}/")
    skipped = Skipped()
    classes = class_folders(folder / "train", f"unpack {URL} into {root}/", skipped)
    if len(classes) != NUM_CLASSES:
        raise UsageError(
            f"{folder / 'train'}: {len(classes)} class folders instead of {NUM_CLASSES}; "
            f"unpack {URL} into {root}/ again"
        )
    if split == "train" or (folder / split / classes[0]).is_dir():
        files, targets = list_classes(folder / split, classes, skipped)
    else:
        files, targets = _annotated(folder / split, classes)
    skipped.others = [file for file in skipped.others if not file.endswith(BOXES)]
    notes = skipped.notes(folder / split)
    side = SIDES[name]
    return Source(
        name, targets, classes, lambda chosen: read_squares(files, chosen, side), notes, files
    )


def _annotated(folder: Path, classes: list[str]) -> tuple[list[str], np.ndarray]:
    annotations = folder / "val_annotations.txt"
    if not annotations.is_file():
        raise UsageError(
            f"{folder}: neither val_annotations.txt nor class folders; unpack {URL} again"
        )
    label = {name: i for i, name in enumerate(classes)}
    rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
    if odd := [row for row in rows if len(row) < 2]:
        raise UsageError(f"{annotations}: expected `file<tab>class`, found {odd[0][0]!r}")
    if unknown := {name for _, name in rows} - label.keys():
        raise UsageError(f"{annotations}: class {min(unknown)!r} is not in train/")
    if len({name for _, name in rows}) != NUM_CLASSES:
        raise UsageError(f"{folder}: images of fewer than {NUM_CLASSES} classes")
    rows.sort(key=lambda row: (label[row[1]], row[0]))  # as in folders of the classes
    files = [str(folder / "images" / file) for file, _ in rows]
    return files, np.asarray([label[name] for _, name in rows], dtype=np.int64)
