"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from common import models

CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202")
IMAGENET_RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def constructor(arch: str) -> Callable[..., nn.Module]:
    """What builds a network: takes ``num_classes`` (None: no classifier) and ``use_norm``."""
    module = models.resnet_cifar if arch in CIFAR_RESNETS else models.resnet
    return getattr(module, arch)
