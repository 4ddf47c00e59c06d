"""The networks of the ISIC program: by default a partly frozen EfficientNet-B3."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchvision import models as tv

from common.models.resnet_cifar import resnet20
from common.training import restore
from common.training.errors import UsageError

NUM_CLASSES = 2
WEIGHTS = {
    "efficientnet_b0": tv.EfficientNet_B0_Weights.IMAGENET1K_V1,
    "efficientnet_b3": tv.EfficientNet_B3_Weights.IMAGENET1K_V1,
    "resnet18": tv.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": tv.ResNet50_Weights.IMAGENET1K_V1,
}
ARCHS = [*WEIGHTS, "resnet20"]  # the CIFAR one, to try things out: small, without weights


def build_model(
    arch: str, weights: str | Path | None = None, random_init: bool = False
) -> nn.Module:
    """A torchvision network with a new two-class classifier, or the small ResNet-20.

    Args:
        arch: one of ``ARCHS``.
        weights: file with ImageNet weights, of the whole network or without classifier; None:
            torchvision's, from its download cache or its server.
        random_init: no weights at all.
    Raises:
        UsageError: the weights cannot be had, or belong to another network.
    """
    if arch not in WEIGHTS:
        if not random_init:
            raise UsageError(f"--arch {arch}: has no ImageNet weights, so give --random_init")
        return resnet20(num_classes=NUM_CLASSES)
    model = tv.get_model(arch)
    if not random_init:
        path = weights or _download(arch)
        restore.load_weights(model, restore.load_state_dict(path), path)
    if hasattr(model, "classifier"):
        model.classifier[1] = nn.Linear(model.classifier[1].in_features, NUM_CLASSES)
    else:
        model.fc = nn.Linear(model.fc.in_features, NUM_CLASSES)
    return model


def _download(arch: str) -> Path:
    try:
        return restore.download(WEIGHTS[arch].url)
    except UsageError as error:
        raise UsageError(f"{error}, or train from scratch with --random_init") from None


def freeze(model: nn.Module, ratio_finetune: float) -> tuple[int, int]:
    """Train the last ``ratio_finetune`` per cent of the parameter tensors, freeze those before.

    Batch-norm statistics of frozen layers still move, as in the original.

    Returns: number of frozen tensors and of all.
    """
    parameters = list(model.parameters())
    frozen = int((100 - ratio_finetune) * len(parameters) / 100)
    for parameter in parameters[:frozen]:
        parameter.requires_grad_(False)
    return frozen, len(parameters)
