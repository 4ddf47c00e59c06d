"""Long-tailed subsets of image sets that fit in memory, and the loaders that feed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from common.imbalance import choose_subset, class_counts
from common.training.errors import UsageError
from common.training.launch import Process
from common.training.report import fingerprint
from datasets import augment
from datasets.augment import batch
from datasets.loaders import DeviceLoader, Order, WorkersLoader
from datasets.memory import ArrayDataset
from datasets.sources import evaluated, held_out, open_source


@dataclass(frozen=True)
class Images:
    """uint8 images (N, H, W, 3) and labels (N,) int64."""

    images: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class LongTailed:
    """A training set made long-tailed, the untouched test set, and what identifies them.

    Attributes:
        cls_num_list: training images per class.
        facts: for the report: data set, SHA-256 of the chosen indices and of the training pixels.
        split: which one the test set is, ``test`` or ``val``.
        notes: for the user.
    """

    train: Images
    test: Images
    classes: list[str]
    cls_num_list: list[int]
    facts: dict[str, object]
    split: str = "test"
    notes: Sequence[str] = ()


def load_long_tailed(
    dataset: str,
    root: str,
    *,
    imb_type: str,
    imb_factor: float,
    rand_number: int = 0,
    image_size: int = 32,
    num_classes: int | None = None,
) -> LongTailed:
    """Load a data set and keep ``class_counts(…, imb_type, imb_factor)`` training images per class.

    Args:
        dataset, root, image_size: see ``open_source``.
        imb_type: ``exp``, ``step``, or ``none`` for all images as they are.
        num_classes: what the user said; contradicting the data is an error.
    Raises:
        UsageError: data missing, or too few images in a class for the asked imbalance.
    """
    train = open_source(dataset, root, "train", image_size=image_size)
    split, *others = held_out(dataset, root)
    test = open_source(dataset, root, split, image_size=image_size)
    found = len(train.classes)
    if num_classes is not None and num_classes != found:
        raise UsageError(f"--num_classes {num_classes}: {dataset} in {root} has {found} classes")
    try:
        if imb_type == "none":
            counts = np.bincount(train.targets, minlength=found).tolist()
        else:
            counts = class_counts(len(train.targets), found, imb_type, imb_factor)
        indices = choose_subset(train.targets, counts, rand_number)
    except ValueError as error:
        raise UsageError(
            f"imbalance {imb_type} {imb_factor} on {dataset}: {error}; "
            "it is cut out of a balanced set (none takes the images as they are)"
        ) from None
    pixels = train.pixels(indices)
    return LongTailed(
        Images(pixels, train.targets[indices]),
        Images(test.pixels(np.arange(len(test.targets))), test.targets),
        train.classes,
        counts,
        {
            "dataset": dataset,
            "subset_sha256": fingerprint(indices.astype("<i8")),
            "pixels_sha256": fingerprint(pixels),
        },
        split,
        [*train.notes, *test.notes, *evaluated(split, others)],
    )


def require_images(cls_num_list: Sequence[int], why: str) -> None:
    """Refuse a class without images where ``why`` (a flag and its value) divides by its count."""
    empty = [str(c) for c, n in enumerate(cls_num_list) if n == 0]
    if empty:
        raise UsageError(
            f"{why} divides by the class counts, and the imbalance leaves no image of class "
            f"{', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}; use a milder imbalance"
        )


def make_loaders(
    data: LongTailed,
    *,
    loader: str,
    batch_size: int,
    test_batch_size: int,
    workers: int,
    seed: int,
    process: Process,
    device_transform: Callable[[torch.Tensor, torch.Generator], object] = batch.cifar_train,
    image_recipe: Callable[[], Callable | Sequence[Callable]] | None = None,
    test_device_transform: Callable[[torch.Tensor], torch.Tensor] = batch.cifar_eval,
    test_image_recipe: Callable[[], Callable] | None = None,
    order: Order | None = None,
    drop_last: bool = False,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[DeviceLoader | WorkersLoader, DeviceLoader | WorkersLoader]:
    """Training and test loader, of batches ``(images or views, target, index)``.

    Args:
        loader: ``device`` or ``workers``.
        device_transform, image_recipe: training augmentation for the one, and what makes that for
            the other (default: crop, flip and normalise).
        test_device_transform, test_image_recipe: the same for the test images, without a
            generator (default: normalise).
        order: which samples an epoch holds (default: each once, shuffled).
        memory_format: of the images that the loaders yield.
    """
    shared = {"seed": seed, "process": process, "memory_format": memory_format}
    train = {"batch_size": batch_size, "order": order, "drop_last": drop_last, **shared}
    test = {"batch_size": test_batch_size, "train": False, **shared}
    if loader == "device":
        return (
            DeviceLoader(
                data.train.images, data.train.targets, transform=device_transform, **train
            ),
            DeviceLoader(
                data.test.images,
                data.test.targets,
                transform=lambda images, _: test_device_transform(images),
                **test,
            ),
        )
    if image_recipe is None:
        image_recipe = partial(augment.recipes.cifar_train, size=data.train.images.shape[1])
    if test_image_recipe is None:
        test_image_recipe = augment.recipes.cifar_eval
    return (
        WorkersLoader(
            ArrayDataset(data.train.images, data.train.targets, image_recipe()),
            workers=workers,
            **train,
        ),
        WorkersLoader(
            ArrayDataset(data.test.images, data.test.targets, test_image_recipe()),
            workers=workers,
            **test,
        ),
    )
