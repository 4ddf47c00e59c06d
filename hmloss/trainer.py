"""One run, from its first or its resumed epoch to the report; two entry points share it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence

import torch

from common import models
from common.evaluation import Tally, group_line, result_lines
from common.training import launch, precision, seeds, speed
from common.training.learner import Learner
from common.training.logs import write_text
from common.training.record import Record
from datasets.data import Data
from datasets.loaders import Loader
from hmloss.engine import (
    build_criterion,
    evaluate,
    forward_pass,
    log_epoch,
    train_one_epoch,
)
from hmloss.repeats import COLUMNS
from hmloss.schedule import Schedule, in_hml_stage, learning_rate


def train_run(
    args: Namespace,
    schedule: Schedule,
    record: Record,
    seed: int,
    data: Data,
    loaders: Sequence[Loader],
) -> dict:
    """Train, or with ``--evaluate`` only evaluate; returns the figures of the run for a summary.

    Args:
        record: after ``resume``.
        loaders: of training, validation and test images, seeded with ``seed``.
    """
    process, cls_num_list = record.process, data.cls_num_list
    num_classes = len(cls_num_list)
    train_loader, val_loader, test_loader = loaders

    # Model: its head is normalised for LDAM.
    process.say(f"=> creating model '{args.arch}'")
    seeds.seed_everything(seed)
    build = models.archs.constructor(args.arch)
    model = build(num_classes=num_classes, use_norm=args.loss_type == "LDAM")
    if (args.pretrained or args.weights) and not record.resumed:
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
        return evaluate(model, test_loader, criteria[stage], num_classes, args, process)

    if args.evaluate:
        result = test(max(record.epoch - 1, 0)).result(cls_num_list)
        process.say(result_lines(result, record.selection.name_of_test) + group_line(result))
        return result

    record.open(seed)
    if process.is_main:
        write_text(record.log_dir / "args_history.txt", str(args))
    forward = speed.compiled(forward_pass, args.compile, process, train_loader.full_batch)
    learner = Learner(model, optimizer, scaler, forward)
    tally = None
    for epoch in range(record.epoch, args.epochs):
        start = time.perf_counter()
        seeds.seed_everything(seed, "training", epoch)
        train_loader.set_epoch(epoch)
        stage = in_hml_stage(epoch, args.loss_type, args.start_hm_epoch)
        lr = learning_rate(epoch, args.lr, stage, schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr

        criterion = criteria[stage]
        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(learner, train_loader, criterion, epoch, args, record)
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = sum(cls_num_list) / seconds
        if record.evaluates(epoch, args.epochs, args.eval_every):
            tally = evaluate(model, val_loader, criterion, num_classes, args, process)
            row |= tally.result(cls_num_list)
        row["epoch_s"] = time.perf_counter() - start

        best_acc1 = record.best_score_with(row)
        log_epoch(record, row, best_acc1)
        record.end_epoch(row, arch=args.arch, best_acc1=torch.tensor(best_acc1))
    last = record.finish(tally, test, files=data.files)
    best = record.outcome.best
    for loader in loaders:
        loader.close()
    return {
        "best_epoch": best["epoch"],
        "best_top1": best["top1"],
        **{name: last[name] for name in COLUMNS if name != "best_top1"},
    }
