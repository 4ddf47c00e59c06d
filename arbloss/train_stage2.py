#!/usr/bin/env python
"""Stage 2 of MiSLAS: classifier and weight scaling on frozen features, every class equally often.

    python train_stage2.py --cfg ./config/cifar100/cifar100_imb001_stage2_mislas.yaml \
        resume saved/cifar100_imb001_stage1_mixup_202401010000/ckps/model_best.pth.tar

Zhong et al., CVPR 2021: 82.5 % on CIFAR-10-LT, 47.0 % on CIFAR-100-LT (ResNet-32, imbalance 100),
52.7 % on ImageNet-LT (ResNet-50), from a stage 1 with `arbloss False`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from arbloss import opts, trainer
from arbloss.engine import build_criterion, class_counter
from arbloss.models import Network
from arbloss.schedules import cosine_lr
from common.training import launch, seeds


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures."""
    args, config = opts.parse_args("MiSLAS training (Stage-2)", argv)
    run = trainer.start(args, config, stage=2)

    # Model: everything but classifier and weight scaling is frozen.
    seeds.seed_everything(run.seed)
    network = Network(
        config.backbone,
        config.num_classes,
        places=config.dataset == "places",
        stage=2,
        shift_bn=config.shift_bn,
    )
    network = trainer.place(run, network)
    parts = launch.unwrap(network)
    optimizer, scaler = trainer.build_optimizer(run, network, parts.classifier, parts.lws_model)

    criterion = build_criterion(config, 2, run.data.cls_num_list).to(run.process.device)
    count = class_counter(config, 2, run.data.cls_num_list, run.process.device)

    classifier, weight_scaling = optimizer.param_groups
    for epoch in range(run.record.epoch, config.num_epochs):
        weight_scaling["lr"] = cosine_lr(epoch, config.num_epochs, config.lr)
        classifier["lr"] = cosine_lr(epoch, config.num_epochs, config.lr * config.lr_factor)
        trainer.run_epoch(run, network, criterion, count, optimizer, scaler, epoch)
    return trainer.finish(run, network)


if __name__ == "__main__":
    launch.run(main)
