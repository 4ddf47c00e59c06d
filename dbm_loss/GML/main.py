#!/usr/bin/env python
"""GML on ImageNet-LT, iNaturalist 2018, or a folder of images: teacher, then student.

    torchrun --rdzv_backend=c10d --rdzv_endpoint=localhost:29500 main.py \
        --multiprocessing_distributed --dataset imagenet --arch resnext50_32x4d \
        --arch_t resnext101_32x8d --path_t ./outputs/imagenet/TEACHER/moco_ckpt.pth.tar \
        --data ~/DATA_ROOT/IMAGENET-1K/imagenet/ --mark STUDENT --batch_size 128 \
        --learning_rate 0.05 --epochs 90 --aug randcls_randclsstack --moco_k 16384 --base_k 3 \
        --use_dbm

Son et al., AAAI 2025, Table 3: 58.6 % (GML without the margin: 58.3 %), ResNeXt-50, ImageNet-LT.
``--beta 0.0`` without ``--path_t`` trains a teacher. sh/ has the commands in full.
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
from dbm_loss.GML.imagenet import imagenet_loaders, imagenet_transform, load_imagenet


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures (None if child processes did the work)."""
    args, schedule = opts.parse_args(argv, "main")
    if args.multiprocessing_distributed and launch.fan_out(main, argv, per_machine=True):
        return None
    return trainer.train(argv, args, schedule, load_imagenet, imagenet_loaders, imagenet_transform)


if __name__ == "__main__":
    launch.run(main)
