"""The views of ``dbm_loss.augment.recipes`` for a whole batch of device-resident images.

As in ``datasets.augment.batch``, ``generator`` is always a **CPU** ``torch.Generator``: a plan
known on the host decides which samples an operation touches; the device is never synchronised.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.augment.batch import crop_flip, normalize, resized_crop_flip, to_device
from datasets.augment.batch_geometry import draw_coin
from datasets.augment.colours import CIFAR_MEAN, CIFAR_STD, Triple
from dbm_loss.augment import batch_color as color
from dbm_loss.augment import batch_geometry as geometry
from dbm_loss.augment.policies import (
    AUTO_AUGMENT_MAGNITUDES,
    AUTO_AUGMENT_NAMES,
    ENHANCEMENTS,
    GEOMETRIC,
    policy_table,
)

BatchOp = Callable[[Tensor, Tensor], Tensor]  # (uint8 images, magnitude per sample) -> uint8 images

AUTO_AUGMENT_OPS: dict[str, BatchOp] = {
    "shearX": geometry.shear_x,
    "shearY": geometry.shear_y,
    "translateX": geometry.translate_x,
    "translateY": geometry.translate_y,
    "rotate": geometry.rotate,
    "color": color.color,
    "contrast": color.contrast,
    "sharpness": color.sharpness,
    "brightness": color.brightness,
    "posterize": color.posterize,
    "solarize": color.solarize,
    "autocontrast": color.auto_contrast,
    "equalize": color.equalize,
    "invert": color.invert,
}
CONTRASTIVE_OPS: tuple[BatchOp, ...] = (
    color.brightness,
    color.contrast,
    color.color,
    color.hue,
    color.grayscale,
    color.gaussian_blur,
)


def apply_plan(
    images: Tensor, choice: Tensor, magnitude: Tensor, operations: Sequence[BatchOp]
) -> Tensor:
    """Apply ``operations[choice[k, b]]`` at ``magnitude[k, b]`` to sample b, for k = 0, 1, ...

    ``choice`` int64 and ``magnitude`` float64 are CPU tensors (steps, B); a choice of -1 leaves the
    sample alone. Each step sorts the samples so that those with the same operation are neighbours.
    """
    order = choice.argsort(dim=1, stable=True)
    identity = torch.arange(images.shape[0])[None]
    # Where the sample that comes to stand at i stands in the arrangement of the step before.
    moves = torch.cat((identity, order.argsort(dim=1))).gather(1, torch.cat((order, identity)))
    sizes = F.one_hot(choice + 1, len(operations) + 1).sum(dim=1).tolist()
    moves = to_device(moves, images.device)
    magnitude = to_device(magnitude.gather(1, order), images.device)
    for step, (untouched, *groups) in enumerate(sizes):
        images = images.index_select(0, moves[step])
        end = untouched
        for operation, size in zip(operations, groups, strict=True):
            if size:
                group = slice(end, end := end + size)
                images[group] = operation(images[group], magnitude[step, group])
    return images.index_select(0, moves[-1])


@functools.cache
def _sub_policies(policy: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Operation, probability, centre and swing of the magnitude; each (2 steps, 25)."""
    names = list(AUTO_AUGMENT_OPS)
    rows = []
    for probability, name, index in (
        entry[3 * step : 3 * step + 3] for step in range(2) for entry in policy_table(policy)
    ):
        value = float(AUTO_AUGMENT_MAGNITUDES[name][index])
        centre, swing = value, 0.0
        if name in GEOMETRIC:
            centre, swing = 0.0, value
        elif name in ENHANCEMENTS:
            centre, swing = 1.0, value
        rows.append((names.index(name), probability, centre, swing))
    columns = torch.tensor(rows, dtype=torch.float64).view(2, -1, 4)
    operation, probability, centre, swing = columns.unbind(dim=2)
    return operation.long(), probability, centre, swing


