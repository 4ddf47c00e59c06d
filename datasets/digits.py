"""The 1,797 digits of scikit-learn: 130 training images a class, 497 test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from common.training.errors import UsageError
from datasets.sources import Source


def held_out(root: Path) -> tuple[str, ...]:
    """See ``datasets.sources.held_out``."""
    return ("test",)


def open_split(name: str, root: Path, split: str, size: int) -> Source:
    """See ``datasets.sources.open_source``."""
    if size % 8:
        raise UsageError(f"image_size {size}: the digits have 8x8 pixels, choose a multiple of 8")
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    chosen = []
    for digit in range(10):
        of_digit = order[digits.target[order] == digit]
        chosen.append(of_digit[:130] if split == "train" else of_digit[130:])
    indices = np.concatenate(chosen)
    grey = np.clip(digits.images[indices] * (255 / 16), 0, 255).astype(np.uint8)  # (n, 8, 8)
    large = grey.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    pixels = np.repeat(large[..., None], 3, axis=3)
    targets = digits.target[indices].astype(np.int64)
    return Source(name, targets, [str(i) for i in range(10)], lambda chosen: pixels[chosen])
