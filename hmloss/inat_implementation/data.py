"""iNaturalist 2018 or other list files, or a folder of images: what is trained and evaluated."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from common.training.report import fingerprint, names_fingerprint
from datasets.augment import described, recipes
from datasets.augment.colours import IMAGENET_MEAN, IMAGENET_STD, INAT_MEAN, INAT_STD
from datasets.folder import FolderImages, held_out, read_folder
from datasets.listfile import ListFile, find_list, size_warning, split_name
from datasets.validation import HELD_OUT, evaluation_facts, evaluation_notes, hold_out, part_name

COLOURS = {
    "inat": {"mean": INAT_MEAN, "std": INAT_STD},
    "imagefolder": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
}


@dataclass(frozen=True)
class Data:
    """A training set as it is, and what it is evaluated on.

    Attributes:
        val: images by which the best epoch is chosen: the test set, if there are no others.
        files: the test images.
        classes: their names, (C,). cls_num_list: training images of each.
        name: what the data are, for the head of a picture.
        notes: for the user. facts: for the report.
        split: which one the test set is, ``test`` or ``val``. chosen_on: which one chooses.
    """

    train: Dataset
    val: Dataset
    test: Dataset
    files: Sequence[str]
    classes: list[str]
    cls_num_list: list[int]
    name: str
    notes: list[str]
    facts: dict[str, object]
    split: str
    chosen_on: str


def load_data(args: Namespace) -> Data:
    """What the flags say; no pixel is read.

    Raises:
        UsageError: lists, folders, images or classes are missing, or do not fit together.
    """
    return (_folder if args.dataset == "imagefolder" else _lists)(args)


def eval_transform(args: Namespace) -> dict[str, object]:
    """Of a test image, as plain data."""
    return described.imagenet(**_sizes(args), **COLOURS[args.dataset])


def _sizes(args: Namespace) -> dict[str, int]:
    return {"resize": round(args.image_size * 256 / 224), "size": args.image_size}


def _recipes(args: Namespace) -> tuple:
    """Of a training and of a test image."""
    colours = COLOURS[args.dataset]
    train = recipes.imagenet_train(size=args.image_size, **colours)
    return train, recipes.imagenet_eval(**_sizes(args), **colours)


def _lists(args: Namespace) -> Data:
    """The lists decide on the classes and their counts."""
    train_recipe, test_recipe = _recipes(args)
    folders = (".", args.dataset_dir)
    train_list = find_list(args.train_list, folders, "--train_list FILE")
    val_list = find_list(args.val_list, folders, "--val_list FILE")
    train = ListFile(train_list, args.dataset_dir, train_recipe, names=args.classes)
    test = ListFile(val_list, args.dataset_dir, test_recipe, num_classes=train.num_classes)
    notes = []
    for data in (train, test):
        if warning := size_warning(data):
            notes.append(f"WARNING: {warning}")
        notes += data.notes
    return _assemble(
        args, train, test, None, train.classes, notes,
        {
            "dataset": args.train_list,
            "test_set": str(test.list_file),
            "train_list_sha256": fingerprint(train.paths),
            "test_list_sha256": fingerprint(test.paths),
        },
        split=split_name(test.list_file),
        name=Path(args.train_list).stem,
    )  # fmt: skip


def _folder(args: Namespace) -> Data:
    train_recipe, test_recipe = _recipes(args)
    root = Path(args.dataset_dir)
    split, *others = held_out(root)
    found = {part: read_folder(root, part) for part in ("train", split, *others)}
    train, test = found["train"], found[split]
    val = FolderImages(found[others[0]], test_recipe) if others else None
    return _assemble(
        args, FolderImages(train, train_recipe), FolderImages(test, test_recipe), val,
        train.classes, [note for part in found.values() for note in part.notes],
        {
            "dataset": str(root),
            "test_set": str(root / split),
            "train_files_sha256": names_fingerprint(train.files, root),
            "test_files_sha256": names_fingerprint(test.files, root),
        },
        split=split,
        name=root.resolve().name,
        val_set=str(root / others[0]) if others else None,
    )  # fmt: skip


def _assemble(
    args: Namespace,
    train: ListFile | FolderImages,
    test: ListFile | FolderImages,
    val: Dataset | None,
    classes: list[str],
    notes: list[str],
    facts: dict[str, object],
    *,
    split: str,
    name: str,
    val_set: str | None = None,
) -> Data:
    """``val``: images of ``val_set``; None: the part that ``--val_fraction`` says, if it does."""
    kept, part = hold_out(train, args.val_fraction, test.transform, val_set)
    chosen_on = split if val is None else "val"
    if part is not None:
        val, chosen_on, val_set = part, HELD_OUT, part_name(args.val_fraction)
    facts |= evaluation_facts(facts["test_set"], len(test), val_set, val and len(val))
    facts["labels_sha256"] = fingerprint(kept.targets)
    facts["test_labels_sha256"] = fingerprint(test.targets)
    called = "validation" if split == "val" else "test"
    notes = [
        *notes,
        f"{len(train)} training and {len(test)} {called} images, {len(classes)} classes",
        *evaluation_notes(facts, split),
    ]
    return Data(
        train=kept, val=test if val is None else val, test=test, files=test.files, classes=classes,
        cls_num_list=np.bincount(kept.targets, minlength=len(classes)).tolist(), name=name,
        notes=notes, facts=facts, split=split, chosen_on=chosen_on,
    )  # fmt: skip
