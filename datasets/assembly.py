"""Data of list files and image folders, whose images are read as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.training.report import fingerprint
from datasets.data import Data
from datasets.folder import FolderImages, held_out
from datasets.listfile import (
    ListFile,
    check_names,
    data_name,
    is_published,
    size_warning,
    split_name,
)
from datasets.loaders import WorkersLoader
from datasets.validation import HELD_OUT, evaluation_facts, evaluation_notes, hold_out, part_name


def load_folder(
    root: str | Path,
    train_transform: Callable,
    eval_transform: Callable,
    val_fraction: float = 0.0,
) -> Data:
    """The images of a folder's train/, and of its test/ or val/ or both; no image is read.

    Raises:
        UsageError: see ``read_folder`` and ``hold_out``.
    """
    root = Path(root)
    train = FolderImages(root, "train", train_transform)
    split, *others = held_out(root)
    test, *val = (FolderImages(root, part, eval_transform) for part in (split, *others))
    name = root.resolve().name
    data = _assemble(train, test, *val, split=split, name=name, val_fraction=val_fraction)
    return replace(data, own=True)


def load_lists(
    train: ListFile,
    test: ListFile,
    val: ListFile | None = None,
    *,
    val_fraction: float = 0.0,
    class_map: np.ndarray | None = None,
) -> Data:
    """The images of lists.

    Args:
        class_map: new labels, see ``ListFile.relabel``. The images that ``val_fraction`` holds out
            are those that it holds out without.
    Raises:
        UsageError: see ``check_names`` and ``hold_out``.
    """
    listed = train.targets
    evaluated = [images for images in (test, val) if images is not None]
    for images in evaluated:
        check_names(train, images)
    if class_map is not None:
        for images in (train, *evaluated):
            images.relabel(class_map)
    warnings = [text for text in map(size_warning, (train, test)) if text]
    split, name = split_name(test.list_file), data_name(train)
    data = _assemble(
        train, test, val, split=split, name=name, val_fraction=val_fraction, warnings=warnings,
        strata=listed,
    )  # fmt: skip
    return replace(data, own=not is_published(train))


def _assemble(
    train: ListFile | FolderImages,
    test: ListFile | FolderImages,
    val: ListFile | FolderImages | None = None,
    *,
    split: str,
    name: str,
    val_fraction: float,
    warnings: Sequence[str] = (),
    strata: np.ndarray | None = None,
) -> Data:
    sets = {"train_": train, "test_": test} | ({} if val is None else {"val_": val})
    val_set = None if val is None else val.source
    kept, part = hold_out(train, val_fraction, test.transform, val_set, strata)
    chosen_on = split if val is None else "val"
    if part is not None:
        val, chosen_on, val_set = part, HELD_OUT, part_name(val_fraction)

    facts = evaluation_facts(test.source, len(test), val_set, val and len(val))
    facts |= {"train_set": train.source, "train_images": len(kept)}
    for which, images in sets.items():
        facts |= {f"{which}{key}": value for key, value in images.fingerprints().items()}
    for which, images in {**sets, "": kept}.items():
        if which != "train_":
            facts[f"{which}labels_sha256"] = fingerprint(images.targets.astype("<i8"))
    if warnings:
        facts["warnings"] = list(warnings)

    notes = [f"WARNING: {text}" for text in warnings]
    notes += [note for images in sets.values() for note in images.notes]
    notes += evaluation_notes(facts, split)
    counts = np.bincount(kept.targets, minlength=len(train.classes)).tolist()
    return Data(kept, test, train.classes, counts, facts, split, chosen_on, notes, val, name)


def evaluation_loaders(
    data: Data, batch_size: int, **options: object
) -> tuple[WorkersLoader, WorkersLoader]:
    """Validation and test loader; without validation images the first is the second.

    ``options``: of ``WorkersLoader``.
    """
    test_loader = WorkersLoader(data.test, batch_size, train=False, **options)
    if data.val is None:
        return test_loader, test_loader
    return WorkersLoader(data.val, batch_size, train=False, **options), test_loader
