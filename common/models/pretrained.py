"""Weights to start from: torchvision's first ones for ImageNet-1k, or those in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torchvision import models as tv

from common.training import restore
from common.training.errors import UsageError

PUBLISHED = {
    "resnet18": tv.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": tv.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": tv.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": tv.ResNet101_Weights.IMAGENET1K_V1,
    "resnet152": tv.ResNet152_Weights.IMAGENET1K_V1,
    "resnext50_32x4d": tv.ResNeXt50_32X4D_Weights.IMAGENET1K_V1,
    "resnext101_32x8d": tv.ResNeXt101_32X8D_Weights.IMAGENET1K_V1,
    "wide_resnet50_2": tv.Wide_ResNet50_2_Weights.IMAGENET1K_V1,
    "wide_resnet101_2": tv.Wide_ResNet101_2_Weights.IMAGENET1K_V1,
    "efficientnet_b0": tv.EfficientNet_B0_Weights.IMAGENET1K_V1,
    "efficientnet_b3": tv.EfficientNet_B3_Weights.IMAGENET1K_V1,
}
HEADS = ("fc.", "linear.", "classifier.")  # of torchvision's ResNets, the small ones, EfficientNet
ENCODERS = ("encoder_q.", "encoder.")  # of MoCo, of BCL


def check(arch: str, cure: str = "leave --pretrained out") -> None:
    """Refuse a network of which there are no published weights.

    Raises:
        UsageError: names those that have some, and the ``cure``.
    """
    if arch not in PUBLISHED:
        raise UsageError(
            f"--arch {arch}: no ImageNet weights exist for it, only for {', '.join(PUBLISHED)}; "
            f"give a file of --weights, or {cure}"
        )


def load(
    model: nn.Module,
    arch: str,
    path: str | Path | None = None,
    cure: str = "leave --pretrained out",
) -> str:
    """Give ``model`` the weights in ``path``, or the published ones of ``arch``; see ``check``.

    Published ones come from torch's download cache or torchvision's server. A classifier of other
    classes or of another kind, cosine or linear, keeps its own weights, and a model that lacks the
    last blocks of the file leaves them out; everything else has to be there, except the batch
    counters that files from before 2019 lack. See ``encoder`` for the checkpoints of BCL and MoCo.

    Returns: a line that says what was loaded and what left out.
    Raises:
        UsageError: there are no such weights, they cannot be had or read, or they do not fit.
    """
    if path is None:
        check(arch, cure)
    source = path or restore.download(PUBLISHED[arch].url, cure)
    state, own = encoder(restore.load_state_dict(source)), model.state_dict()
    missing = [key for key in own if key not in state and not _optional(key)]
    unlike = [key for key in own if key in state and state[key].shape != own[key].shape]
    unlike = [key for key in unlike if not key.startswith(HEADS)]
    last = max(map(_stage, own))
    deeper = [key for key in state if key not in own and 0 < _stage(key) < last]
    if missing or unlike or deeper:
        if missing:
            what = f"{missing[0]} is missing"
        elif unlike:
            what = f"{unlike[0]} has another shape"
        else:
            what = f"it lacks {deeper[0]} of the file"
        raise UsageError(
            f"{source} does not fit the model ({what}): give the weights of {arch}, or name their "
            "network"
        )
    said = f"=> weights of '{source}'{_left_out(own, state)}"
    if _classifier(state) != _classifier(own):
        state = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    return said


def encoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the network that classifies: of BCL the encoder and the classifier beside it,
    of MoCo the query encoder; all others as they are.
    """
    for prefix in ENCODERS:
        if any(key.startswith(prefix) for key in state_dict):
            kept = {k: v for k, v in state_dict.items() if k.startswith((prefix, *HEADS))}
            return {key.removeprefix(prefix): value for key, value in kept.items()}
    return dict(state_dict)


def _stage(key: str) -> int:
    """Of a ResNet, in which an entry is; 0 for all others."""
    match = re.match(r"layer(\d)\.", key)
    return int(match[1]) if match else 0


def _optional(key: str) -> bool:
    return key.startswith(HEADS) or key.endswith("num_batches_tracked")


def _classifier(entries: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of its entries: a cosine one has no bias."""
    return {key: tuple(value.shape) for key, value in entries.items() if key.startswith(HEADS)}


def _left_out(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What a file has, and the model could not take, in words."""
    its, head = _classifier(own), _classifier(state)
    left = [key for key in state if key not in own and key not in head]
    text = ""
    if head and head != its:
        name = next(iter(head))
        why = "of other classes" if head.keys() == its.keys() else "of another kind"
        why = f"{why} and " if its else ""  # else the model is an encoder
        text += f"; its classifier, {name} {head[name]}, is {why}left out"
    if left:
        text += f"; {len(left)} entries that the network lacks are left out, such as {left[0]}"
    return text
