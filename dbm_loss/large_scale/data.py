"""ImageNet-LT, iNaturalist 2018, image folders and generated images, with the recipes of BCL.

Workers hand over bytes; normalisation is done for the batch on the training device. That is a
quarter of the traffic between processes, and the same numbers to the last bit.
"""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T

from common.training.errors import UsageError
from common.training.launch import Process
from common.training.seeds import derive
from datasets.assembly import evaluation_loaders, load_folder, load_lists
from datasets.augment import described
from datasets.augment.batch import normalize
from datasets.augment.colours import IMAGENET_MEAN, IMAGENET_STD, INAT_MEAN, INAT_STD
from datasets.augment.recipes import imagenet_eval
from datasets.data import Data
from datasets.images import read_rgb
from datasets.listfile import ListFile, find_list
from datasets.loaders import WorkersLoader, drawn_by_weight
from datasets.validation import HELD_OUT, hold_out
from dbm_loss.augment import recipes
from dbm_loss.flags import LIST_FLAGS

# Training list and the list that the original evaluates on, in its config/ folder.
LISTS = {
    "imgnet": ("ImageNet", "ImageNet_LT_train.txt", "ImageNet_LT_test.txt"),
    "inat": ("iNaturalist", "iNaturalist18_train.txt", "iNaturalist18_val.txt"),
}
MEAN_STD = {
    "imgnet": (IMAGENET_MEAN, IMAGENET_STD),
    "inat": (INAT_MEAN, INAT_STD),
    "imagefolder": (IMAGENET_MEAN, IMAGENET_STD),
}
HERE = Path(__file__).parent
FAKE_SIZE = (375, 500)  # the usual photograph of ImageNet

View = Callable[[Image.Image], torch.Tensor]


class Views:
    """One image, several pipelines: a list of what each makes of it, in order."""

    def __init__(self, pipelines: Sequence[View]) -> None:
        self.pipelines = list(pipelines)

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        """PIL image -> one tensor of each pipeline."""
        return [pipeline(image) for pipeline in self.pipelines]


def train_recipes(loss_fn: str) -> list[T.Compose]:
    """Pipelines of a training image: the view to classify, for bcl also two views to contrast."""
    contrasted = [recipes.sim(), recipes.sim()] if loss_fn == "bcl" else []
    return [recipes.randcls(), *contrasted]


def to_bytes(recipe: T.Compose) -> T.Compose:
    """A recipe without its ending, ToTensor and Normalize: uint8 (3, h, w)."""
    return T.Compose([*recipe.transforms[:-2], T.PILToTensor()])


class FakeImages(Dataset):
    """JPEG files in memory, as dear to decode and augment as photographs; labels go round.

    A pool of at most 64 files, some 100 kB each, stands for all ``num_images``.
    """

    def __init__(self, num_images: int, num_classes: int, transform: Callable):
        self.targets = np.arange(num_images) % num_classes
        self.transform = transform
        self._jpegs = [fake_jpeg(seed) for seed in range(min(num_images, 64))]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple:
        image = read_rgb(io.BytesIO(self._jpegs[index % len(self._jpegs)]))
        return self.transform(image), int(self.targets[index])


def fake_jpeg(seed: int) -> bytes:
    """Patches of colour under noise."""
    rng = np.random.default_rng(seed)
    height, width = FAKE_SIZE
    patches = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    smooth = np.asarray(patches.resize((width, height), Image.Resampling.BILINEAR))
    pixels = np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=90)
    return file.getvalue()


