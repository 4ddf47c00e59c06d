#!/usr/bin/env python
"""Influence-balanced loss on Tiny ImageNet: 64x64 images enlarged to 224.

    python tinyimage_train.py --dataset tinyimagenet -a resnet18 --loss_type IB \
        --train_rule IBReweight --imb_type exp --imb_factor 0.01 --epochs 100 --lr 0.1 \
        --num_classes 200 --start_ib_epoch 50

Park et al., ICCV 2021, Table 5: 42.65 % (cross entropy: 38.52 %), ResNet-18, ratio 100. Starts from
ImageNet weights, as the authors' program does; --no-pretrained starts from scratch.
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
from common.models.heads import LinearHead
from common.training import launch
from ib_loss import opts
from ib_loss.schedule import TINY_IMAGENET

trainer = lazy.module("ib_loss.trainer")  # with all that a run needs, once the flags are right


def build_model(args: Namespace) -> nn.Module:
    """The 1000-class network, then a new linear head, also for LDAM: the original's order."""
    model = archs.constructor(args.arch)(num_classes=1000)
    head = "fc" if hasattr(model, "fc") else "linear"
    setattr(model, head, LinearHead(model.feature_dim, args.num_classes))
    return model


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures (None if child processes did the work)."""
    args, schedule = opts.parse_args(argv, "tiny", TINY_IMAGENET)
    if launch.fan_out(main, argv, args.gpu):
        return None
    return trainer.train(args, schedule, build_model, trainer.TINY)


if __name__ == "__main__":
    launch.run(main)
