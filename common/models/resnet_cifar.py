"""ResNets for 32x32 images (He et al., CVPR 2016, section 4.2), which all four papers use on CIFAR.

Widths 16/32/64, and shortcuts without parameters ("option A"). The names in the ``state_dict`` and
the order in which random numbers are drawn are those of LDAM-DRW, so published checkpoints load and
seeded runs repeat.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from common.models.heads import LinearHead, NormedLinear


def kaiming_redraw(module: nn.Module) -> None:
    """Draw every convolution and linear weight again, Kaiming-normal (fan-in).

    In the order of ``module.modules()``. Biases and cosine heads stay as they are.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn, then the shortcut is added."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.pad = planes // 4 if stride != 1 or in_planes != planes else 0

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every ``stride``-th row and column, zero channels before and behind."""
        if not self.pad:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, in_planes, H, W) -> (N, planes, H / stride, W / stride)."""
        # In place where the backward pass needs no other copy: a fifth less memory for activations.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNetCIFAR(nn.Module):
    """CIFAR ResNet with three stages of ``num_blocks`` blocks.

    Args:
        num_blocks: blocks per stage; the network is ResNet-(6 * num_blocks + 2).
        num_classes: width of the classifier; ``None`` builds none, and ``forward`` returns the
            features.
        use_norm: cosine classifier (``NormedLinear``) instead of a linear one.
        head: attribute and ``state_dict`` name of the classifier: ``"linear"``, or ``"fc"`` as in
            GML.
        redraw: draw convolutions and linear layers again when all is built, as the original
            networks do. A model that contains this one and redraws everything itself passes
            ``False``.
    """

    feature_dim = 64

    def __init__(
        self,
        num_blocks: int,
        num_classes: int | None = 10,
        use_norm: bool = False,
        head: str = "linear",
        redraw: bool = True,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, num_blocks, stride=1)
        self.layer2 = self._stage(16, 32, num_blocks, stride=2)
        self.layer3 = self._stage(32, 64, num_blocks, stride=2)
        self.head_name = head if num_classes is not None else None
        if num_classes is not None:
            classifier = NormedLinear if use_norm else LinearHead
            self.add_module(head, classifier(self.feature_dim, num_classes))
        if redraw:
            kaiming_redraw(self)

    @staticmethod
    def _stage(in_planes: int, planes: int, num_blocks: int, stride: int) -> nn.Sequential:
        blocks = [BasicBlock(in_planes, planes, stride)]
        blocks += [BasicBlock(planes, planes, 1) for _ in range(1, num_blocks)]
        return nn.Sequential(*blocks)

    def feature_map(self, x: Tensor) -> Tensor:
        """Output of the last stage, (N, 64, H/4, W/4) for images (N, 3, H, W)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.layer3(self.layer2(self.layer1(out)))

    def features(self, x: Tensor) -> Tensor:
        """Globally averaged features (N, 64), the input of the classifier."""
        return F.adaptive_avg_pool2d(self.feature_map(x), 1).flatten(1)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, num_classes), or (logits, features); without a classifier the features."""
        features = self.features(x)
        if self.head_name is None:
            return features
        logits = getattr(self, self.head_name)(features)
        return (logits, features) if return_features else logits


# Each takes num_classes, use_norm and head. With 10 classes resnet20 has 269,722 parameters.
resnet20 = partial(ResNetCIFAR, 3)
resnet32 = partial(ResNetCIFAR, 5)
resnet44 = partial(ResNetCIFAR, 7)
resnet56 = partial(ResNetCIFAR, 9)
resnet110 = partial(ResNetCIFAR, 18)
resnet1202 = partial(ResNetCIFAR, 200)
