"""Two per-image transforms that torchvision has in another form."""

import random

import numpy as np
import torch
from PIL import Image, ImageFilter


class Cutout:
    """Zero one square of ``length`` pixels around a uniformly drawn centre; cut at the borders.

    DeVries and Taylor, 2017. Works on a tensor (C, H, W) before normalisation, so the hole is
    black. Draws the row, then the column, from numpy's global generator.
    """

    def __init__(self, length: int):
        self.length = length

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Tensor (C, H, W) -> a copy with the hole."""
        height, width = image.shape[-2:]
        y, x = np.random.randint(height), np.random.randint(width)
        half = self.length // 2
        image = image.clone()
        image[..., max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return image


class GaussianBlur:
    """Pillow's Gaussian blur (three box blurs) with a radius from ``random.uniform(*sigma)``."""

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0)):
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        """PIL image -> PIL image."""
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))
