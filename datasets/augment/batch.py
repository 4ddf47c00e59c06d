"""The recipes of ``datasets.augment.recipes`` for a whole batch of device-resident images.

Every recipe takes ``images`` uint8 (B, 3, H, W) on any device and returns a normalised float32
batch on that device, with the distribution of its per-image counterpart. ``generator`` is always a
**CPU** ``torch.Generator``: the parameters of all samples are drawn on the host in a few vectorised
calls and sent to the device without waiting, so that a plan known on the host decides which samples
an operation touches and the device is never synchronised.
"""

import torch
from torch import Tensor

from datasets.augment import resample
from datasets.augment.recipes import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Triple


def to_device(parameters: Tensor, device: torch.device) -> Tensor:
    """Send host ``parameters`` to ``device`` without waiting for the device."""
    if device.type == "cuda":
        return parameters.pin_memory().to(device, non_blocking=True)
    return parameters.to(device)


def normalize(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """``ToTensor`` and ``Normalize`` of torchvision, to the last bit: uint8 to float32."""
    constants = to_device(torch.tensor([mean, std]), images.device).view(2, 3, 1, 1)
    return images.float().div_(255).sub_(constants[0]).div_(constants[1])


def cifar_train(
    images: Tensor,
    generator: torch.Generator,
    *,
    mean: Triple = CIFAR_MEAN,
    std: Triple = CIFAR_STD,
) -> Tensor:
    """Random crop after zero padding by 4 (size unchanged), flip, normalise."""
    return normalize(_crop_flip(images, generator), mean, std)


def cifar_eval(images: Tensor, *, mean: Triple = CIFAR_MEAN, std: Triple = CIFAR_STD) -> Tensor:
    """Normalise only."""
    return normalize(images, mean, std)


def random_resized_crop_flip(
    images: Tensor,
    generator: torch.Generator,
    *,
    size: int = 224,
    scale: tuple[float, float] = (0.08, 1.0),
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Tensor:
    """Random resized crop to ``size`` x ``size``, flip, normalise (``recipes.imagenet_train``)."""
    return normalize(_resized_crop_flip(images, generator, size, scale), mean, std)


def _crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    corners = resample.draw_crop(count, (height, width), 4, height, generator)
    flipped = resample.draw_coin(count, 0.5, generator)
    top, left, flipped = to_device(torch.stack((*corners, flipped.long())), images.device)
    return resample.flip(resample.crop(images, top, left, 4, height), flipped.bool())


def _resized_crop_flip(
    images: Tensor, generator: torch.Generator, size: int, scale: tuple[float, float]
) -> Tensor:
    count, _, height, width = images.shape
    box = resample.draw_resized_crop(count, (height, width), scale, generator)
    flipped = resample.draw_coin(count, 0.5, generator)
    *box, flipped = to_device(torch.stack((*box, flipped.long())), images.device)
    return resample.flip(resample.resized_crop(images, *box, size), flipped.bool())
