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

from arbloss import opts, trainer
from arbloss.engine import build_criterion, class_counter
from arbloss.models import Network
from arbloss.schedules import cosine_lr, step_lr
from common import models
from common.training import launch, seeds
from common.training.schedules import stretch

DESIGNED_FOR = 200  # epochs, of the milestones


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures."""
    args, config = opts.parse_args("MiSLAS training (Stage-1)", argv)
    run = trainer.start(args, config, stage=1)

    # Model: on Places the pretrained backbone stays frozen, and a further block learns.
    places = config.dataset == "places"
    seeds.seed_everything(run.seed)
    network = Network(config.backbone, config.num_classes, places=places)
    if places and not config.not_pretrained and not run.resumed:
        arch = config.backbone.removesuffix("_fe")
        models.pretrained.load(network.model, arch, config.weights or None)
    network = trainer.place(run, network)
    parts = launch.unwrap(network)
    optimizer, scaler = trainer.build_optimizer(
        run, network, parts.block if places else parts.model, parts.classifier
    )

    criterion = build_criterion(config, 1, run.data.cls_num_list).to(run.process.device)
    count = class_counter(config, 1, run.data.cls_num_list, run.process.device)
    milestones = config.milestones
    if config.stretch_schedule:
        milestones = [stretch(m, config.num_epochs, DESIGNED_FOR) for m in milestones]

    for epoch in range(run.record.epoch, config.num_epochs):
        if config.cos:
            lr = cosine_lr(epoch, config.num_epochs, config.lr)
        else:
            lr = step_lr(epoch, config.lr, milestones)
        for group in optimizer.param_groups:
            group["lr"] = lr
        trainer.run_epoch(run, network, criterion, count, optimizer, scaler, epoch)
    return trainer.finish(run, network)


if __name__ == "__main__":
    launch.run(main)
