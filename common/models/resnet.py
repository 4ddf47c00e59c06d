"""ResNet and ResNeXt for 224x224 images: torchvision's, with another classifier.

Layer names, initialisation and the use of random numbers are torchvision's (checked by golden
numbers), so its weight files load. New here: a classifier that can be a cosine head or absent, and
access to the features.
"""

from functools import partial

from torch import Tensor, nn
from torchvision import models as tv
from torchvision.models.resnet import BasicBlock, Bottleneck

from common.models.heads import LinearHead, NormedLinear


class ResNet(tv.ResNet):
    """ResNet v1.5 (stride in the 3x3 convolution of a bottleneck).

    Args:
        block: torchvision's ``BasicBlock`` or ``Bottleneck``.
        layers: blocks in each of the four stages.
        num_classes: width of the classifier ``fc``; ``None`` builds none, and ``forward`` returns
            the features.
        use_norm: cosine classifier (``NormedLinear``) instead of a linear one.
        groups, width_per_group: cardinality and width of the 3x3 convolutions (ResNeXt, wide
            ResNet).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: list[int],
        num_classes: int | None = 1000,
        use_norm: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
    ):
        # Not torchvision's own constructor: the classifier that it draws would cost random numbers.
        nn.Module.__init__(self)
        self.inplanes, self.dilation, self._norm_layer = 64, 1, nn.BatchNorm2d
        self.groups, self.base_width = groups, width_per_group
        self.feature_dim = 512 * block.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, 64, layers[0])
        self.layer2 = self._make_layer(block, 128, layers[1], stride=2)
        self.layer3 = self._make_layer(block, 256, layers[2], stride=2)
        self.layer4 = self._make_layer(block, 512, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = None
        if num_classes is not None:
            classifier = NormedLinear if use_norm else LinearHead
            self.fc = classifier(self.feature_dim, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def feature_map(self, x: Tensor) -> Tensor:
        """Output of the last stage, (N, feature_dim, H/32, W/32) for images (N, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def features(self, x: Tensor) -> Tensor:
        """Globally averaged features (N, feature_dim), the input of the classifier."""
        return self.avgpool(self.feature_map(x)).flatten(1)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, num_classes), or (logits, features); without a classifier the features."""
        features = self.features(x)
        if self.fc is None:
            return features
        logits = self.fc(features)
        return (logits, features) if return_features else logits


# Each takes num_classes and use_norm. Groups and width are those of the 3x3 convolutions.
resnet10 = partial(ResNet, BasicBlock, [1, 1, 1, 1])
resnet18 = partial(ResNet, BasicBlock, [2, 2, 2, 2])
resnet34 = partial(ResNet, BasicBlock, [3, 4, 6, 3])
resnet50 = partial(ResNet, Bottleneck, [3, 4, 6, 3])
resnet101 = partial(ResNet, Bottleneck, [3, 4, 23, 3])
resnet152 = partial(ResNet, Bottleneck, [3, 8, 36, 3])
resnext50_32x4d = partial(resnet50, groups=32, width_per_group=4)
resnext101_32x4d = partial(resnet101, groups=32, width_per_group=4)
resnext101_32x8d = partial(resnet101, groups=32, width_per_group=8)
resnext152_32x4d = partial(resnet152, groups=32, width_per_group=4)
wide_resnet50_2 = partial(resnet50, width_per_group=128)
wide_resnet101_2 = partial(resnet101, width_per_group=128)
