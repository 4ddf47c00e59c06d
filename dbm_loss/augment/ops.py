"""Single operations of the augmentation policies on one PIL RGB image, given their parameters.

Geometry follows ``Image.transform``: the coefficients map output to input coordinates, so a
positive translation moves the content left or up. Every operation is called ``op(image, value)``;
those without a value ignore it. An enhancement's value is Pillow's factor (1 changes nothing).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

GREY, BLACK = (128, 128, 128), (0, 0, 0)
NEAREST = Image.Resampling.NEAREST
BILINEAR = Image.Resampling.BILINEAR
BICUBIC = Image.Resampling.BICUBIC

Colour = tuple[int, int, int]
ImageOp = Callable[..., Image.Image]


def affine(image: Image.Image, coefficients: tuple, resample: int, fill: Colour) -> Image.Image:
    """(a, b, c, d, e, f): output (x, y) takes the input at (ax + by + c, dx + ey + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=fill
    )


def shear_x(
    image: Image.Image, value: float, resample: int = NEAREST, fill: Colour = BLACK
) -> Image.Image:
    """Shear along x about the top-left corner; ``value`` is the coefficient."""
    return affine(image, (1, value, 0, 0, 1, 0), resample, fill)


def shear_y(
    image: Image.Image, value: float, resample: int = NEAREST, fill: Colour = BLACK
) -> Image.Image:
    """Shear along y about the top-left corner; ``value`` is the coefficient."""
    return affine(image, (1, 0, 0, value, 1, 0), resample, fill)


def translate_x(
    image: Image.Image, value: float, resample: int = NEAREST, fill: Colour = BLACK
) -> Image.Image:
    """Move left by ``value`` pixels; the fraction is kept."""
    return affine(image, (1, 0, value, 0, 1, 0), resample, fill)


def translate_y(
    image: Image.Image, value: float, resample: int = NEAREST, fill: Colour = BLACK
) -> Image.Image:
    """Move up by ``value`` pixels; the fraction is kept."""
    return affine(image, (1, 0, 0, 0, 1, value), resample, fill)


def translate_x_relative(
    image: Image.Image, value: float, resample: int = NEAREST, fill: Colour = BLACK
) -> Image.Image:
    """Move left by ``value`` times the width."""
    return translate_x(image, value * image.width, resample, fill)


def translate_y_relative(
    image: Image.Image, value: float, resample: int = NEAREST, fill: Colour = BLACK
) -> Image.Image:
    """Move up by ``value`` times the height."""
    return translate_y(image, value * image.height, resample, fill)


def rotate(
    image: Image.Image, value: float, resample: int = NEAREST, fill: Colour = BLACK
) -> Image.Image:
    """Rotate counter-clockwise by ``value`` degrees about the centre."""
    return image.rotate(value, resample, fillcolor=fill)


def posterize(image: Image.Image, value: float) -> Image.Image:
    """Keep the upper ``int(value)`` bits, 0 to 8 (``ImageOps.posterize`` refuses 0)."""
    mask = 256 - 2 ** (8 - int(value))
    return image.point([level & mask for level in range(256)] * len(image.getbands()))


def solarize(image: Image.Image, value: float) -> Image.Image:
    """Invert the pixels that are not below the threshold ``value`` (it may be fractional)."""
    return ImageOps.solarize(image, value)


def add_and_solarize(image: Image.Image, value: float) -> Image.Image:
    """Add ``value``, clip, truncate to integers, then invert the pixels from 128 on."""
    raised = np.clip(np.asarray(image).astype(int) + value, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(raised), 128)


def solarize_add(image: Image.Image, value: float) -> Image.Image:
    """Add ``int(value)`` to the pixels below 128, up to 255; leave the others."""
    lut = [min(255, level + int(value)) if level < 128 else level for level in range(256)]
    return image.point(lut * len(image.getbands()))


def auto_contrast(image: Image.Image, _value: float) -> Image.Image:
    """Stretch each channel to 0 ... 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, _value: float) -> Image.Image:
    """Give each channel a uniform histogram."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, _value: float) -> Image.Image:
    """Negative."""
    return ImageOps.invert(image)


def color(image: Image.Image, value: float) -> Image.Image:
    """Saturation; 0 is grey."""
    return ImageEnhance.Color(image).enhance(value)


def contrast(image: Image.Image, value: float) -> Image.Image:
    """Contrast; 0 is the mean grey level."""
    return ImageEnhance.Contrast(image).enhance(value)


def brightness(image: Image.Image, value: float) -> Image.Image:
    """Brightness; 0 is black."""
    return ImageEnhance.Brightness(image).enhance(value)


def sharpness(image: Image.Image, value: float) -> Image.Image:
    """Sharpness; 0 is smoothed, 2 sharpened."""
    return ImageEnhance.Sharpness(image).enhance(value)


def cut_rectangle(image: Image.Image, value: float) -> Image.Image:
    """Fill a square of ``value`` pixels (nothing if it is not positive) with (125, 123, 114).

    The centre comes from ``np.random.uniform(width)`` and ``np.random.uniform(height)``: one
    argument is numpy's *low* bound with a high of 1, hence values in (1, width].
    """
    if value <= 0:
        return image
    width, height = image.size
    centre_x, centre_y = np.random.uniform(width), np.random.uniform(height)
    left, top = int(max(0, centre_x - value / 2)), int(max(0, centre_y - value / 2))
    image = image.copy()
    right, bottom = min(width, left + value), min(height, top + value)
    ImageDraw.Draw(image).rectangle((left, top, right, bottom), (125, 123, 114))
    return image


def cut_rectangle_relative(image: Image.Image, value: float) -> Image.Image:
    """:func:`cut_rectangle` with the side as a fraction of the width."""
    return cut_rectangle(image, value * image.width)
