"""Augmentation policies of one PIL image: AutoAugment, DADA, Fast AutoAugment, RandAugment(2, 14).

Draws come from the global ``random`` generator (rectangles from numpy's), in the order of the
original programs. The tables lie in ``policies.json`` and are read when a policy is built.

AutoAugment here is not torchvision's: the tables are the same, but rotation is never negated, empty
corners are grey, shear is bicubic, translation keeps the fraction of a pixel and solarize starts at
256.
"""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dbm_loss.augment import ops

AUTO_AUGMENT_NAMES = ("autoaug_cifar", "autoaug_svhn", "autoaug_imagenet")
SEARCHED_NAMES = ("dada_cifar", "dada_imagenet", "faa_cifar", "faa_imagenet")
POLICY_NAMES = (*AUTO_AUGMENT_NAMES, *SEARCHED_NAMES, "randaug", "none")

# The ten magnitudes of each AutoAugment operation; numpy's linspace gives the original's last bit.
AUTO_AUGMENT_MAGNITUDES = {
    "shearX": np.linspace(0, 0.3, 10),
    "shearY": np.linspace(0, 0.3, 10),
    "translateX": np.linspace(0, 150 / 331, 10),
    "translateY": np.linspace(0, 150 / 331, 10),
    "rotate": np.linspace(0, 30, 10),
    "color": np.linspace(0, 0.9, 10),
    "contrast": np.linspace(0, 0.9, 10),
    "sharpness": np.linspace(0, 0.9, 10),
    "brightness": np.linspace(0, 0.9, 10),
    "posterize": np.round(np.linspace(8, 4, 10)),
    "solarize": np.linspace(256, 0, 10),
    "autocontrast": np.zeros(10),
    "equalize": np.zeros(10),
    "invert": np.zeros(10),
}
# Operations whose magnitude gets a random sign; the enhancements take 1 + magnitude as factor.
GEOMETRIC = ("shearX", "shearY", "translateX", "translateY")
ENHANCEMENTS = ("color", "contrast", "sharpness", "brightness")

AUTO_AUGMENT_OPS: dict[str, ops.ImageOp] = {
    "shearX": functools.partial(ops.shear_x, resample=ops.BICUBIC, fill=ops.GREY),
    "shearY": functools.partial(ops.shear_y, resample=ops.BICUBIC, fill=ops.GREY),
    "translateX": functools.partial(ops.translate_x_relative, fill=ops.GREY),
    "translateY": functools.partial(ops.translate_y_relative, fill=ops.GREY),
    "rotate": functools.partial(ops.rotate, fill=ops.GREY),
    "color": ops.color,
    "contrast": ops.contrast,
    "sharpness": ops.sharpness,
    "brightness": ops.brightness,
    "posterize": ops.posterize,
    "solarize": ops.solarize,
    "autocontrast": ops.auto_contrast,
    "equalize": ops.equalize,
    "invert": ops.invert,
}

# name: (operation, value at level 0, value at level 1, negated with probability 1/2)
Ranges = dict[str, tuple[ops.ImageOp, float, float, bool]]

SEARCHED_OPS: Ranges = {
    "ShearX": (ops.shear_x, -0.3, 0.3, True),
    "ShearY": (ops.shear_y, -0.3, 0.3, True),
    "TranslateX": (ops.translate_x_relative, -0.45, 0.45, True),
    "TranslateY": (ops.translate_y_relative, -0.45, 0.45, True),
    "Rotate": (ops.rotate, -30, 30, True),
    "AutoContrast": (ops.auto_contrast, 0, 1, False),
    "Invert": (ops.invert, 0, 1, False),
    "Equalize": (ops.equalize, 0, 1, False),
    "Solarize": (ops.solarize, 0, 256, False),
    "Posterize": (ops.posterize, 4, 8, False),
    "Contrast": (ops.contrast, 0.1, 1.9, False),
    "Color": (ops.color, 0.1, 1.9, False),
    "Brightness": (ops.brightness, 0.1, 1.9, False),
    "Sharpness": (ops.sharpness, 0.1, 1.9, False),
    "Cutout": (ops.cut_rectangle_relative, 0, 0.2, False),
}

