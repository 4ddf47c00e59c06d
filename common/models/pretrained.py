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

    Published ones come from torch's download cache or torchvision's server. A classifier of another
    shape keeps its own weights, and a model that lacks the last blocks of the file leaves them out;
    everything else has to be there, except the batch counters that files from before 2019 lack.

    Returns: a line that says what was loaded and what left out.
    Raises:
        UsageError: there are no such weights, they cannot be had or read, or they do not fit.
    """
    if path is None:
        check(arch, cure)
    source = path or restore.download(PUBLISHED[arch].url)
    state, own = restore.load_state_dict(source), model.state_dict()
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
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(fits, strict=False)
    return f"=> weights of '{source}'{_left_out(own, state)}"


def _stage(key: str) -> int:
    """Of a ResNet, in which an entry is; 0 for all others."""
    match = re.match(r"layer(\d)\.", key)
    return int(match[1]) if match else 0


def _optional(key: str) -> bool:
    return key.startswith(HEADS) or key.endswith("num_batches_tracked")


def _left_out(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What a file has, and the model could not take, in words."""
    heads = [key for key in state if key.startswith(HEADS)]
    left = [key for key in state if key not in own and key not in heads]
    text = ""
    if any(key not in own or own[key].shape != state[key].shape for key in heads):
        shape = tuple(state[heads[0]].shape)
        text += f"; its classifier, {heads[0]} {shape}, is of other classes and left out"
    if left:
        text += f"; {len(left)} entries that the network lacks are left out, such as {left[0]}"
    return text
