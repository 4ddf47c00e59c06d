"""The networks in checkpoints, built from what these say of themselves (``Record``'s ``about``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from common.models import archs
from common.training import restore
from common.training.errors import UsageError
from datasets.augment import described
from datasets.augment.colours import INAT_MEAN, INAT_STD

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """How the checkpoints of a program become a network.

    Attributes:
        build: takes the entries of "network" by name.
        transform: side of the images -> see the function of that name. image_size: the program's
            own side.
        needs: entries that a user has to name for a checkpoint that does not say them.
        folders: -> {folder of the program's own images: class}, where the two are named otherwise.
    """

    build: Callable[..., nn.Module]
    transform: Callable[[int], dict[str, object]]
    image_size: int
    needs: tuple[str, ...] = ("arch",)
    folders: Callable[[], dict[str, str]] = dict


def _resnet(arch: str, **network: object) -> nn.Module:
    return archs.constructor(arch)(**network)


def _dbm_cifar(loss_fn: str, num_classes: int, use_norm: bool = False, **_: object) -> nn.Module:
    from dbm_loss.cifar.models import build_model

    return build_model(loss_fn, num_classes, use_norm)


def _dbm_large(loss_fn: str, arch: str, num_classes: int, use_norm: bool = False) -> nn.Module:
    from dbm_loss.large_scale.models import build_model

    return build_model(loss_fn, arch, num_classes, use_norm)


def _gml(arch: str, use_norm: bool = True, **network: object) -> nn.Module:
    return _resnet(arch, use_norm=use_norm, **network)


_gml_cifar = partial(_gml, head="fc")


def _isic(arch: str, num_classes: int = 2, **_: object) -> nn.Module:
    from hmloss.isic2019_implementation.model import build_model

    return build_model(arch, num_classes)


def _arb(arch: str, num_classes: int, places: bool = False, stage: int = 1) -> nn.Module:
    from arbloss.models import Network

    return Network(arch, num_classes, places=places, stage=stage)


def _imagenet(size: int) -> dict[str, object]:
    return described.imagenet(resize=round(size * 256 / 224), size=size)


def _inat(size: int) -> dict[str, object]:
    resize = round(size * 256 / 224)
    return described.imagenet(resize=resize, size=size, mean=INAT_MEAN, std=INAT_STD)


def _isic_images(size: int) -> dict[str, object]:
    from hmloss.isic2019_implementation.data import MEAN, STD

    return described.squeezed(size, MEAN, STD)


def _isic_folders() -> dict[str, str]:
    from hmloss.isic2019_implementation.data import TASKS

    return {name: column.lower() for task in TASKS.values() for name, column in task.items()}


KINDS = {
    "ib_loss/cifar_train.py": Kind(_resnet, described.cifar, 32),
    "ib_loss/tinyimage_train.py": Kind(_resnet, lambda size: described.imagenet(square=size), 64),
    "dbm_loss/cifar/main.py": Kind(_dbm_cifar, described.cifar, 32, ("loss_fn",)),
    "dbm_loss/large_scale/train.py": Kind(_dbm_large, _imagenet, 224, ("arch", "loss_fn")),
    "dbm_loss/GML/cifar_ce.py": Kind(_gml_cifar, described.cifar, 32),
    "dbm_loss/GML/cifar_main.py": Kind(_gml_cifar, described.cifar, 32),
    "dbm_loss/GML/main.py": Kind(_gml, _imagenet, 224),
    "hmloss/cifar_implementation/train_cifar.py": Kind(_resnet, described.cifar, 32),
    "hmloss/inat_implementation/train_inat.py": Kind(_resnet, _inat, 224),
    "hmloss/isic2019_implementation/train_isic.py": Kind(
        _isic, _isic_images, 300, folders=_isic_folders
    ),
    "arbloss/train_stage1.py": Kind(_arb, described.cifar, 32),
    "arbloss/train_stage2.py": Kind(_arb, described.cifar, 32),
}


def transform(
    program: str, network: Mapping[str, object], image_size: int | None = None
) -> dict[str, object]:
    """What a program does with an image to evaluate, for checkpoints that do not say it.

    Args:
        program, network: as for ``load``. image_size: side of the images (default: the program's).
    """
    kind = KINDS[program]
    if program.startswith("arbloss"):  # it has small networks and large ones
        arch = str(network.get("arch", "")).removesuffix("_fe")
        if arch not in archs.CIFAR_RESNETS:
            return _imagenet(image_size or 224)
    return kind.transform(image_size or kind.image_size)


def load(
    program: str, network: Mapping[str, object], state: Mapping[str, object], source: str
) -> nn.Module:
    """A checkpoint's network, in evaluation mode: images (N, 3, H, W) -> logits (N, C).

    Args:
        program: a key of ``KINDS``. network: arguments of what builds it.
        state: the content of the checkpoint. source: its name, for messages.
    Raises:
        UsageError: the weights are of another network.
    """
    try:
        module = KINDS[program].build(**network)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UsageError(f"{source}: {program} has no such network ({error})") from None
    if program.startswith("arbloss"):
        module.load_parts(state, source)
    else:
        weights = state.get("state_dict", state)
        restore.check_state_dict(weights, source)
        if program.startswith("dbm_loss/GML"):
            weights = _encoder(restore.plain_keys(weights))
        _check_classifier(module, weights, source)
        restore.load_weights(module, weights, source)
    return Logits(module).eval()


def _encoder(weights: Weights) -> Weights:
    """The part of a MoCo's weights that classifies; all of a bare network's."""
    prefix = "encoder_q."
    part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    return part or weights


def _check_classifier(module: nn.Module, weights: Weights, source: str) -> None:
    """Refuse a cosine classifier's weights for a linear one, and the other way round."""
    given = _is_cosine(restore.plain_keys(weights))
    if None in (own := _is_cosine(module.state_dict()), given) or own == given:
        return
    kind = "a cosine" if given else "a linear"
    raise UsageError(f"{source}: its classifier is {kind} one; give --network use_norm={given}")


def _is_cosine(weights: Weights) -> bool | None:
    """Whether the classifier in it has no bias; None if there is no classifier."""
    name = next((name for name in ("fc", "linear") if f"{name}.weight" in weights), None)
    return None if name is None else f"{name}.bias" not in weights


class Logits(nn.Module):
    """A network of any program that gives the logits alone, in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, C)."""
        out = getattr(self.network, "classify", self.network)(images)
        return (out[0] if isinstance(out, tuple) else out).float()  # arbloss: with the features
