"""iNaturalist 2018 or other list files, or a folder of images: what is trained and evaluated."""

from __future__ import annotations

from argparse import Namespace

from datasets.assembly import load_folder, load_lists
from datasets.augment import described, recipes
from datasets.augment.colours import IMAGENET_MEAN, IMAGENET_STD, INAT_MEAN, INAT_STD
from datasets.data import Data
from datasets.listfile import ListFile, find_list

COLOURS = {
    "inat": {"mean": INAT_MEAN, "std": INAT_STD},
    "imagefolder": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
}


def load_data(args: Namespace) -> Data:
    """What the flags say; no pixel is read. The lists decide on the classes and their counts.

    Raises:
        UsageError: lists, folders, images or classes are missing, or do not fit together.
    """
    train_recipe, test_recipe = _recipes(args)
    root = args.dataset_dir
    if args.dataset == "imagefolder":
        return load_folder(root, train_recipe, test_recipe, args.val_fraction)
    train_list = find_list(args.train_list, (".", root), "--train_list FILE")
    val_list = find_list(args.val_list, (".", root), "--val_list FILE")
    train = ListFile(train_list, root, train_recipe, names=args.classes)
    test = ListFile(val_list, root, test_recipe, num_classes=train.num_classes)
    return load_lists(train, test, val_fraction=args.val_fraction)


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
