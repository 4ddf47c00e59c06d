#!/usr/bin/env python
"""Stage 1: ARB-Loss, or the cross-entropy of MiSLAS, on the whole network, with mixup.

    python train_stage1.py --cfg ./config/cifar10/cifar10_imb001_stage1_mixup.yaml

Xie et al., Neurocomputing 527 (2023): 83.3 % on CIFAR-10-LT, 47.2 % on CIFAR-100-LT (ResNet-32,
imbalance 100), 52.8 % on ImageNet-LT (ResNet-50).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from torch import nn
from yacs.config import CfgNode

from arbloss import opts, trainer
from arbloss.models import Network
from arbloss.schedules import cosine_lr, step_lr
from common.training import launch
from common.training.schedules import stretch

DESIGNED_FOR = 200  # epochs, of the milestones


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures."""
    args, config = opts.parse_args("MiSLAS training (Stage-1)", argv)
    return trainer.train(args, config, 1, trained_parts, learning_rates)


def trained_parts(network: Network) -> list[nn.Module]:
    """All of it; on Places the backbone stays as it is, and a further block learns."""
    return [network.model if network.block is None else network.block, network.classifier]


def learning_rates(config: CfgNode, epoch: int) -> list[float]:
    """The same for both parts: half a cosine, or steps at the milestones."""
    if config.cos:
        return [cosine_lr(epoch, config.num_epochs, config.lr)] * 2
    milestones = config.milestones
    if config.stretch_schedule:
        milestones = [stretch(m, config.num_epochs, DESIGNED_FOR) for m in milestones]
    return [step_lr(epoch, config.lr, milestones)] * 2


if __name__ == "__main__":
    launch.run(main)
