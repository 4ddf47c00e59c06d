"""One run, from its first or its resumed epoch to the report; two entry points share it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from torch import nn

from common import models
from common.evaluation import group_line, result_lines
from common.training import checkpoint, launch, precision, seeds, speed
from common.training.errors import UsageError
from common.training.launch import Process
from common.training.logs import write_text
from common.training.old_record import Record
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
    state: dict | None,
    seed: int,
    build_model: Callable[..., nn.Module],
    loaders: tuple,
    cls_num_list: Sequence[int],
    process: Process,
    facts: dict[str, object],
) -> dict:
    """Train, or with ``--evaluate`` only evaluate; returns the figures of the run for a summary.

    Args:
        state: the checkpoint to go on from, or None.
        build_model: takes ``num_classes`` and ``use_norm``.
        loaders: training and test loader, seeded with ``seed``.
        facts: what else the report says.
    """
    say = print if process.is_main else lambda *_, **__: None
    train_loader, test_loader = loaders
    num_classes = len(cls_num_list)

    # Model: its head is normalised for LDAM.
    say(f"=> creating model '{args.arch}'", flush=True)
    seeds.seed_everything(seed)
    model = build_model(num_classes=num_classes, use_norm=args.loss_type == "LDAM")
    if args.pretrained and state is None:
        models.resnet.load_pretrained(model, args.arch, args.weights)
    model = model.to(memory_format=speed.memory_format(args.channels_last))
    model = launch.distribute(model, process)

    # One optimiser for both stages: the momentum goes on. Weight decay on everything.
    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scaler = precision.grad_scaler(process.device, args.amp)
    start_epoch, best_acc1 = 0, 0.0
    if args.evaluate and state is None:
        raise UsageError(f"--evaluate --resume {args.resume}: there is no {record.latest} yet")
    if state is not None:
        checkpoint.load_weights(launch.unwrap(model), state["state_dict"], args.resume)
        if not args.evaluate:
            if "optimizer" not in state:
                raise UsageError(f"--resume {args.resume}: has no optimiser state, only weights")
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state.get("scaler", {}))
        start_epoch = state["epoch"]
        # The checkpoint's own figure may be float32: a tie would look like a best.
        best_acc1 = record.best_score or float(state["best_acc1"])

    criteria = [
        build_criterion(args, cls_num_list, stage).to(process.device) for stage in (False, True)
    ]
    if args.evaluate:
        # The stage in which the checkpoint was made.
        stage = in_hml_stage(max(start_epoch - 1, 0), args.loss_type, args.start_hm_epoch)
        tally = evaluate(model, test_loader, criteria[stage], num_classes, args, process)
        result = tally.result(cls_num_list)
        say(result_lines(result) + group_line(result), flush=True)
        return result

    record.open(seed)
    if process.is_main:
        write_text(record.log_dir / "args_history.txt", str(args))
    forward = speed.compiled(forward_pass, args.compile, process, train_loader.full_batch)
    tally = None
    for epoch in range(start_epoch, args.epochs):
        start = time.perf_counter()
        seeds.seed_everything(seed, "training", epoch)
        train_loader.set_epoch(epoch)
        stage = in_hml_stage(epoch, args.loss_type, args.start_hm_epoch)
        lr = learning_rate(epoch, args.lr, stage, schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr

        criterion = criteria[stage]
        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(
            model, train_loader, criterion, optimizer, scaler, epoch, args, process, record, forward
        )
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = sum(cls_num_list) / seconds
        tally = evaluate(model, test_loader, criterion, num_classes, args, process)
        row |= tally.result(cls_num_list)
        row["epoch_s"] = time.perf_counter() - start

        is_best = row["top1"] > best_acc1
        best_acc1 = max(row["top1"], best_acc1)
        record.end_epoch(row, is_best=is_best)
        log_epoch(record, row, best_acc1)
        record.save(
            {
                "epoch": epoch + 1,
                "arch": args.arch,
                "state_dict": launch.unwrap(model).state_dict(),
                "best_acc1": torch.tensor(best_acc1),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
            },
            is_best=is_best,
        )
    record.finish(cls_num_list, confusion=tally and tally.confusion, **facts)
    train_loader.close()
    test_loader.close()
    last, best = record.history[-1], record.best_row
    return {
        "best_epoch": best["epoch"],
        "best_top1": best["top1"],
        **{name: last[name] for name in COLUMNS if name != "best_top1"},
    }
