"""One run, from its first or its resumed epoch to the report; two entry points share it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import NamedTuple

import torch

from common import models
from common.evaluation import Tally, group_line, result_lines
from common.training import launch, precision, seeds, speed
from common.training.learner import Learner
from common.training.logs import write_text
from common.training.record import Record
from datasets.loaders import DeviceLoader, WorkersLoader
from hmloss.engine import (
    build_criterion,
    evaluate,
    forward_pass,
    log_epoch,
    train_one_epoch,
)
from hmloss.repeats import COLUMNS
from hmloss.schedule import Schedule, in_hml_stage, learning_rate

Loader = DeviceLoader | WorkersLoader


class Loaders(NamedTuple):
    """Of training, validation and test images, seeded with the run's seed.

    ``files``: the test images, if they are files.
    """

    train: Loader
    val: Loader
    test: Loader
    files: Sequence[str] | None


def train_run(
    args: Namespace,
    schedule: Schedule,
    record: Record,
    state: dict | None,
    seed: int,
    loaders: Loaders,
) -> dict:
    """Train, or with ``--evaluate`` only evaluate; returns the figures of the run for a summary.

    ``record``: after ``resume``, and ``state``: what that returned.
    """
    process, cls_num_list = record.process, args.cls_num_list
    num_classes = len(cls_num_list)

    # Model: its head is normalised for LDAM.
    process.say(f"=> creating model '{args.arch}'")
    seeds.seed_everything(seed)
    build = models.archs.constructor(args.arch)
    model = build(num_classes=num_classes, use_norm=args.loss_type == "LDAM")
    if (args.pretrained or args.weights) and state is None:
        process.say(models.pretrained.load(model, args.arch, args.weights))
    model = model.to(memory_format=speed.memory_format(args.channels_last))
    model = launch.distribute(model, process)

    # One optimiser for both stages: the momentum goes on. Weight decay on everything.
    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scaler = precision.grad_scaler(process.device, args.amp)
    record.restore(model, optimizer, scaler)

    criteria = [
        build_criterion(args, cls_num_list, stage).to(process.device) for stage in (False, True)
    ]

    def test(epoch: int) -> Tally:
        """Evaluate on the test set, with the loss of the stage of ``epoch``."""
        stage = in_hml_stage(epoch, args.loss_type, args.start_hm_epoch)
        return evaluate(model, loaders.test, criteria[stage], num_classes, args, process)

    if args.evaluate:
        result = test(max(record.epoch - 1, 0)).result(cls_num_list)
        process.say(result_lines(result) + group_line(result))
        return result

    record.open(seed)
    if process.is_main:
        write_text(record.log_dir / "args_history.txt", str(args))
    forward = speed.compiled(forward_pass, args.compile, process, loaders.train.full_batch)
    learner = Learner(model, optimizer, scaler, forward)
    tally = None
    for epoch in range(record.epoch, args.epochs):
        start = time.perf_counter()
        seeds.seed_everything(seed, "training", epoch)
        loaders.train.set_epoch(epoch)
        stage = in_hml_stage(epoch, args.loss_type, args.start_hm_epoch)
        lr = learning_rate(epoch, args.lr, stage, schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr

        criterion = criteria[stage]
        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(learner, loaders.train, criterion, epoch, args, record)
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = sum(cls_num_list) / seconds
        if record.evaluates(epoch, args.epochs, args.eval_every):
            tally = evaluate(model, loaders.val, criterion, num_classes, args, process)
            row |= tally.result(cls_num_list)
        row["epoch_s"] = time.perf_counter() - start

        best_acc1 = record.best_score_with(row)
        log_epoch(record, row, best_acc1)
        record.end_epoch(row, arch=args.arch, best_acc1=torch.tensor(best_acc1))
    last = record.finish(tally, test, files=loaders.files)
    best = record.outcome.best
    for loader in loaders[:3]:
        loader.close()
    return {
        "best_epoch": best["epoch"],
        "best_top1": best["top1"],
        **{name: last[name] for name in COLUMNS if name != "best_top1"},
    }
