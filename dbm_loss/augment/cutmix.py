"""CutMix of two batches, as context-rich minority oversampling (CMO, CVPR 2022) uses it."""

import math

import numpy as np
import torch


def cutmix_box(size: tuple[int, int], lam: float) -> tuple[int, int, int, int]:
    """Box (top, left, bottom, right) of about the share ``1 - lam`` of an image of (H, W).

    The centre is uniform (row, then column, from numpy's global generator) and the box is clipped.
    """
    height, width = size
    share = math.sqrt(1.0 - lam)
    half_height, half_width = int(height * share) // 2, int(width * share) // 2
    y, x = np.random.randint(height), np.random.randint(width)
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    return top, left, bottom, right


def cutmix(background: torch.Tensor, foreground: torch.Tensor) -> float:
    """Paste one box of ``foreground`` (B, C, H, W) into ``background``, in place.

    The drawn share of the background is max(λ, 1 − λ), λ ~ Beta(1, 1) from numpy: the background
    dominates. Returns the share that the clipped box really leaves, the weight of its labels.
    """
    height, width = background.shape[-2:]
    lam = np.random.beta(1.0, 1.0)
    top, left, bottom, right = cutmix_box((height, width), max(lam, 1.0 - lam))
    background[..., top:bottom, left:right] = foreground[..., top:bottom, left:right]
    return 1.0 - (bottom - top) * (right - left) / (height * width)
