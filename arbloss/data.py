"""The data sets of the configuration keys, and the loaders that feed both stages."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from arbloss.opts import CIFAR_LIKE, DEFAULTS, check_number
from common.training.errors import UsageError
from common.training.launch import Process
from datasets import augment, long_tail
from datasets.assembly import evaluation_loaders, load_lists
from datasets.augment import described
from datasets.augment.colours import INAT_MEAN, INAT_STD, Triple
from datasets.data import Data
from datasets.listfile import ListFile, find_list
from datasets.loaders import Loader, Order, WorkersLoader, shuffled

LISTS = {
    "imagenet": ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt"),
    "ina2018": ("iNaturalist18_train.txt", "iNaturalist18_val.txt"),
    "places": ("Places_LT_train.txt", "Places_LT_test.txt"),
}
SHIPPED_LISTS = Path(__file__).resolve().parents[1] / "datasets" / "data_txt"  # filled by the user
NUM_SAMPLES_CLS = 4  # images that the class-aware order takes of a class at a time


def load_data(config: CfgNode) -> Data:
    """Read the data set that the configuration names.

    Raises:
        UsageError: data missing or malformed, or of another number of classes than
            ``num_classes``; a class without training images.
    """
    if config.dataset in CIFAR_LIKE:
        for key in ("list_path", "classes", "val_list"):
            if config[key]:
                raise UsageError(f"{key} {config[key]}: for list files, not for {config.dataset}")
        data = long_tail.load_long_tailed(
            config.dataset,
            config.data_path,
            imb_type="none" if config.imb_factor is None else "exp",
            imb_factor=config.imb_factor,
            image_size=config.image_size,
            val_fraction=config.val_fraction,
            whole="imb_factor null",
            check_number=partial(check_number, config),
        )
        long_tail.require_images(data.cls_num_list, f"dataset {config.dataset}")
        return data
    return _load_lists(config)


def _load_lists(config: CfgNode) -> Data:
    if config.image_size != DEFAULTS["image_size"]:
        raise UsageError(
            f"image_size {config.image_size}: images of {config.dataset} are cut to 224x224 pixels;"
            " imagefolder, npz and digits can be brought to another size"
        )
    root = _either_spelling(Path(config.data_path))
    folders = [Path(config.list_path)] if config.list_path else [root, SHIPPED_LISTS]
    colours = _colours(config)
    train_name, test_name = LISTS[config.dataset]
    own = "num_classes C" if config.dataset == "imagenet" else ""
    train_list = find_list(train_name, folders, "list_path DIR", own)
    val_name = test_name.replace("_test", "_val")  # of one's own images that have no test list
    found = [Path(f) / name for name in (test_name, val_name) for f in folders]
    test_list = next((path for path in found if path.is_file()), None)
    test_list = test_list or find_list(test_name, folders, "list_path DIR", own)
    augmentation = augment.recipes.imagenet_train(jitter=0.4, **colours)
    train = ListFile(train_list, root, augmentation, names=config.classes)
    check_number(config, train.num_classes, train_list)
    evaluation = augment.recipes.imagenet_eval(**colours)
    lists = [train, ListFile(test_list, root, evaluation, train.num_classes)]
    if config.val_list:
        lists.append(ListFile(config.val_list, root, evaluation, train.num_classes))
    class_map = largest_first(train.cls_num_list)
    return load_lists(*lists, val_fraction=config.val_fraction, class_map=class_map)


def transform(config: CfgNode, data: Data) -> dict[str, object]:
    """What a test image goes through, as plain data."""
    if config.dataset in CIFAR_LIKE:
        return described.cifar(data.test.images.shape[1])
    return described.imagenet(**_colours(config))


def _colours(config: CfgNode) -> dict[str, Triple]:
    """Mean and standard deviation, if they are not ImageNet's."""
    return {"mean": INAT_MEAN, "std": INAT_STD} if config.dataset == "ina2018" else {}


