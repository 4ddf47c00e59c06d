"""The networks. ``models.resnet``, which needs torchvision, is imported when it is used."""

from common import lazy

__getattr__ = lazy.submodules(__name__)
