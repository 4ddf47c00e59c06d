"""Images for the tests of whole-batch operations, and the same operation image by image."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# One grey level of a normalised image: what another Pillow may round differently.
RESAMPLED = 2.05e-2


def assert_summary(actual: np.ndarray, expected: np.ndarray) -> None:
    """Some pixels, then mean and standard deviation of all, which no rounding moves so far."""
    np.testing.assert_allclose(actual[:-2], expected[:-2], atol=RESAMPLED, rtol=0)
    np.testing.assert_allclose(actual[-2:], expected[-2:], atol=1e-3, rtol=0)


def pictures(height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """uint8 (63, 3, H, W): noise, smooth fields, low contrast, flat and nearly flat."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (20, 3, height, width), generator=g, dtype=torch.uint8)
    smooth = torch.rand(20, 3, 5, 5, generator=g) * 300 - 20
    smooth = F.interpolate(smooth, (height, width), mode="bicubic").clamp(0, 255).byte()
    pale = torch.rand(20, 3, height, width, generator=g) * 60
    pale = (pale + torch.rand(20, 3, 1, 1, generator=g) * 190).byte()
    edges = torch.zeros(3, 3, height, width, dtype=torch.uint8)
    edges[0], edges[1] = 255, 77
    edges[2, :, 3, 4] = 200
    return torch.cat((noise, smooth, pale, edges))


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def image_by_image(op: Callable, images: Tensor, *parameters: Tensor) -> Tensor:
    """``op(PIL image, parameter, ...)`` for each image with its own parameters, as one batch."""
    columns = zip(*(parameter.tolist() for parameter in parameters), strict=True)
    return torch.stack(
        [from_pil(op(to_pil(image), *own)) for image, own in zip(images, columns, strict=True)]
    )


def largest_difference(actual: Tensor, expected: Tensor) -> int:
    assert actual.dtype == torch.uint8 and actual.shape == expected.shape
    return int((actual.int() - expected.int()).abs().max())
