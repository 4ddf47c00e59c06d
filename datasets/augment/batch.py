"""The recipes of ``datasets.augment.recipes`` for a whole batch of device-resident images.

Every recipe takes square ``images`` uint8 (B, 3, S, S) on any device and returns a normalised
float32 batch on that device, with the distribution of its per-image counterpart. ``generator`` is
always a **CPU** ``torch.Generator``: the parameters of all samples are drawn on the host in a few
vectorised calls and sent to the device without waiting, so that a plan known on the host decides
which samples an operation touches and the device is never synchronised.
"""

import torch
from torch import Tensor

from datasets.augment import batch_geometry as geometry
from datasets.augment.colours import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Triple


def to_device(parameters: Tensor, device: torch.device) -> Tensor:
    """Send host ``parameters`` to ``device`` without waiting for the device."""
    if device.type == "cuda":
        parameters = parameters.pin_memory()
    return parameters.to(device, non_blocking=True)


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
    return normalize(crop_flip(images, generator), mean, std)


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
    return normalize(resized_crop_flip(images, generator, size, scale), mean, std)


def resize_center_crop(
    images: Tensor,
    *,
    resize: int = 256,
    size: int = 224,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Tensor:
    """Square images to ``resize`` x ``resize``, centre crop, normalise (``imagenet_eval``)."""
    count, _, side, _ = images.shape
    start = torch.zeros(count, dtype=torch.int64, device=images.device)
    whole = torch.full_like(start, side)
    large = geometry.resized_crop(images, start, start, whole, whole, resize)
    edge = (resize - size) // 2
    return normalize(large[..., edge : edge + size, edge : edge + size], mean, std)


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop after zero padding by 4, flip; uint8, size unchanged."""
    count, _, height, width = images.shape
    top, left = geometry.draw_crop(count, (height, width), 4, height, generator)
    flipped = geometry.draw_coin(count, 0.5, generator)
    plan = to_device(torch.stack((top, left, flipped.long())), images.device)
    return geometry.flip(geometry.crop(images, plan[0], plan[1], 4, height), plan[2])


def resized_crop_flip(
    images: Tensor, generator: torch.Generator, size: int, scale: tuple[float, float]
) -> Tensor:
    """Random crop of a share of the area in ``scale``, resized to ``size``, flip; uint8."""
    count, _, height, width = images.shape
    box = geometry.draw_resized_crop(count, (height, width), scale, generator)
    flipped = geometry.draw_coin(count, 0.5, generator)
    plan = to_device(torch.stack((*box, flipped.long())), images.device)
    # To mirror first is cheaper than to mirror the enlarged crop, and the box is as random.
    return geometry.resized_crop(geometry.flip(images, plan[4]), *plan[:4], size)
