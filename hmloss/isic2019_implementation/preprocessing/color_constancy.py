"""Centre crop and colour constancy of dermoscopic images, pixel for pixel as the MATLAB originals.

Images are PIL RGB images. An illuminant estimate needs the sums of powers of the pixel values, and
the correction is a function of one 8-bit value per channel, so a histogram and a table of 256
entries do the work of passes over floating-point images, exactly.
"""

import itertools
import math

import numpy as np
from PIL import Image

ALGORITHMS = ("gray world", "gray world seg", "shades of gray", "shades of gray seg")
SQUARE_SIDE = 450  # what square images are cropped to
LEVELS = np.arange(256, dtype=np.float64)


def center_crop(image: Image.Image) -> Image.Image:
    """The central square: the shorter side, or 450 for square images (smaller ones stay whole)."""
    width, height = image.size
    side = min(width, height) if width != height else SQUARE_SIDE
    if side > min(width, height):
        return image
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def color_constancy(
    image: Image.Image, algorithm: str = "gray world", s: int = 2, p: int = 6
) -> Image.Image:
    """Scale the channels so that the estimated illuminant e becomes grey.

    ``OUT_c = |e| / (√3 · e_c) · I_c``, rounded half up and cut to 0…255. With the sums over the
    pixels of a channel:

    * ``gray world``: ``e_c = Σ I_c / area``;
    * ``gray world seg``: the mean over a grid of 2^s × 2^s segments (s = 1 or 2), which is the
      gray world again, as the segments tile the image;
    * ``shades of gray``: ``(Σ I_c^p / area)^(1/p)``, p = 4 or 6;
    * ``shades of gray seg``: the mean of that over 2 × 2 segments (s = 1).

    Powers are floating-point: the original's saturate at 255 when the image is uint8, which
    leaves nothing of the estimate.

    Raises:
        ValueError: another algorithm, s or p.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm {algorithm!r}: choose from {', '.join(ALGORITHMS)}")
    power = 1
    if algorithm.startswith("shades"):
        if p not in (4, 6):
            raise ValueError(f"p = {p}: {algorithm} takes 4 or 6")
        power = p
    segments = 1
    if algorithm.endswith("seg"):
        allowed = (1, 2) if power == 1 else (1,)
        if s not in allowed:
            raise ValueError(f"s = {s}: {algorithm} takes {' or '.join(map(str, allowed))}")
        segments = 2**s
    return _divide_out(image, _illuminant(image, segments, power))


def _illuminant(image: Image.Image, segments: int, power: int) -> np.ndarray:
    """(3,) estimate: power mean over each segment of the grid, then the mean over segments."""
    columns, rows = (_cuts(length, segments) for length in image.size)
    area = (image.width / segments) * (image.height / segments)  # nominal: cuts are rounded
    estimates = []
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            counts = np.reshape(image.crop((left, top, right, bottom)).histogram(), (3, 256))
            estimates.append((counts @ LEVELS**power / area) ** (1 / power))
    return np.mean(estimates, axis=0)


def _cuts(length: int, segments: int) -> list[int]:
    """Segment borders along a side, rounded half up."""
    return [math.floor(k * length / segments + 0.5) for k in range(segments)] + [length]


def _divide_out(image: Image.Image, illuminant: np.ndarray) -> Image.Image:
    norm = math.sqrt(float(illuminant @ illuminant))
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = norm / (illuminant * math.sqrt(3))
        scaled = gain[:, None] * LEVELS
    scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0)  # a channel without light stays black
    table = np.clip(np.floor(scaled + 0.5), 0, 255).astype(np.uint8)
    return image.point(table.reshape(-1).tolist())
