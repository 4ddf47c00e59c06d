"""RandAugment with noisy magnitudes (``rand-n2-m10-mstd0.5``) of the 224-pixel programs.

Cubuk et al., RandAugment, NeurIPS 2020, in the form that PaCo, BCL and GML train with: 15
operations, each skipped with probability 1/2, magnitudes normally distributed, clipped to [0, 10].
Operations are drawn from numpy's global generator, everything else from ``random``.
"""

import random
import re

import numpy as np
from PIL import Image

from dbm_loss.augment import ops

FILL = (124, 116, 104)  # the ImageNet mean in grey levels


def solarize(image: Image.Image, value: float) -> Image.Image:
    """``ops.solarize`` with the threshold cut to an integer."""
    return ops.solarize(image, int(value))


# name: (operation, value at magnitude 0, how much it grows up to magnitude 10). The order fixes
# which operation a drawn index means.
OPS: dict[str, tuple[ops.ImageOp, float, float]] = {
    "AutoContrast": (ops.auto_contrast, 0, 0),
    "Equalize": (ops.equalize, 0, 0),
    "Invert": (ops.invert, 0, 0),
    "Rotate": (ops.rotate, 0, 30),
    "PosterizeTpu": (ops.posterize, 0, 4),
    "Solarize": (solarize, 0, 256),
    "SolarizeAdd": (ops.solarize_add, 0, 110),
    "Color": (ops.color, 0.1, 1.8),
    "Contrast": (ops.contrast, 0.1, 1.8),
    "Brightness": (ops.brightness, 0.1, 1.8),
    "Sharpness": (ops.sharpness, 0.1, 1.8),
    "ShearX": (ops.shear_x, 0, 0.3),
    "ShearY": (ops.shear_y, 0, 0.3),
    "TranslateXRel": (ops.translate_x_relative, 0, 0.45),
    "TranslateYRel": (ops.translate_y_relative, 0, 0.45),
}
NAMES = tuple(OPS)
_GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def apply_op(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """Operation ``name`` at ``magnitude`` (0 to 10); geometry draws sign, then interpolation."""
    operation, start, growth = OPS[name]
    value = magnitude / 10 * growth + start
    if name not in _GEOMETRIC:
        return operation(image, value)
    if random.random() > 0.5:
        value = -value
    return operation(image, value, random.choice((ops.BILINEAR, ops.BICUBIC)), FILL)


class RandAugment:
    """``n`` operations drawn with replacement; each is applied with probability 1/2.

    The magnitude of an applied operation is ``random.gauss(m, mstd)`` clipped to [0, 10].
    """

    def __init__(self, n: int, m: float, mstd: float):
        self.n, self.m, self.mstd = n, m, mstd

    def __call__(self, image: Image.Image) -> Image.Image:
        """PIL image -> PIL image; draws from NumPy's and Python's global generators."""
        for index in np.random.choice(len(NAMES), self.n):
            if random.random() > 0.5:
                continue
            magnitude = random.gauss(self.m, self.mstd) if self.mstd > 0 else self.m
            image = apply_op(image, NAMES[index], min(10, max(0, magnitude)))
        return image


def rand_augment(config: str) -> RandAugment:
    """Build :class:`RandAugment` from text such as ``rand-n2-m10-mstd0.5``.

    Raises:
        ValueError: not ``rand`` followed by any of ``-n<int>``, ``-m<int>``, ``-mstd<float>``.
    """
    kind, *sections = config.split("-")
    matches = [re.fullmatch(r"(n|m)(\d+)|(mstd)(\d*\.?\d+)", section) for section in sections]
    if kind != "rand" or None in matches:
        raise ValueError(f"cannot read RandAugment config {config!r}: write rand-n2-m10-mstd0.5")
    settings = {match[1] or match[3]: match[2] or match[4] for match in matches}
    return RandAugment(
        n=int(settings.get("n", 2)),
        m=int(settings.get("m", 10)),
        mstd=float(settings.get("mstd", 0)),
    )
