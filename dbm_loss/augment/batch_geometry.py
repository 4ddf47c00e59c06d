"""Operations on a whole batch that move pixels: Cutout, Pillow's shear, translate and rotate.

Images are uint8 (B, C, H, W) on any device; parameters are tensors with one entry per sample on the
same device; results are uint8. No host synchronisation, no loop over samples.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

GREY = 128  # what AutoAugment fills empty corners with

_FIXED = 1 << 16  # Pillow steps through a rotated image with 16 fractional bits


def cutout(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Black square of half the width, centred on (``row``, ``column``) and cut at the borders."""
    half = images.shape[3] // 4

    def outside(centre: Tensor, size: int) -> Tensor:  # (B, size)
        position = torch.arange(size, device=images.device) - centre[:, None]
        return (position < -half) | (position >= half)

    height, width = images.shape[-2:]
    keep = outside(row, height)[:, None, :, None] | outside(column, width)[:, None, None, :]
    return images * keep


def draw_cutout(
    count: int, image_size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Uniform centres (``row``, ``column``) for :func:`cutout`."""
    height, width = image_size
    row = torch.randint(0, height, (count,), generator=generator)
    return row, torch.randint(0, width, (count,), generator=generator)


def translate_x(images: Tensor, magnitude: Tensor, fill: int = GREY) -> Tensor:
    """Move left by ``magnitude`` (-1 to 1) of the width; nearest pixel, the fraction counts."""
    width = images.shape[3]
    # Column x takes input column floor(x + 0.5 + shift): the same whole step for every column.
    step = (magnitude.double() * width + 0.5).floor().long()
    windows = F.pad(images, (width, width), value=fill).unfold(3, width, 1)
    sample = torch.arange(images.shape[0], device=images.device)
    return windows[sample, :, :, (step + width).clamp(0, 2 * width)]


def translate_y(images: Tensor, magnitude: Tensor, fill: int = GREY) -> Tensor:
    """Move up by ``magnitude`` (-1 to 1) of the height; nearest pixel, the fraction counts."""
    return translate_x(images.transpose(2, 3), magnitude, fill).transpose(2, 3)


def shear_x(images: Tensor, magnitude: Tensor, fill: int = GREY) -> Tensor:
    """Shear along x about the top-left corner by coefficient ``magnitude`` (-1 to 1), bicubic."""
    height, width = images.shape[2:]
    device = images.device
    y = torch.arange(height, device=device, dtype=torch.float64) + 0.5
    x = torch.arange(width, device=device, dtype=torch.float64)
    shift = magnitude.double()[:, None] * y  # (B, H): every pixel of row y takes input x + shift
    source = x + 0.5 + shift[:, :, None]  # (B, H, W)
    step = shift.floor()
    fraction = (source - 0.5 - x - step[:, :, None])[:, None]  # rounded as Pillow's, pixel by pixel
    margin = height + 2
    padded = F.pad(images.double(), (margin, margin, 0, 0), mode="replicate")
    windows = padded.unfold(3, width + 3, 1)  # (B, C, H, starts, width + 3)
    sample = torch.arange(images.shape[0], device=device)[:, None]
    row = torch.arange(height, device=device)
    start = step.long().clamp_(-height, height) + margin - 1
    rows = windows[sample, :, row, start].transpose(1, 2)  # (B, C, H, width + 3)
    v1, v2, v3, v4 = (rows[..., k : k + width] for k in range(4))
    cubic = 2 * (v1 - v2) + v3 - v4 + fraction * (v2 - v1 + v4 - v3)
    cubic = v2 + fraction * (v3 - v1 + fraction * cubic)
    outside = (source < 0) | (source >= width)
    return cubic.clamp_(0, 255).byte().masked_fill_(outside[:, None], fill)


def shear_y(images: Tensor, magnitude: Tensor, fill: int = GREY) -> Tensor:
    """Shear along y about the top-left corner; see :func:`shear_x`."""
    return shear_x(images.transpose(2, 3), magnitude, fill).transpose(2, 3)


def rotate(images: Tensor, magnitude: Tensor, fill: int = GREY) -> Tensor:
    """Rotate counter-clockwise by ``magnitude`` degrees (-90 to 90 exclusive), nearest pixel."""
    batch, channels, height, width = images.shape
    device = images.device
    angle = -torch.deg2rad(magnitude.double())
    cos, sin = angle.cos(), angle.sin()
    # Pillow's inverse map about the centre, sampled at pixel centres.
    left = width / 2 - cos * width / 2 - sin * height / 2 + 0.5 * (cos + sin)
    top = height / 2 + sin * width / 2 - cos * height / 2 + 0.5 * (cos - sin)
    coefficients = torch.stack((cos, sin, left, -sin, cos, top))
    a, b, c, d, e, f = (coefficients * _FIXED + 0.5).floor().long()[:, :, None, None]
    y = torch.arange(height, device=device)[:, None]
    x = torch.arange(width, device=device)
    source_x = (a * x + b * y + c) >> 16  # (B, H, W)
    source_y = (d * x + e * y + f) >> 16
    outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)
    source = (source_y * width + source_x).masked_fill_(outside, 0).view(batch, 1, height * width)
    out = images.reshape(batch, channels, -1).gather(2, source.expand(-1, channels, -1))
    return out.view(images.shape).masked_fill_(outside[:, None], fill)