def draw_auto_augment(
    count: int, generator: torch.Generator, policy: str = "autoaug_cifar"
) -> tuple[Tensor, Tensor]:
    """``choice`` and ``magnitude`` (2, B) for :func:`apply_plan` with ``AUTO_AUGMENT_OPS``."""
    operation, probability, centre, swing = _sub_policies(policy)
    drawn = torch.randint(0, operation.shape[1], (count,), generator=generator)
    applied = torch.rand(2, count, generator=generator, dtype=torch.float64) < probability[:, drawn]
    sign = torch.randint(0, 2, (2, count), generator=generator) * 2 - 1
    choice = operation[:, drawn].masked_fill_(~applied, -1)
    return choice, centre[:, drawn] + sign * swing[:, drawn]


def auto_augment(
    images: Tensor, generator: torch.Generator, policy: str = "autoaug_cifar"
) -> Tensor:
    """AutoAugment of uint8 images by one of ``policies.AUTO_AUGMENT_NAMES``.

    Raises:
        ValueError: another policy; those run image by image only.
    """
    if policy not in AUTO_AUGMENT_NAMES:
        raise ValueError(
            f"aug_type {policy!r} does not run on whole batches: choose from "
            f"{', '.join(AUTO_AUGMENT_NAMES)}, none, or load images in workers"
        )
    choice, magnitude = draw_auto_augment(images.shape[0], generator, policy)
    return apply_plan(images, choice, magnitude, tuple(AUTO_AUGMENT_OPS.values()))


def draw_color_jitter(
    count: int,
    generator: torch.Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> tuple[Tensor, Tensor]:
    """``choice`` and ``magnitude`` (4, B) for the first four of ``CONTRASTIVE_OPS``.

    As torchvision's ``ColorJitter``: factors uniform in 1 ± strength, the hue in ± ``hue``; a
    random order for each sample.
    """
    strength = torch.tensor([brightness, contrast, saturation, hue], dtype=torch.float64)
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    uniform = torch.rand(4, count, generator=generator, dtype=torch.float64) * 2 - 1
    magnitude = centre[:, None] + strength[:, None] * uniform
    order = torch.rand(4, count, generator=generator).argsort(dim=0)
    return order, magnitude.gather(0, order)


def draw_contrastive(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``choice`` and ``magnitude`` (6, B) for ``CONTRASTIVE_OPS``: jitter, greyscale, blur."""
    jitter, factors = draw_color_jitter(count, generator, 0.4, 0.4, 0.4, 0.1)
    jitter = jitter.masked_fill_(~draw_coin(count, 0.8, generator), -1)
    grey = torch.where(draw_coin(count, 0.2, generator), 4, -1)
    blur = torch.where(draw_coin(count, 0.5, generator), 5, -1)
    sigma = torch.rand(count, generator=generator, dtype=torch.float64) * 1.9 + 0.1
    return torch.cat((jitter, grey[None], blur[None])), torch.cat((factors, sigma.expand(2, -1)))


def view_a(
    images: Tensor,
    generator: torch.Generator,
    *,
    aug_type: str = "none",
    cutout: bool = False,
    mean: Triple = CIFAR_MEAN,
    std: Triple = CIFAR_STD,
) -> Tensor:
    """Classification view: crop, flip, AutoAugment if ``aug_type`` names it, optionally Cutout.

    Raises:
        ValueError: ``aug_type`` is a policy that runs image by image only.
    """
    images = crop_flip(images, generator)
    if aug_type != "none":
        images = auto_augment(images, generator, aug_type)
    if cutout:
        centre = geometry.draw_cutout(images.shape[0], tuple(images.shape[2:]), generator)
        images = geometry.cutout(images, *to_device(torch.stack(centre), images.device))
    return normalize(images, mean, std)


def view_s(
    images: Tensor,
    generator: torch.Generator,
    *,
    mean: Triple = CIFAR_MEAN,
    std: Triple = CIFAR_STD,
) -> Tensor:
    """Contrastive view (SimCLR): resized crop, flip, jitter, greyscale, blur; size unchanged."""
    images = resized_crop_flip(images, generator, images.shape[3], (0.2, 1.0))
    choice, magnitude = draw_contrastive(images.shape[0], generator)
    return normalize(apply_plan(images, choice, magnitude, CONTRASTIVE_OPS), mean, std)
