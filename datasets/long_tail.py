"""Long-tailed subsets of image sets that fit in memory, and the loaders that feed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.imbalance import choose_subset, class_counts
from common.training.errors import UsageError
from common.training.report import fingerprint
from datasets import augment
from datasets.augment import batch
from datasets.classes import some
from datasets.data import Data, Images
from datasets.loaders import DeviceLoader, Loader, Order, WorkersLoader
from datasets.memory import ArrayDataset
from datasets.sources import Source, held_out, open_source, place
from datasets.validation import (
    HELD_OUT,
    evaluation_facts,
    evaluation_notes,
    part_name,
    refuse_second,
    require_part,
    stratified_part,
)

OWN = ("imagefolder", "npz")  # what the user brings


def load_long_tailed(
    dataset: str,
    root: str,
    *,
    imb_type: str,
    imb_factor: float,
    rand_number: int = 0,
    image_size: int = 32,
    num_classes: int | None = None,
    val_fraction: float = 0.0,
    whole: str = "--imb_type none",
    check_number: Callable[[int, str], None] | None = None,
) -> Data:
    """Load a data set and keep ``class_counts(…, imb_type, imb_factor)`` training images per class.

    Args:
        dataset, root, image_size: see ``open_source``.
        imb_type: ``exp``, ``step``, or ``none`` for all images as they are.
        num_classes: what the user said by ``--num_classes``; contradicting the data is an error.
        val_fraction: share of the kept images of each class that is for validation.
        whole: what the user says for all images as they are, for messages.
        check_number: ``check_number(C, place)`` refuses data of a number of classes that the user
            contradicted otherwise.
    Raises:
        UsageError: data missing; too few images in a class for the asked imbalance; an imbalance
            that leaves no image of a class of one's own; or a ``val_fraction`` of data that have
            images for validation.
    """
    train = open_source(dataset, root, "train", image_size=image_size)
    split, *others = held_out(dataset, root)
    test = open_source(dataset, root, split, image_size=image_size)
    sources, val_set, chosen_on = [train, test], None, split
    if others:
        chosen_on = others[0]
        sources.append(open_source(dataset, root, others[0], image_size=image_size))
        val_set = place(dataset, root, others[0])
        refuse_second(val_fraction, val_set)
    found = len(train.classes)
    if num_classes is not None and num_classes != found:
        raise UsageError(
            f"--num_classes {num_classes}: {dataset} in {root} has {found} classes; leave it out"
        )
    if check_number is not None:
        check_number(found, f"{dataset} in {root}")
    indices = choose_images(train, imb_type, imb_factor, rand_number, whole)
    counts = np.bincount(train.targets[indices], minlength=found).tolist()
    notes = [note for source in sources for note in source.notes]
    there = np.bincount(train.targets, minlength=found)
    if _cut_of_own(train, imb_type) and there.min() < there.max():
        notes.append(
            f"note: the classes have {there.max()} to {there.min()} training images, of which "
            f"imbalance {imb_type} {imb_factor:g} takes {max(counts)} to {min(counts)}; {whole} "
            "takes all"
        )
    val = _all_images(sources[2]) if others else None
    if val_fraction:
        part = stratified_part(train.targets[indices], val_fraction, rand_number)
        require_part(part, val_fraction)
        val = Images(train.pixels(indices[part]), train.targets[indices[part]])
        val_set, chosen_on = part_name(val_fraction), HELD_OUT
        indices = np.delete(indices, part)
        counts = np.bincount(train.targets[indices], minlength=found).tolist()
    pixels, targets, test_images = train.pixels(indices), train.targets[indices], _all_images(test)
    facts = evaluation_facts(
        place(dataset, root, split), len(test.targets), val_set, val and len(val.targets)
    )
    if val is not None:
        facts["val_pixels_sha256"] = fingerprint(val.images)
        facts["val_labels_sha256"] = fingerprint(val.targets.astype("<i8"))
    return Data(
        Images(pixels, targets),
        test_images,
        train.classes,
        counts,
        {
            "dataset": dataset,
            "subset_sha256": fingerprint(indices.astype("<i8")),
            "pixels_sha256": fingerprint(pixels),
            "labels_sha256": fingerprint(targets.astype("<i8")),
            "test_pixels_sha256": fingerprint(test_images.images),
            "test_labels_sha256": fingerprint(test_images.targets.astype("<i8")),
            **facts,
        },
        split,
        chosen_on,
        [*notes, *evaluation_notes(facts, split)],
        val,
        _name(dataset, root, imb_type, imb_factor),
        dataset in OWN,
    )


def choose_images(
    train: Source, imb_type: str, imb_factor: float, rand_number: int, whole: str
) -> np.ndarray:
    """Positions of the training images to keep, class by class.

    Args:
        imb_type, imb_factor, rand_number, whole: see ``load_long_tailed``.
    Raises:
        UsageError: too few images in a class, or none of a class of one's own is left.
    """
    found = len(train.classes)
    try:
        if imb_type == "none":
            counts = np.bincount(train.targets, minlength=found).tolist()
        else:
            counts = class_counts(len(train.targets), found, imb_type, imb_factor)
        indices = choose_subset(train.targets, counts, rand_number)
    except ValueError as error:
        raise UsageError(
            f"imbalance {imb_type} {imb_factor} on {train.name}: {error}; "
            f"it is cut out of a balanced set; with {whole} the images are taken as they are"
        ) from None
    empty = [train.classes[c] for c, n in enumerate(counts) if n == 0]
    if empty and _cut_of_own(train, imb_type):
        raise UsageError(
            f"imbalance {imb_type} {imb_factor:g} on {train.name}: no image of {some(empty)} is "
            f"left; use a milder one, or {whole}, which takes the images as they are"
        )
    return indices


def _cut_of_own(train: Source, imb_type: str) -> bool:
    """Whether an imbalance is cut out of images of one's own."""
    return train.name in OWN and imb_type != "none"


