"""Operations on a whole batch that change colours, with Pillow's integer and float32 rounding.

Images are uint8 (B, 3, H, W) on any device; ``magnitude`` has one entry per sample on the same
device (operations without a parameter ignore it); results are uint8. No host synchronisation, no
loop over samples.
"""

import torch
from torch import Tensor

_UNIT = 1 << 24  # Pillow's box blur weights have 24 fractional bits


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _luma(images: Tensor) -> Tensor:
    """Pillow's mode L: whole numbers in float32 (B, 1, H, W); every sum stays below 2**24."""
    red, green, blue = images.float().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768).div_(65536).floor_()


def _blend(degenerate: Tensor | float, images: Tensor, factor: Tensor) -> Tensor:
    """``Image.blend``: from ``degenerate`` (factor 0) to ``images`` (factor 1) and beyond."""
    difference = (images - degenerate).float()
    return difference.mul_(_per_sample(factor.float())).add_(degenerate).clamp_(0, 255).byte()


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageEnhance.Brightness`` with the factor ``magnitude``."""
    return _blend(0.0, images, magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageEnhance.Contrast``: away from the rounded mean grey level."""
    mean = _luma(images).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    return _blend((mean + 0.5).floor_().float(), images, magnitude)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageEnhance.Color``: away from grey (saturation)."""
    return _blend(_luma(images), images, magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageEnhance.Sharpness``: away from ``ImageFilter.SMOOTH``, which leaves the border."""
    smooth = images.float()
    rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    centre = smooth[:, :, 1:-1, 1:-1]
    centre.copy_((around + 4 * centre + 6.5).div_(13).floor_())
    return _blend(smooth, images, magnitude)


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the upper ``magnitude`` (0 to 8) bits."""
    dropped = torch.exp2(8 - magnitude.float().floor())
    return images & _per_sample((256 - dropped).to(torch.uint8))


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the pixels that are not below the threshold ``magnitude`` (0 to 256)."""
    return torch.where(images < _per_sample(magnitude.float()), images, 255 - images)


def invert(images: Tensor, magnitude: Tensor) -> Tensor:
    """Negative."""
    return 255 - images


def auto_contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageOps.autocontrast``: each channel stretched to 0 ... 255."""
    low = images.amin(dim=(2, 3), keepdim=True).double()
    high = images.amax(dim=(2, 3), keepdim=True).double()
    flat = high == low
    # 255.0 / tensor would be 255 times the reciprocal, which rounds twice.
    scale = (torch.full_like(low, 255.0) / (high - low)).masked_fill_(flat, 1.0)
    offset = (-low * scale).masked_fill_(flat, 0.0)
    return images.double().mul_(scale).add_(offset).clamp_(0, 255).byte()


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """``ImageOps.equalize``: a uniform histogram for each channel."""
    batch, channels, height, width = images.shape
    index = images.reshape(batch * channels, height * width).long()
    histogram = index.new_zeros(batch * channels, 256)
    histogram.scatter_add_(1, index, index.new_ones(()).expand_as(index))
    last = histogram.gather(1, index.amax(dim=1, keepdim=True))
    step = (height * width - last) // 255
    below = histogram.cumsum(dim=1) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    identity = torch.arange(256, device=images.device)
    table = torch.where(step > 0, table, identity).to(torch.uint8)
    return table.gather(1, index).view_as(images)


def grayscale(images: Tensor, magnitude: Tensor) -> Tensor:
    """All three channels become the grey level."""
    return _luma(images).byte().expand_as(images)


def hue(images: Tensor, magnitude: Tensor) -> Tensor:
    """torchvision's ``adjust_hue`` of PIL images: 8-bit HSV, H turned by ``magnitude`` (±0.5)."""
    level, saturation, value = _rgb_to_hsv(images)
    turned = (magnitude.double() * 255).trunc().view(-1, 1, 1)
    return _hsv_to_rgb((level + turned).remainder_(256.0), saturation, value)


