#!/usr/bin/env python
"""Stage 2 of MiSLAS: classifier and weight scaling on frozen features, every class equally often.

    python train_stage2.py --cfg ./config/cifar100/cifar100_imb001_stage2_mislas.yaml \
        resume saved/cifar100_imb001_stage1_mixup_202401010000/ckps/model_best.pth.tar

README of MiSLAS: 82.5 % on CIFAR-10-LT (82.1 % in the paper, CVPR 2021), 47.0 % on CIFAR-100-LT
(ResNet-32, imbalance 100), 52.7 % on ImageNet-LT (ResNet-50), from a stage 1 with `arbloss False`.
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
from arbloss.schedules import cosine_lr
from common.training import launch


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures."""
    args, config = opts.parse_args("MiSLAS training (Stage-2)", argv)
    return trainer.train(args, config, 2, trained_parts, learning_rates)


def trained_parts(network: Network) -> list[nn.Module]:
    """Classifier and weight scaling; everything else is frozen."""
    return [network.classifier, network.lws_model]


def learning_rates(config: CfgNode, epoch: int) -> list[float]:
    """Of classifier and weight scaling, half a cosine each."""
    weight_scaling = cosine_lr(epoch, config.num_epochs, config.lr)
    classifier = cosine_lr(epoch, config.num_epochs, config.lr * config.lr_factor)
    return [classifier, weight_scaling]


if __name__ == "__main__":
    launch.run(main)
