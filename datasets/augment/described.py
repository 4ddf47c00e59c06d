"""Evaluation recipes as plain data, for checkpoints; ``recipes.from_description`` makes them again.

Each is {"steps": [["resize", 256], ["crop", 224], …], "mean": […], "std": […]}. A resize to one
number is that of the shorter side, to two that of height and width, both bilinear; a crop takes the
centre.
"""

from __future__ import annotations

from datasets.augment.colours import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Triple


def cifar(side: int) -> dict[str, object]:
    """Of images that were brought to ``side`` x ``side`` pixels when they were read."""
    return _told([["resize", side], ["crop", side]], CIFAR_MEAN, CIFAR_STD)


def imagenet(
    *,
    square: int | None = None,
    resize: int = 256,
    size: int = 224,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> dict[str, object]:
    """Of ``recipes.imagenet_eval``; ``square``: of images that had that size in memory."""
    before = [] if square is None else [["resize", square], ["crop", square]]
    return _told([*before, ["resize", resize], ["crop", size]], mean, std)


def squeezed(side: int, mean: Triple, std: Triple) -> dict[str, object]:
    """Brought to ``side`` x ``side`` whatever their shape was."""
    return _told([["resize", [side, side]]], mean, std)


def _told(steps: list[list], mean: Triple, std: Triple) -> dict[str, object]:
    return {"steps": steps, "mean": [*mean], "std": [*std]}
