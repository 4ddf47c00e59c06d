#!/usr/bin/env python
"""Teacher for GML on long-tailed CIFAR, the embedded digits, or a folder of images.

    python cifar_ce.py --dataset cifar100 --arch resnet56 --imb-factor 0.01 --batch-size 128 \
        --learning-rate 0.1 --mark ce_CIFAR100_imb001_R56_lr0.1_0 --use_dbm

A cosine classifier trained with balanced softmax; ``--use_dbm`` adds the margin of DBM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from common.training import launch
from dbm_loss.GML import opts, trainer
from dbm_loss.GML.data import cifar_loaders, cifar_transform, load_cifar


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures."""
    args, schedule = opts.parse_args(argv, "cifar_ce")
    return trainer.train(argv, args, schedule, load_cifar, cifar_loaders, cifar_transform)


if __name__ == "__main__":
    launch.run(main)