RAND_AUGMENT_OPS: Ranges = {
    "AutoContrast": (ops.auto_contrast, 0, 1, False),
    "Equalize": (ops.equalize, 0, 1, False),
    "Invert": (ops.invert, 0, 1, False),
    "Rotate": (ops.rotate, 0, 30, True),
    "Posterize": (ops.posterize, 0, 4, False),
    "Solarize": (ops.solarize, 0, 256, False),
    "SolarizeAdd": (ops.add_and_solarize, 0, 110, False),
    "Color": (ops.color, 0.1, 1.9, False),
    "Contrast": (ops.contrast, 0.1, 1.9, False),
    "Brightness": (ops.brightness, 0.1, 1.9, False),
    "Sharpness": (ops.sharpness, 0.1, 1.9, False),
    "ShearX": (ops.shear_x, 0.0, 0.3, True),
    "ShearY": (ops.shear_y, 0.0, 0.3, True),
    "CutoutAbs": (ops.cut_rectangle, 0, 40, False),
    "TranslateXabs": (ops.translate_x, 0.0, 100, True),
    "TranslateYabs": (ops.translate_y, 0.0, 100, True),
}


@functools.cache
def policy_table(name: str) -> list:
    """Sub-policies of one searched policy.

    ``autoaug_*``: 25 entries [p1, op1, index1, p2, op2, index2]; ``dada_*`` (25) and ``faa_*`` (493
    and 498): entries [[op, probability, level], [op, probability, level]].
    """
    return json.loads(Path(__file__).with_name("policies.json").read_text())[name]


def auto_augment_op(image: Image.Image, name: str, index: int) -> Image.Image:
    """One AutoAugment operation at magnitude ``index`` (0 to 9); draws its sign if it has one."""
    value = float(AUTO_AUGMENT_MAGNITUDES[name][index])
    if name in GEOMETRIC:
        value = value * random.choice([-1, 1])
    elif name in ENHANCEMENTS:
        value = 1 + value * random.choice([-1, 1])
    return AUTO_AUGMENT_OPS[name](image, value)


def ranged_op(image: Image.Image, ranges: Ranges, name: str, level: float) -> Image.Image:
    """One operation of ``ranges`` at ``level`` (0 to 1); draws its sign if it has one."""
    operation, low, high, signed = ranges[name]
    value = level * (high - low) + low
    if signed and random.random() > 0.5:
        value = -value
    return operation(image, value)


class AutoAugment:
    """A uniformly drawn sub-policy: two operations, each applied with its own probability.

    Cubuk et al., AutoAugment, CVPR 2019. ``table``: see :func:`policy_table`.
    """

    def __init__(self, table: list):
        self.table = table

    def __call__(self, image: Image.Image) -> Image.Image:
        """PIL image -> PIL image; draws from Python's global generator."""
        p1, op1, index1, p2, op2, index2 = self.table[random.randint(0, len(self.table) - 1)]
        if random.random() < p1:
            image = auto_augment_op(image, op1, index1)
        if random.random() < p2:
            image = auto_augment_op(image, op2, index2)
        return image


class SearchedPolicy:
    """DADA (ECCV 2020) and Fast AutoAugment (NeurIPS 2019): as AutoAugment, continuous levels."""

    def __init__(self, table: list):
        self.table = table

    def __call__(self, image: Image.Image) -> Image.Image:
        """PIL image -> PIL image; draws from Python's global generator."""
        for name, probability, level in random.choice(self.table):
            if random.random() > probability:
                continue
            image = ranged_op(image, SEARCHED_OPS, name, level)
        return image


class RandAugment:
    """``n`` of 16 operations at magnitude ``m`` of 30, drawn with replacement and always applied.

    With m = 14 both translations move the image out of the frame, which leaves it black.
    """

    def __init__(self, n: int, m: int):
        self.n, self.m = n, m

    def __call__(self, image: Image.Image) -> Image.Image:
        """PIL image -> PIL image; draws from Python's global generator."""
        for name in random.choices(list(RAND_AUGMENT_OPS), k=self.n):
            image = ranged_op(image, RAND_AUGMENT_OPS, name, self.m / 30)
        return image


def policy_from_name(aug_type: str) -> Callable[[Image.Image], Image.Image] | None:
    """The policy that ``--aug_type`` names; ``none`` gives None.

    Raises:
        ValueError: the name is not one of ``POLICY_NAMES``.
    """
    if aug_type not in POLICY_NAMES:
        raise ValueError(f"unknown aug_type {aug_type!r}: choose from {', '.join(POLICY_NAMES)}")
    if aug_type == "none":
        return None
    if aug_type == "randaug":
        return RandAugment(n=2, m=14)
    policy = AutoAugment if aug_type in AUTO_AUGMENT_NAMES else SearchedPolicy
    return policy(policy_table(aug_type))
