#!/usr/bin/env python
"""GML on long-tailed CIFAR, the embedded digits, or a folder of images: the student.

    python cifar_main.py --dataset cifar100 --imb-factor 0.01 --arch resnet32 --arch_t resnet56 \
        --path_t ./outputs/cifar100/ce_CIFAR100_imb001_R56_lr0.1_0/moco_ckpt.pth.tar --feat_t 64 \
        --batch-size 128 --learning-rate 0.1 --mark CIFAR100_imb001_R32_tR56 --use_dbm

Son et al., AAAI 2025, Table 2: 53.70 % (GML without the margin: 53.12 %) on CIFAR-100, ratio 100.
``cifar_ce.py`` trains the teacher; without ``--path_t`` a momentum encoder takes its place.
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
    args, schedule = opts.parse_args(argv, "cifar_main")
    return trainer.train(argv, args, schedule, load_cifar, cifar_loaders, cifar_transform)


if __name__ == "__main__":
    launch.run(main)