def _either_spelling(root: Path) -> Path:
    """The configurations say iNaturelist2018; a folder with the right spelling does as well."""
    if root.exists():
        return root
    for wrong, right in (("iNaturelist", "iNaturalist"), ("iNaturalist", "iNaturelist")):
        other = Path(str(root).replace(wrong, right))
        if other.exists():
            return other
    return root


def make_loaders(
    data: Data,
    config: CfgNode,
    *,
    batch_size: int,
    seed: int,
    process: Process,
    memory_format: torch.memory_format,
    balanced: bool = False,
) -> tuple[Loader, Loader, Loader]:
    """Training, validation and test loader, of batches ``(images, target, index)``.

    Without validation images the second is the third.
    ``batch_size`` is over all processes. ``balanced`` takes every class equally often, for one
    batch more than the training set fills.
    """
    order = shuffled(len(data.train.targets))
    if balanced:
        order = _class_aware(data, batch_size)
    workers = -(-config.workers // process.local_world_size)
    shared = {
        "workers": workers, "seed": seed, "process": process, "memory_format": memory_format
    }  # fmt: skip
    if config.dataset not in CIFAR_LIKE:
        test_batch_size = -(-batch_size // process.world_size)  # as large as those of training
        train_loader = WorkersLoader(data.train, batch_size, order=order, **shared)
        return train_loader, *evaluation_loaders(data, test_batch_size, **shared)
    return long_tail.make_loaders(
        data,
        long_tail.Augmentation(),
        loader=config.loader,
        batch_size=batch_size,
        test_batch_size=batch_size,
        order=order,
        **shared,
    )


def _class_aware(data: Data, batch_size: int) -> Order:
    """MiSLAS stops the class-aware order, max(n) * C images long, after ceil(N / B) + 1 batches."""
    targets, counts = data.train.targets, data.cls_num_list
    batches = -(-len(targets) // batch_size) + 1
    length = min(max(counts) * len(counts), batches * batch_size)

    def order(generator: torch.Generator) -> torch.Tensor:
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        return torch.from_numpy(class_aware_order(targets, NUM_SAMPLES_CLS, rng, length))

    return order


def largest_first(cls_num_list: Sequence[int]) -> np.ndarray:
    """New label of each class so that class 0 is the largest; of equal classes the earlier first.

    Returns:
        int64 array (C,) for ``ListFile.relabel``: old label -> rank.
    """
    order = np.argsort(-np.asarray(cls_num_list, dtype=np.int64), kind="stable")
    class_map = np.empty_like(order)
    class_map[order] = np.arange(len(order))
    return class_map


def class_aware_order(
    targets: Sequence[int], num_samples_cls: int, rng: random.Random, length: int | None = None
) -> np.ndarray:
    """Class-aware sampling (Shen et al., ECCV 2016) as in MiSLAS: every class equally often.

    The classes, and the images within each class, are dealt like cards: shuffled, dealt to the end,
    shuffled again. A class deals ``num_samples_cls`` images, then the next class has its turn.

    Args:
        targets: labels 0..C-1 of all N images.
        rng: the original's generator is Python's; seeded alike it gives the same order.
        length: images to deal, by default ``max(n_c) * C``, the original's epoch. Twice that is two
            epochs of the original, whose decks go on from one epoch to the next.

    Returns:
        int64 array of ``length`` positions in ``targets``.

    Raises:
        ValueError: a class has no image.
    """
    targets = np.asarray(targets, dtype=np.int64)
    counts = np.bincount(targets)
    if not counts.all():
        raise ValueError(f"class {int(counts.argmin())} has no image to sample")
    length = int(counts.max()) * len(counts) if length is None else length
    by_class = np.split(np.argsort(targets, kind="stable"), np.cumsum(counts)[:-1])
    images = [_deal(positions.tolist(), rng) for positions in by_class]
    order: list[int] = []
    for c in _deal(list(range(len(counts))), rng):
        order.extend(islice(images[c], num_samples_cls))
        if len(order) >= length:
            return np.array(order[:length], dtype=np.int64)


def _deal(deck: list[int], rng: random.Random) -> Iterator[int]:
    """Endless: shuffle the deck in place, deal it, shuffle it again."""
    while True:
        rng.shuffle(deck)
        yield from deck
