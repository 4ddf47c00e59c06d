"""Per-image training and evaluation transforms, one function per recipe.

Each function returns a ``torchvision.transforms.Compose`` from a PIL RGB image to a normalised
float32 tensor (3, h, w). The steps, their order and therefore the order of their random draws are
those of the original programs; they draw from the global generators of torch, ``random`` and numpy.
``datasets.augment.batch`` holds the same recipes for a whole batch on a device.
"""

import math
from collections.abc import Mapping

from torchvision import transforms as T

from datasets.augment.colours import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Triple

MAX_SIDE = 10_000  # pixels of an image that is described


def cifar_train(*, size: int = 32, mean: Triple = CIFAR_MEAN, std: Triple = CIFAR_STD) -> T.Compose:
    """Random crop of ``size`` after zero padding by 4, flip, normalise: the CIFAR baseline."""
    return T.Compose(
        [
            T.RandomCrop(size, padding=4),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def cifar_eval(*, mean: Triple = CIFAR_MEAN, std: Triple = CIFAR_STD) -> T.Compose:
    """Normalise only."""
    return T.Compose([T.ToTensor(), T.Normalize(mean, std)])


def imagenet_train(
    *,
    size: int = 224,
    jitter: float = 0.0,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> T.Compose:
    """Random resized crop, flip, optional colour jitter (brightness = contrast = saturation)."""
    colour = [T.ColorJitter(jitter, jitter, jitter)] if jitter else []
    return T.Compose(
        [
            T.RandomResizedCrop(size),
            T.RandomHorizontalFlip(),
            *colour,
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def imagenet_eval(
    *,
    resize: int = 256,
    size: int = 224,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> T.Compose:
    """Shorter side to ``resize`` (bilinear), centre crop of ``size``, normalise."""
    return T.Compose([T.Resize(resize), T.CenterCrop(size), T.ToTensor(), T.Normalize(mean, std)])


def from_description(description: Mapping[str, object]) -> T.Compose:
    """The evaluation recipe that ``datasets.augment.described`` tells of.

    Raises:
        ValueError: it is told otherwise; names the entry.
    """
    kinds = {"resize": T.Resize, "crop": T.CenterCrop}
    steps, mean, std = (description.get(key) for key in ("steps", "mean", "std"))
    if not isinstance(steps, list) or not steps:
        raise ValueError(f"'steps' is {steps!r}, not a list of resizes and crops")
    for step in steps:
        well_told = isinstance(step, list) and len(step) == 2 and step[0] in [*kinds]
        if not (well_told and _is_size(step[1])):
            raise ValueError(f"'steps' has {step!r}, expected such as ['resize', 256]")
    if steps[-1][0] == "resize" and isinstance(steps[-1][1], int):
        raise ValueError(f"'steps' ends with {steps[-1]}, which leaves images of different shapes")
    for key, values in (("mean", mean), ("std", std)):
        if not _are_three_numbers(values):
            raise ValueError(f"{key!r} is {values!r}, not three finite numbers")
    if min(std) <= 0:
        raise ValueError(f"'std' is {std!r}, not above 0")
    made = [kinds[kind](size) for kind, size in steps]
    return T.Compose([*made, T.ToTensor(), T.Normalize(mean, std)])


def _is_size(size: object) -> bool:
    """A number of pixels, or height and width."""
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    return all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides)


def _are_three_numbers(values: object) -> bool:
    if not isinstance(values, list) or len(values) != 3:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