def _all_images(source: Source) -> Images:
    return Images(source.pixels(np.arange(len(source.targets))), source.targets, source.files)


def _name(dataset: str, root: str, imb_type: str, imb_factor: float) -> str:
    if dataset == "imagefolder":
        dataset = Path(root).resolve().name
    elif dataset == "npz":
        dataset = Path(root).stem
    kinds = {"exp": "long tail", "step": "step imbalance"}
    return f"{dataset}, {kinds[imb_type]} {1 / imb_factor:g}" if imb_type in kinds else dataset


def require_images(cls_num_list: Sequence[int], why: str) -> None:
    """Refuse a class without images where ``why`` (a flag and its value) divides by its count."""
    empty = [str(c) for c, n in enumerate(cls_num_list) if n == 0]
    if empty:
        raise UsageError(
            f"{why} divides by the class counts, and the imbalance leaves no image of class "
            f"{some(empty)}; use a milder imbalance"
        )


@dataclass(frozen=True)
class Augmentation:
    """What happens to images on their way to the network, for either loader; default: CIFAR's.

    Attributes:
        train_batch: of a training batch on the device, with a generator (default: crop, flip and
            normalise). train_image: what makes the transform of one image, or of its views, for
            the loader of workers (default: the same, for the images' size).
        eval_batch, eval_image: of the images to evaluate, without a generator (default: normalise).
    """

    train_batch: Callable[[torch.Tensor, torch.Generator], object] = batch.cifar_train
    train_image: Callable[[], Callable | Sequence[Callable]] | None = None
    eval_batch: Callable[[torch.Tensor], torch.Tensor] = batch.cifar_eval
    eval_image: Callable[[], Callable] | None = None


def make_train_loader(
    data: Data, augmentation: Augmentation, *, loader: str, workers: int, **options: object
) -> Loader:
    """Loader of the training images, of batches ``(images or views, target, index)``.

    Args:
        loader: ``device`` or ``workers``. options: of either, see ``DeviceLoader``.
    """
    images, targets = data.train.images, data.train.targets
    if loader == "device":
        return DeviceLoader(images, targets, transform=augmentation.train_batch, **options)
    size = images.shape[1]
    recipe = augmentation.train_image or partial(augment.recipes.cifar_train, size=size)
    return WorkersLoader(ArrayDataset(images, targets, recipe()), workers=workers, **options)


def make_loaders(
    data: Data,
    augmentation: Augmentation,
    *,
    loader: str,
    batch_size: int,
    test_batch_size: int,
    workers: int,
    order: Order | None = None,
    drop_last: bool = False,
    **shared: object,
) -> tuple[Loader, Loader, Loader]:
    """Training, validation and test loader, of batches ``(images or views, target, index)``.

    Without validation images the second is the third.

    Args:
        loader: ``device`` or ``workers``.
        order: which samples an epoch holds (default: each once, shuffled).
        shared: ``seed``, ``process`` and ``memory_format`` of all three, see ``DeviceLoader``.
    """
    options = {"batch_size": batch_size, "order": order, "drop_last": drop_last, **shared}
    train_loader = make_train_loader(data, augmentation, loader=loader, workers=workers, **options)
    test = {"batch_size": test_batch_size, "train": False, **shared}

    def evaluation(part: Images) -> Loader:
        if loader == "device":
            return DeviceLoader(
                part.images,
                part.targets,
                transform=lambda images, _: augmentation.eval_batch(images),
                **test,
            )
        recipe = augmentation.eval_image or augment.recipes.cifar_eval
        images = ArrayDataset(part.images, part.targets, recipe())
        return WorkersLoader(images, workers=workers, **test)

    test_loader = evaluation(data.test)
    val_loader = test_loader if data.val is None else evaluation(data.val)
    return train_loader, val_loader, test_loader
