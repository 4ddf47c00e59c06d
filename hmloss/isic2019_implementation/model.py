"""The networks of the ISIC program: by default a partly frozen EfficientNet-B3."""

from __future__ import annotations

from torch import nn
from torchvision import models as tv

from common.models.heads import LinearHead
from common.models.resnet_cifar import resnet20

PUBLISHED = ("efficientnet_b0", "efficientnet_b3", "resnet18", "resnet50")
FROM_SCRATCH = "train from scratch with --random_init"
ARCHS = [*PUBLISHED, "resnet20"]  # the CIFAR one, to try things out: small, without weights


def build_model(arch: str, num_classes: int = 2) -> nn.Module:
    """One of ``ARCHS``: a torchvision network with a new classifier, or the small ResNet-20."""
    if arch not in PUBLISHED:
        return resnet20(num_classes=num_classes)
    model = tv.get_model(arch)
    if hasattr(model, "classifier"):
        model.classifier[1] = LinearHead(model.classifier[1].in_features, num_classes)
    else:
        model.fc = LinearHead(model.fc.in_features, num_classes)
    return model


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