@dataclass(frozen=True)
class Source:
    """Where the data are; each is the flag of that name."""

    dataset: str
    root: str | Path | None = None
    list_dir: str | Path | None = None
    eval_list: str | Path | None = None
    classes: str | None = None
    fake_data: int = 0
    num_classes: int | None = None
    val_fraction: float = 0.0

    @classmethod
    def of(cls, args: Namespace) -> Source:
        """What the flags of the program say."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})


def load_data(source: Source, views: Sequence[T.Compose]) -> Data:
    """Open what ``source`` says; no pixel is read.

    Args:
        views: recipes of a training image.
    Raises:
        UsageError: lists, images or classes missing; not ``--num_classes`` of them.
    """
    train_views = Views([to_bytes(view) for view in views])
    test_view = to_bytes(imagenet_eval())
    if source.fake_data:
        return _fake(source, train_views, test_view)
    if source.dataset == "imagefolder":
        for name in LIST_FLAGS:
            if (value := getattr(source, name)) is not None:
                raise UsageError(
                    f"--{name} {value}: for list files; an image folder's classes are its "
                    "folders, whose order a classes.txt in it gives"
                )
        data = load_folder(source.root, train_views, test_view, source.val_fraction)
    else:
        data = _lists(source, train_views, test_view)
    if source.num_classes not in (None, len(data.classes)):
        raise UsageError(
            f"--num_classes {source.num_classes}: {data.facts['train_set']} has "
            f"{len(data.classes)} classes; give that number"
        )
    return data


def _lists(source: Source, train_views: Views, test_view: View) -> Data:
    _, train_name, test_name = LISTS[source.dataset]
    train = ListFile(_find_list(source, train_name), source.root, train_views, names=source.classes)
    test_list = source.eval_list or _find_list(source, test_name)
    test = ListFile(test_list, source.root, test_view, num_classes=train.num_classes)
    return load_lists(train, test, val_fraction=source.val_fraction)


def _find_list(source: Source, name: str) -> Path:
    """In ``--list_dir`` if given; else in the root, or in a config folder as originally."""
    config = Path("config") / LISTS[source.dataset][0]
    folders = [source.root, Path(source.root) / config, config, HERE / config]
    if source.list_dir is not None:
        folders = [source.list_dir]
    own = "--num_classes C" if source.dataset == "imgnet" else ""
    return find_list(name, folders, "--list_dir DIR", own)


def _fake(source: Source, train_views: Views, test_view: View) -> Data:
    num_images, num_classes = source.fake_data, source.num_classes
    train = FakeImages(num_images, num_classes, train_views)
    train, val = hold_out(train, source.val_fraction, test_view)
    test = FakeImages(max(1, num_images // 4), num_classes, test_view)
    # At least 1 each: the losses divide by the counts.
    counts = np.maximum(np.bincount(train.targets, minlength=num_classes), 1).tolist()
    return Data(
        train,
        test,
        [str(c) for c in range(num_classes)],
        counts,
        {"train_set": "fake", "test_set": "fake"},
        chosen_on="test" if val is None else HELD_OUT,
        notes=[f"note: --fake_data {num_images}: generated images, the accuracy means nothing"],
        val=val,
        name="generated images",
    )


def balanced_weights(
    targets: Sequence[int], cls_num_list: Sequence[int], alpha: float = 1.0
) -> np.ndarray:
    """Weight of each image for CMO's draws, n^(−alpha) of its class, scaled to sum C over classes.

    Returns:
        float64 array (N,). With ``alpha`` 1, the images of every class are drawn equally often.
    """
    weights = np.asarray(cls_num_list, dtype=np.float64) ** -alpha
    return (weights / weights.sum() * len(weights))[np.asarray(targets)]


def make_loaders(
    data: Data,
    args: Namespace,
    *,
    seed: int,
    process: Process,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[WorkersLoader, WorkersLoader, WorkersLoader, WorkersLoader | None]:
    """Training, validation and test loader, and with ``--cmo`` the class-balanced one.

    Without validation images the second is the third.
    Batches are ``(images, target, index)`` with all views of the images below each other.
    """
    shared = {
        "workers": args.workers, "process": process, "memory_format": memory_format,
        "finish": stacked(args.dataset),
    }  # fmt: skip
    test_batch_size = -(-args.batch_size // process.world_size)  # as large as those of training
    balanced = None
    if args.cmo:
        weights = balanced_weights(data.train.targets, data.cls_num_list, args.weighted_alpha)
        order = drawn_by_weight(weights, len(data.train))
        its_seed = derive(seed, "balanced")
        balanced = WorkersLoader(
            data.train, args.batch_size, seed=its_seed, order=order, quiet=True, **shared
        )
    train_loader = WorkersLoader(data.train, args.batch_size, seed=seed, **shared)
    evaluation = evaluation_loaders(data, test_batch_size, seed=seed, **shared)
    return train_loader, *evaluation, balanced


def test_transform(args: Namespace) -> dict[str, object]:
    """Of a test image, as plain data."""
    mean, std = MEAN_STD[args.dataset]
    return described.imagenet(mean=mean, std=std)


def stacked(dataset: str) -> Callable[[Tensor | list[Tensor]], Tensor]:
    """What is left to do on the device: all views below each other, (V · B, 3, h, w), normalised.

    ``dataset`` chooses mean and standard deviation.
    """
    mean, std = MEAN_STD[dataset]

    def finish(views: Tensor | list[Tensor]) -> Tensor:
        images = views if isinstance(views, Tensor) else torch.cat(views)
        return normalize(images, mean, std)

    return finish
