"""ImageNet-LT, iNaturalist 2018 and image folders with the training views of GML."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor
from torchvision import transforms as T

from common.training.launch import Process
from datasets.assembly import evaluation_loaders
from datasets.augment import described
from datasets.augment.batch import normalize
from datasets.data import Data
from datasets.loaders import WorkersLoader
from dbm_loss.augment import recipes
from dbm_loss.GML.data import train_batch_size
from dbm_loss.GML.engine import num_views
from dbm_loss.large_scale import data as large_scale

HERE = Path(__file__).parent
LARGE_SCALE_NAMES = {"imagenet": "imgnet"}  # what the other half calls the data sets
LIST_FOLDERS = {"imagenet": "ImageNet_LT", "inat": "iNaturalist18"}  # in imagenet_inat/data/


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


def load_imagenet(args: Namespace) -> Data:
    """ImageNet-LT, iNaturalist, an image folder or generated images; no pixel is read yet.

    The lists are looked for in ``--list_dir``, else in ``imagenet_inat/data/`` as in the original,
    else in ``--data``.
    """
    root, lists = Path(args.data).expanduser(), args.list_dir
    if lists is None and args.dataset in LIST_FOLDERS:
        shipped = Path("imagenet_inat") / "data" / LIST_FOLDERS[args.dataset]
        found = [folder for folder in (shipped, HERE / shipped) if folder.is_dir()]
        lists = found[0] if found else root
    source = large_scale.Source(
        dataset=_large_scale_name(args),
        root=root,
        list_dir=lists,
        classes=args.classes,
        fake_data=args.fake_data,
        num_classes=args.num_classes,
        val_fraction=args.val_fraction,
    )
    return large_scale.load_data(source, imagenet_views(args, num_views(args)))


def _large_scale_name(args: Namespace) -> str:
    return LARGE_SCALE_NAMES.get(args.dataset, args.dataset)


def normalized(args: Namespace) -> Callable[[Tensor | list[Tensor]], Tensor | list[Tensor]]:
    """What is left to do on the device for bytes of ImageNet images, or of each view of them."""
    mean, std = large_scale.MEAN_STD[_large_scale_name(args)]

    def finish(views: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if isinstance(views, Tensor):
            return normalize(views, mean, std)
        return [normalize(view, mean, std) for view in views]

    return finish


def imagenet_loaders(
    args: Namespace, data: Data, *, process: Process, **feed: object
) -> tuple[WorkersLoader, WorkersLoader, WorkersLoader]:
    """Training loader, which drops a last batch that is not full, validation and test loader.

    ``--batch_size`` and ``--workers`` are those of a machine. ``feed``: seed and memory format.
    """
    local = process.local_world_size
    batch_size = train_batch_size(args, len(data.train), process.world_size // local)
    share = max(batch_size // process.world_size, 1)
    feed |= {"process": process, "workers": -(-args.workers // local), "finish": normalized(args)}
    train_loader = WorkersLoader(data.train, share * process.world_size, drop_last=True, **feed)
    return train_loader, *evaluation_loaders(data, share, **feed)


def imagenet_transform(args: Namespace, data: Data) -> dict[str, object]:
    """Of a test image, as plain data."""
    mean, std = large_scale.MEAN_STD[_large_scale_name(args)]
    return described.imagenet(mean=mean, std=std)