def _rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pillow's mode HSV: whole numbers 0 ... 255 (B, H, W), in float64, float32 and float32.

    The hue of grey pixels is any number here: without saturation it changes nothing.
    """
    red, green, blue = images.float().unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    spread = value - low
    middle = red + green + blue - value - low
    x = (value - middle) / spread.clamp(min=1.0)  # 0 ... 1 from the edge of a sixth of the wheel
    sixths = torch.where(
        value == red,
        torch.where(green >= blue, 1 - x, x - 1),
        torch.where(
            value == green,
            torch.where(red >= blue, 1 + x, 3 - x),
            torch.where(green >= red, 3 + x, 5 - x),
        ),
    )
    # Pillow's float of each double is what decides whole numbers.
    level = (sixths.double() / 6 + 1).frac_().float().double().mul_(255).floor_()
    saturation = (spread / value.clamp(min=1.0)).double().mul_(255).floor_().float()
    return level, saturation, value


def _hsv_to_rgb(level: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    position = level * 6 / 255
    sector = position.floor()
    fraction = (position - sector).float().double()
    saturation = (saturation / 255).double()
    lowest = value * (1 - saturation) + 0.5
    falling = value * (1 - saturation * fraction) + 0.5
    rising = value * (1 - saturation * (1 - fraction)) + 0.5
    value, lowest, falling, rising = (
        plane.byte()[:, None] for plane in (value, lowest, falling, rising)
    )
    # Red is value, falling, lowest, lowest, rising, value in the six sectors of the wheel, and
    # green and blue two and four sectors later. Bytes wrap around; the sums come out right.
    later = torch.arange(6, 0, -2, device=level.device, dtype=torch.uint8).view(3, 1, 1)
    turn = (sector.byte()[:, None] + later).remainder_(6)  # (B, 3, H, W)
    out = value + (turn == 1) * (falling - value) + (turn == 4) * (rising - value)
    return out + ((turn == 2) | (turn == 3)) * (lowest - value)


def gaussian_blur(images: Tensor, magnitude: Tensor, max_sigma: float = 2.0) -> Tensor:
    """Pillow's ``GaussianBlur(magnitude)``, magnitudes up to ``max_sigma``: three box blurs.

    Sums are integers with 24 fractional bits, as Pillow's. Levels are shifted to -128 ... 127
    meanwhile: then the sums fit into int32.
    """
    weights, rounding = _box_weights(magnitude, max_sigma)
    out = images.int() - 128
    for _ in range(3):
        out = _box_blur(out, weights, rounding)
    out = out.transpose(2, 3)
    for _ in range(3):
        out = _box_blur(out, weights, rounding)
    return (out.transpose(2, 3) + 128).byte()


def _box_weights(sigma: Tensor, max_sigma: float) -> tuple[Tensor, Tensor]:
    """Pillow's extended box: weights of the pixels 0, 1, ... away, (reach + 1, B) int32.

    Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering, 2011.
    The second result (B,) int32 is the half that rounds, less what the weights lack on one (none
    or one unit) times the shift of 128 levels.
    """
    variance = sigma.double().square() / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()  # equation 11
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)  # equation 14
    part = part / (6 * (variance - (whole + 1).square()))
    radius = (whole + part).float()
    inner = (_UNIT / (2 * radius + 1)).floor().double()
    outer = ((_UNIT - (2 * whole + 1) * inner) / 2).floor()
    missing = _UNIT - (2 * whole + 1) * inner - 2 * outer
    reach = int(((4 * max_sigma**2 + 1) ** 0.5 - 1) / 2) + 1
    distance = torch.arange(reach + 1, device=sigma.device)[:, None]
    edge = torch.where(distance == whole + 1, outer, 0.0)
    weights = torch.where(distance <= whole, inner, edge)
    return weights.int(), (_UNIT // 2 - 128 * missing).int()


def _box_blur(images: Tensor, weights: Tensor, rounding: Tensor) -> Tensor:
    """One pass along the last axis; border pixels repeat."""
    reach, width = weights.shape[0] - 1, images.shape[3]
    first, last = images[..., :1], images[..., -1:]
    sides = (*images.shape[:3], reach)
    padded = torch.cat((first.expand(sides), images, last.expand(sides)), dim=3)
    out = images * _per_sample(weights[0]) + _per_sample(rounding)
    for distance in range(1, reach + 1):
        left, right = reach - distance, reach + distance
        pair = padded[..., left : left + width] + padded[..., right : right + width]
        out += pair.mul_(_per_sample(weights[distance]))
    return out.bitwise_right_shift_(24)
