"""One way to read an image file, for all programs: whatever Pillow opens becomes 8-bit RGB.

* 8-bit RGB, grey, CMYK and palette images: Pillow's ``convert("RGB")``, as torchvision's loader.
* Alpha and transparent palette colours or grey values: laid on a white ground.
* 16-bit grey: the high byte, as Pillow reads 16-bit colours. Grey values in 32 bits, which say
  nothing of their range: the smallest range of 8, 16 or 31 bits that holds all of the image's.
* Floating-point grey from 0 to 1: times 255. Other values are refused.
* EXIF orientation is not applied, as in torchvision (Pillow turns TIFF); of several frames or
  pages the first counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from common.training.errors import UsageError

# Names of image files end so, in torchvision's ImageFolder as well.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
GROUND = (255, 255, 255)  # behind what is transparent
MAX_PIXELS = 178_956_970  # where Pillow, too, sees an attack; half a gigabyte of RGB
Image.MAX_IMAGE_PIXELS = None  # Pillow's own check, which warns at half of that, names no file


def read_rgb(file: str | Path | BinaryIO, place: str = "") -> Image.Image:
    """Decode an image file to an RGB image.

    Args:
        place: where the file is named ("line 3 of list.txt"), for the message.
    Raises:
        UsageError: missing, damaged, too large, or of values without a known range; names the file.
    """
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: shrink it"
                )
            return to_rgb(image)
    except Exception as error:  # decoders raise all kinds: struct.error, zlib.error, IndexError, …
        words = getattr(error, "strerror", None) or str(error)  # the file is named already
        reason = " ".join(words.split()) or type(error).__name__
        named = f"{file} ({place})" if place else file
        raise UsageError(f"{named}: not a readable image ({reason}); repair or remove it") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, by the rules above.

    Raises:
        ValueError: values without a known range.
    """
    image.load()
    if image.mode.startswith("I;16"):
        # TIFF's 12-bit values come unscaled.
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]
        values = np.asarray(image)
        grey = _high_byte(values, bits)
        if isinstance(hidden := image.info.get("transparency"), int):
            grey[values == hidden] = GROUND[0]
        image = Image.fromarray(grey)
    elif image.mode == "I" and image.format == "PPM":  # a PGM, which Pillow has scaled to 16 bits
        image = Image.fromarray(_high_byte(np.asarray(image), 16))
    elif image.mode == "I":
        image = Image.fromarray(_from_32_bits(np.asarray(image)))
    elif image.mode == "F":
        image = Image.fromarray(_from_float(np.asarray(image)))
    elif image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*GROUND, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")


def remarks(file: str | Path) -> list[str]:
    """What ``read_rgb`` makes of a readable image file that may surprise, in words."""
    with Image.open(file) as image:
        found = []
        if image.has_transparency_data:
            found.append("have transparency, laid on white")
        if image.mode.startswith(("I", "F")):
            found.append("have more than 8 bits of grey, scaled to 8")
            if np.asarray(to_rgb(image)).max() < 255 / 10:
                found.append(
                    "use less than a tenth of their range of grey values, nearly black in 8 bits"
                )
        if getattr(image, "n_frames", 1) > 1:
            found.append("have several frames, of which the first is taken")
        with contextlib.suppress(Exception):  # damaged EXIF has no say
            turned = image.getexif().get(0x0112, 1) != 1
            if turned and image.format != "TIFF":  # which Pillow turns
                found.append("have an EXIF orientation, which is not applied")
    return found


def _high_byte(grey: np.ndarray, bits: int) -> np.ndarray:
    return (grey >> (bits - 8)).astype(np.uint8)


def _from_32_bits(grey: np.ndarray) -> np.ndarray:
    lowest, highest = int(grey.min()), int(grey.max())
    if lowest < 0:
        raise ValueError(f"grey values down to {lowest}: save it as 8- or 16-bit grey")
    bits = next(bits for bits in (8, 16, 31) if highest < 1 << bits)
    if bits == 31 and highest >> (bits - 8) == 0:
        raise ValueError(
            f"grey values up to {highest} use neither 16 nor 31 bits: save it as 16-bit grey"
        )
    return _high_byte(grey, bits)


def _from_float(grey: np.ndarray) -> np.ndarray:
    if not (grey.min() >= 0 and grey.max() <= 1):  # NaN is neither
        raise ValueError(
            f"floating-point grey values from {grey.min():g} to {grey.max():g}, expected 0 to 1: "
            "save it as 8- or 16-bit grey"
        )
    return np.rint(grey * 255).astype(np.uint8)


def square(image: Image.Image, side: int) -> Image.Image:
    """Shorter side resized to ``side`` (bilinear), then the centre; pixels as torchvision's."""
    width, height = image.size
    if min(width, height) != side:
        longer = int(side * max(width, height) / min(width, height))
        width, height = (side, longer) if width <= height else (longer, side)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) == (side, side):
        return image
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def square_all(pixels: np.ndarray, side: int) -> np.ndarray:
    """``square`` of each of the images (n, H, W, 3) uint8 in memory: (n, side, side, 3)."""
    if pixels.shape[1:3] == (side, side):
        return pixels
    return np.stack([np.asarray(square(Image.fromarray(image), side)) for image in pixels])


def read_squares(files: Sequence[str], indices: Sequence[int], side: int) -> np.ndarray:
    """Read some of the files at ``side`` x ``side``: uint8 (n, side, side, 3).

    In threads: decoding releases the GIL.
    """

    def decode(index: int) -> np.ndarray:
        return np.asarray(square(read_rgb(files[index]), side))

    pixels = np.empty((len(indices), side, side, 3), dtype=np.uint8)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for row, image in enumerate(pool.map(decode, indices)):
            pixels[row] = image
    return pixels
