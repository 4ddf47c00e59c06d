#!/usr/bin/env python
"""Influence-balanced loss on CIFAR-10/100, the embedded digits, or a folder of images.

    python cifar_train.py --dataset cifar100 --loss_type IB --train_rule IBReweight --imb_type exp \
        --imb_factor 0.01 --epochs 200 --num_classes 100 --start_ib_epoch 100 --gpu 0

Park et al., ICCV 2021, Table 4: 42.14 % (cross entropy: 38.05 %), ResNet-32, CIFAR-100, ratio 100.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from torch import nn

from common import lazy
from common.models import archs
from common.training import launch
from ib_loss import opts
from ib_loss.schedule import CIFAR

trainer = lazy.module("ib_loss.trainer")  # with all that a run needs, once the flags are right


def build_model(args: Namespace) -> nn.Module:
    """The network; its head is a cosine classifier for LDAM."""
    build = archs.constructor(args.arch)
    return build(num_classes=args.num_classes, use_norm=args.loss_type == "LDAM")


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures (None if child processes did the work)."""
    args, schedule = opts.parse_args(argv, "cifar", CIFAR)
    if launch.fan_out(main, argv, args.gpu):
        return None
    return trainer.train(args, schedule, build_model, "ib_loss/cifar_train.py")


if __name__ == "__main__":
    launch.run(main)
