"""Training views of GML, and its long-tailed CIFAR."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from common.training import speed
from common.training.errors import UsageError
from common.training.launch import Process
from datasets.augment import described
from datasets.data import Data, Images
from datasets.loaders import Loader
from datasets.long_tail import (
    Augmentation,
    load_long_tailed,
    make_loaders,
    require_images,
)
from datasets.validation import HELD_OUT, require_part, stratified_part
from dbm_loss import augment
from dbm_loss.augment import batch
from dbm_loss.GML.engine import num_views

POLICY = {"aug_type": "autoaug_cifar", "cutout": True}


def cifar_views(count: int, size: int) -> list[Callable]:
    """``count`` views of one recipe: crop of ``size``, flip, AutoAugment for CIFAR-10, Cutout."""
    return [augment.recipes.view_a(size=size, **POLICY) for _ in range(count)]


def cifar_batch_views(count: int) -> Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]:
    """The same for a batch of uint8 images (B, 3, H, W) on the training device."""
    view = partial(batch.view_a, **POLICY)
    return lambda images, generator: tuple(view(images, generator) for _ in range(count))


def load_cifar(args: Namespace) -> Data:
    """The long-tailed data that the flags ask for, or generated images."""
    if not args.fake_data:
        data = load_long_tailed(
            args.dataset,
            args.data,
            imb_type=args.imb_type,
            imb_factor=args.imb_factor,
            image_size=args.image_size,
            num_classes=args.num_classes,
            val_fraction=args.val_fraction,
        )
        require_images(data.cls_num_list, "the loss")
        return data
    rng, size = np.random.default_rng(0), args.image_size
    sets = []
    for count in (args.fake_data, max(1, args.fake_data // 4)):
        pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        sets.append(Images(pixels, np.arange(count) % args.num_classes))
    (train, test), val = sets, None
    if args.val_fraction:
        part = stratified_part(train.targets, args.val_fraction)
        require_part(part, args.val_fraction)
        val = Images(train.images[part], train.targets[part])
        train = Images(np.delete(train.images, part, 0), np.delete(train.targets, part))
    # At least 1 each: the loss divides by the counts.
    counts = np.maximum(np.bincount(train.targets, minlength=args.num_classes), 1)
    return Data(
        train,
        test,
        [str(c) for c in range(args.num_classes)],
        counts.tolist(),
        {"dataset": "fake"},
        chosen_on="test" if val is None else HELD_OUT,
        val=val,
        name="generated images",
    )


def train_batch_size(args: Namespace, num_images: int, machines: int = 1) -> int:
    """Batch over all processes; generated data that is less than one batch makes a smaller one, and
    so does what is only there to be evaluated.

    Raises:
        UsageError: the last batch is dropped if it is not full, and here it is the only one; or the
            queue is shorter than a batch.
    """
    size = args.batch_size * machines
    if args.fake_data or args.evaluate:
        size = min(size, num_images)
    if args.evaluate:
        return size
    if num_views(args) == 3 and args.base_k == 0 and args.moco_k < size:
        raise UsageError(f"--moco-k {args.moco_k}: the queue has to hold a batch, {size} or more")
    if num_images >= size:
        return size
    raise UsageError(
        f"--batch-size {args.batch_size}: the training set has only {num_images} images, and a "
        "batch that is not full is dropped; lower it"
    )


def cifar_loaders(
    args: Namespace, data: Data, *, process: Process, **feed: object
) -> tuple[Loader, Loader, Loader]:
    """Training loader, which drops a last batch that is not full, validation and test loader.

    ``feed``: seed and memory format.
    """
    views, side = num_views(args), data.train.images.shape[1]
    return make_loaders(
        data,
        Augmentation(cifar_batch_views(views), partial(cifar_views, views, side)),
        loader=args.loader,
        batch_size=train_batch_size(args, len(data.train.targets)),
        test_batch_size=speed.evaluation_batch(args.batch_size, process.device, side),
        workers=args.workers,
        process=process,
        drop_last=True,
        **feed,
    )


def cifar_transform(args: Namespace, data: Data) -> dict[str, object]:
    """Of a test image, as plain data."""
    return described.cifar(data.test.images.shape[1])
