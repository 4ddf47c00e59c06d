"""Training views of GML, and the data of its programs ready for the network."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms as T

from common.training.errors import UsageError
from datasets.augment.batch import normalize
from datasets.long_tail import Images, LongTailed, load_long_tailed
from dbm_loss.augment import batch, recipes
from dbm_loss.large_scale import data as large_scale

HERE = Path(__file__).parent
LARGE_SCALE_NAMES = {"imagenet": "imgnet"}  # what the other half calls the data sets
LIST_FOLDERS = {"imagenet": "ImageNet_LT", "inat": "iNaturalist18"}  # in imagenet_inat/data/
POLICY = {"aug_type": "autoaug_cifar", "cutout": True}


def cifar_views(count: int, size: int) -> list[T.Compose]:
    """``count`` views of one recipe: crop of ``size``, flip, AutoAugment for CIFAR-10, Cutout."""
    return [recipes.view_a(size=size, **POLICY) for _ in range(count)]


def cifar_device_views(count: int) -> Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]:
    """The same for a batch of uint8 images (B, 3, H, W) on the training device."""
    view = partial(batch.view_a, **POLICY)
    return lambda images, generator: tuple(view(images, generator) for _ in range(count))


def imagenet_views(args: Namespace, count: int) -> list[T.Compose]:
    """The first ``count`` of the views for classifier, query and key that ``--aug`` says."""
    mean, std = large_scale.MEAN_STD[_large_scale_name(args)]
    randaug = f"rand-n{args.randaug_n}-m{args.randaug_m}-mstd0.5"
    first, other = args.aug.split("_")
    recipe = {
        "randcls": partial(recipes.randcls, randaug=randaug),
        "randclsstack": partial(recipes.randcls_stack, randaug=randaug),
        "sim": recipes.sim_blur,
    }
    return [recipe[name](mean=mean, std=std) for name in (first, other, other)[:count]]


def load_cifar(args: Namespace) -> LongTailed:
    """The long-tailed data that the flags ask for, or generated images."""
    if not args.fake_data:
        return load_long_tailed(
            args.dataset,
            args.data,
            imb_type=args.imb_type,
            imb_factor=args.imb_factor,
            image_size=args.image_size,
            num_classes=args.num_classes,
        )
    rng, size = np.random.default_rng(0), args.image_size
    sets = []
    for count in (args.fake_data, max(1, args.fake_data // 4)):
        pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        sets.append(Images(pixels, np.arange(count) % args.num_classes))
    # Fewer images than classes: the loss shall run all the same.
    counts = np.maximum(np.bincount(sets[0].targets, minlength=args.num_classes), 1)
    names = [str(c) for c in range(args.num_classes)]
    return LongTailed(*sets, names, counts.tolist(), {"dataset": "fake"})


def load_imagenet(args: Namespace, views: int) -> large_scale.LargeScale:
    """ImageNet-LT, iNaturalist, an image folder or generated images; no pixel is read yet.

    The lists are looked for in ``--list_dir``, else in ``imagenet_inat/data/`` as in the original,
    else in ``--data``.
    """
    root, lists = Path(args.data).expanduser(), args.list_dir
    if lists is None and args.dataset in LIST_FOLDERS:
        shipped = Path("imagenet_inat") / "data" / LIST_FOLDERS[args.dataset]
        found = [folder for folder in (shipped, HERE / shipped) if folder.is_dir()]
        lists = found[0] if found else root
    flags = Namespace(
        dataset=_large_scale_name(args),
        root=root,
        list_dir=lists,
        eval_list=None,
        fake_data=args.fake_data,
        num_classes=args.num_classes,
    )
    return large_scale.load_data(flags, imagenet_views(args, views))


def _large_scale_name(args: Namespace) -> str:
    return LARGE_SCALE_NAMES.get(args.dataset, args.dataset)


def train_batch_size(args: Namespace, num_images: int, machines: int = 1) -> int:
    """Batch over all processes; generated data that is less than one batch makes a smaller one.

    Raises:
        UsageError: the last batch is dropped if it is not full, and here it is the only one.
    """
    size = args.batch_size * machines
    if num_images >= size:
        return size
    if args.fake_data:
        return num_images
    raise UsageError(
        f"--batch-size {args.batch_size}: the training set has only {num_images} images, and a "
        "batch that is not full is dropped; lower it"
    )


def normalized(args: Namespace) -> Callable[[Tensor | list[Tensor]], Tensor | list[Tensor]]:
    """What is left to do on the device for bytes of ImageNet images, or of each view of them."""
    mean, std = large_scale.MEAN_STD[_large_scale_name(args)]

    def finish(views: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if isinstance(views, Tensor):
            return normalize(views, mean, std)
        return [normalize(view, mean, std) for view in views]

    return finish
