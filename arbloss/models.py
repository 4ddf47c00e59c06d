"""Networks of the two stages: backbone, classifier, Places' extra block, learnable weight scaling.

The parts keep separate state dicts under the names of MiSLAS, so published checkpoints load.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import models
from common.models.archs import CIFAR_RESNETS, IMAGENET_RESNETS, constructor
from common.models.heads import LinearHead
from common.models.resnet_cifar import ResNetCIFAR, kaiming_redraw
from common.training import restore
from common.training.errors import UsageError

PARTS = ("model", "classifier", "block", "lws_model")  # checkpoint keys state_dict_<part>
BACKBONES = (
    *CIFAR_RESNETS, *IMAGENET_RESNETS, "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d",
    "resnext152_32x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip


class Classifier(nn.Module):
    """Linear classifier of features (N, feat_in); feature maps (N, feat_in, h, w) are averaged.

    ``kaiming`` draws the weight as the CIFAR networks do, else it has torch's default.
    """

    def __init__(self, feat_in: int, num_classes: int, kaiming: bool = False):
        super().__init__()
        self.fc = LinearHead(feat_in, num_classes)
        if kaiming:
            kaiming_redraw(self)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        if features.ndim == 4:
            features = F.adaptive_avg_pool2d(features, 1).flatten(1)
        return self.fc(features)


class LearnableWeightScaling(nn.Module):
    """MiSLAS: one learnt factor per class on the logits, at first 1."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.learned_norm = nn.Parameter(torch.ones(1, num_classes))

    def forward(self, logits: Tensor) -> Tensor:
        """Scaled logits (N, num_classes)."""
        return self.learned_norm * logits


class Network(nn.Module):
    """All parts of a run in one module; the parts that a stage does not train are frozen.

    Stage 1 trains ``model`` (the backbone) and ``classifier``. On Places ``model`` is a frozen
    ImageNet network and a further bottleneck ``block`` is trained in its place. Stage 2 freezes
    both and trains ``classifier`` and the weight scaling ``lws_model``.

    Args:
        backbone: name of the original with its suffix, e.g. ``resnet32_fe``.
        num_classes: number of classes.
        places: keep the backbone frozen and add ``block``.
        stage: 1 or 2.
        shift_bn: in stage 2, let batch-norm statistics follow the training batches.

    Raises:
        UsageError: no backbone of that name; says which there are.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        places: bool = False,
        stage: int = 1,
        shift_bn: bool = False,
    ):
        super().__init__()
        self.stage = stage
        self.shift_bn = shift_bn
        self.model = build_backbone(backbone, shortened=places)
        width = self.model.feature_dim
        small = isinstance(self.model, ResNetCIFAR)
        self.classifier = Classifier(width, num_classes, kaiming=small)
        self.block = None
        if places:
            bottleneck = models.resnet.Bottleneck
            self.block = bottleneck(width, width // bottleneck.expansion)
        self.lws_model = LearnableWeightScaling(num_classes) if stage == 2 else None
        if places or stage == 2:
            self.model.requires_grad_(False)
        if places and stage == 2:
            self.block.requires_grad_(False)

    def train(self, mode: bool = True) -> "Network":
        """Training mode for the trained parts; frozen ones only if ``shift_bn`` (not the trunk)."""
        super().train(mode)
        if mode:
            extractor_learns = self.stage == 1 or self.shift_bn
            self.model.train(extractor_learns and self.block is None)
            if self.block is not None:
                self.block.train(extractor_learns)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, num_classes) of images (N, 3, H, W), and the classifier's input."""
        if self.block is None:
            features = self.model(images)
        else:
            features = self.block(self.model.feature_map(images))
        logits = self.classifier(features)
        if self.lws_model is not None:
            logits = self.lws_model(logits)
        return logits, features

    def parts(self) -> dict[str, nn.Module]:
        """The modules that it has, under the names that checkpoints give their weights."""
        return {
            f"state_dict_{name}": module
            for name in PARTS
            if (module := getattr(self, name)) is not None
        }

    def load_parts(self, state: Mapping[str, object], source: str) -> None:
        """Load every part's weights; a weight scaling that the file lacks keeps its ones.

        Raises:
            UsageError: another part is missing, or it belongs to another architecture.
        """
        for key, module in self.parts().items():
            if key in state:
                restore.load_weights(module, state[key], source)
            elif key != "state_dict_lws_model":
                raise UsageError(
                    f"{source}: has no {key!r}, not a checkpoint of this configuration"
                )


def build_backbone(name: str, shortened: bool = False) -> nn.Module:
    """Backbone without classifier, with its width in ``feature_dim``.

    ``shortened``: the ResNet-152 of Places lacks its last bottleneck, which the trained block
    replaces; the other networks are whole.

    Raises:
        UsageError: no backbone of that name; says which there are.
    """
    arch = name.removesuffix("_fe")
    if name == arch or arch not in BACKBONES:
        names = ", ".join(f"{arch}_fe" for arch in BACKBONES)
        raise UsageError(f"backbone {name}: choose one of {names}")
    if shortened and arch == "resnet152":
        return models.resnet.ResNet(models.resnet.Bottleneck, [3, 8, 36, 2], num_classes=None)
    return constructor(arch)(num_classes=None)
