"""The networks: a ResNet with a classifier, and the same with the two heads of BCL."""

import torch
import torch.nn.functional as F
from torch import nn

from common.models import archs
from common.models.heads import NormedLinear
from dbm_loss.margin import full_precision

# The original knows resnet50 and resnext50; its help text names resnet10.
ARCHITECTURES = {arch: arch for arch in archs.IMAGENET_RESNETS} | {
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x4d",
}


def _projection(dim: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, dim),
        nn.BatchNorm1d(dim),
        nn.ReLU(inplace=True),
        nn.Linear(dim, out_features),
    )


def _unit_rows(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(full_precision(x), dim=1)


class BCLModel(nn.Module):
    """Encoder, classifier and two projections for balanced contrastive learning (arXiv 2207.09052).

    Args:
        arch: a key of ``ARCHITECTURES``.
        num_classes: C.
        use_norm: cosine classifier (its weight is (dim, C)); else a linear one with bias.
        feat_dim: D, size of the space in which views and class centres are compared.

    Forward:
        x: images (N, 3, H, W).
        Returns the projected features, unit vectors (N, D); the logits (N, C), with ``use_norm``
        unscaled cosines; the class centres, unit vectors (C, D). The centres are a projection of
        the classifier's weight, which their gradient reaches; in training the batch norm of that
        projection takes its statistics over the C classes.
    """

    def __init__(self, arch: str, num_classes: int, use_norm: bool = False, feat_dim: int = 1024):
        super().__init__()
        self.encoder = archs.constructor(ARCHITECTURES[arch])(num_classes=None)
        dim = self.encoder.feature_dim
        self.head = _projection(dim, feat_dim)
        self.fc = nn.Linear(dim, num_classes)
        self.head_fc = _projection(dim, feat_dim)
        # The classifier is drawn again after the heads, where the original replaces it, so that a
        # seed gives the original's weights.
        self.fc = NormedLinear(dim, num_classes) if use_norm else nn.Linear(dim, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (N, 3, H, W) -> features (N, D), logits (N, C), centres (C, D)."""
        features = self.encoder(x)
        weight = self.fc.weight.T if isinstance(self.fc, NormedLinear) else self.fc.weight
        return (
            _unit_rows(self.head(features)),
            self._logits(features),
            _unit_rows(self.head_fc(weight)),
        )

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """The logits alone, (N, C): all that an evaluation needs."""
        return self._logits(self.encoder(x))

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        # A cosine rounded to bfloat16 is off by up to 0.004, which the scale of 30 makes 0.1.
        with torch.autocast(features.device.type, enabled=False):
            return self.fc(full_precision(features))


def build_model(loss_fn: str, arch: str, num_classes: int, use_norm: bool) -> nn.Module:
    """``BCLModel`` for ``bcl``; else encoder and classifier ``fc`` with torchvision's key names."""
    if loss_fn == "bcl":
        return BCLModel(arch, num_classes, use_norm)
    return archs.constructor(ARCHITECTURES[arch])(num_classes=num_classes, use_norm=use_norm)
