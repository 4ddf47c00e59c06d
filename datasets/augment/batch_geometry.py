"""Operations on a whole batch that move pixels: crops, flips, Pillow's resize.

Images are uint8 (B, C, H, W) on any device; parameters are tensors with one entry per sample on the
same device; results are uint8. No host synchronisation, no loop over samples. The ``draw_*``
functions draw the parameters of a batch from a CPU generator, as CPU tensors.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_PRECISION = 1 << 22  # Pillow stores the weights of 8-bit images with 22 fractional bits


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int, size: int) -> Tensor:
    """Window of ``size`` at (``top``, ``left``) of the image zero-padded by ``padding``.

    ``top`` and ``left`` (B,) int64 count from the corner of the padded image, as in
    ``torchvision.transforms.RandomCrop``.
    """
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # (B, 3, tops, lefts, size, size)
    sample = torch.arange(images.shape[0], device=images.device)
    return windows[sample, :, top, left]


def draw_crop(
    count: int, image_size: tuple[int, int], padding: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Uniform window corners (``top``, ``left``) for :func:`crop`, on the generator's device."""
    height, width = image_size
    top = torch.randint(0, height + 2 * padding - size + 1, (count,), generator=generator)
    left = torch.randint(0, width + 2 * padding - size + 1, (count,), generator=generator)
    return top, left


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the samples whose entry of ``flipped`` (B,), bool or 0 and 1, is set."""
    both = torch.cat((images, images.flip(3)))  # one copy of whole rows is faster than a select
    sample = torch.arange(images.shape[0], device=images.device)
    return both.index_select(0, sample + images.shape[0] * flipped)


def draw_coin(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(B,) bool, true with ``probability``."""
    return torch.rand(count, generator=generator) < probability


def _weights(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """Pillow's bilinear resize of ``[start, start + length)`` to ``out_size``: (B, out, in).

    The triangle widens when shrinking (antialias) and is cut at the borders of the crop, not of the
    image: the crop comes first. float32 weights, rounded to 22 fractional bits as Pillow does.
    """
    device = start.device
    scale = length.double()[:, None] / out_size  # (B, 1)
    support = scale.clamp(min=1.0)
    output = torch.arange(out_size, device=device, dtype=torch.float64)
    centre = (output + 0.5) * scale  # (B, out)
    first = (centre - support + 0.5).floor().clamp(min=0.0)
    last = torch.minimum((centre + support + 0.5).floor(), length.double()[:, None])
    taps = 2 * math.ceil(max(1.0, in_size / out_size)) + 1  # a crop is never larger than the image
    position = first[:, :, None] + torch.arange(taps, device=device)  # (B, out, taps)
    offset = position - centre[:, :, None] + 0.5
    triangle = (1.0 - offset.abs() / support[:, :, None]).clamp_(min=0.0)
    beyond = position >= last[:, :, None]
    triangle.masked_fill_(beyond, 0.0)
    triangle /= triangle.sum(dim=2, keepdim=True)
    triangle = (triangle * _PRECISION).round_().div_(_PRECISION).float()
    source = (position.long() + start[:, None, None]).masked_fill_(beyond, in_size)
    weights = torch.zeros(start.shape[0], out_size, in_size + 1, device=device)
    return weights.scatter_(2, source, triangle)[:, :, :in_size]  # the last column took the rest


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int
) -> Tensor:
    """Crop ``[top, top + height) x [left, left + width)`` and resize it to ``size`` x ``size``.

    The pixels of ``torchvision.transforms.functional.resized_crop`` on PIL images (bilinear,
    antialiased, rounded to 8 bits after the horizontal and again after the vertical pass) within
    one grey level: the sums are float32 here and integers there, and some versions of Pillow shrink
    in the other direction first.
    """
    batch, channels, in_height, in_width = images.shape
    horizontal = _weights(left, width, in_width, size)  # (B, size, W)
    vertical = _weights(top, height, in_height, size)  # (B, size, H)
    rows = images.reshape(batch, channels * in_height, in_width).float()
    rows = torch.bmm(rows, horizontal.transpose(1, 2)).add_(0.5).floor_()  # (B, 3H, size)
    rows = rows.view(batch, channels, in_height, size)
    out = torch.matmul(vertical[:, None], rows).add_(0.5).floor_()  # (B, 3, size, size)
    return out.to(torch.uint8)


def draw_resized_crop(
    count: int,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    generator: torch.Generator,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes (top, left, height, width) as torchvision's ``RandomResizedCrop`` distributes them.

    Area uniform in ``scale``, log aspect ratio uniform in ``ratio``; the first of ten tries that
    fits; if none does, the largest centred box whose ratio is allowed.
    """
    in_height, in_width = image_size
    area = torch.empty(10, count).uniform_(*scale, generator=generator) * (in_height * in_width)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.empty(10, count).uniform_(low, high, generator=generator).exp_()
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths > 0) & (widths <= in_width) & (heights > 0) & (heights <= in_height)
    first = fits.int().argmax(dim=0, keepdim=True)  # the first maximum: the first try that fits
    width, height = widths.gather(0, first)[0], heights.gather(0, first)[0]
    top = (torch.rand(count, generator=generator) * (in_height - height + 1)).floor()
    left = (torch.rand(count, generator=generator) * (in_width - width + 1)).floor()

    full_ratio = in_width / in_height
    full_width = in_width if full_ratio <= ratio[1] else round(in_height * ratio[1])
    full_height = in_height if full_ratio >= ratio[0] else round(in_width / ratio[0])
    found = fits.any(dim=0)
    width = torch.where(found, width, torch.tensor(float(full_width)))
    height = torch.where(found, height, torch.tensor(float(full_height)))
    top = torch.where(found, top, torch.tensor(float((in_height - full_height) // 2)))
    left = torch.where(found, left, torch.tensor(float((in_width - full_width) // 2)))
    return top.long(), left.long(), height.long(), width.long()
