"""A whole GML run, from the data to the report; the three programs share it."""

from __future__ import annotations

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from common import models
from common.training import checkpoint, launch, precision, restore, seeds, speed
from common.training.files import Files
from common.training.launch import Process
from common.training.learner import Learner
from common.training.logs import write_text
from common.training.record import Record
from common.training.selection import Selection
from datasets.data import Data
from dbm_loss.flags import margin_norm, margin_notes, without_dbm
from dbm_loss.GML import opts
from dbm_loss.GML.engine import (
    SCALE,
    Means,
    build_criterion,
    build_model,
    build_optimizer,
    evaluate,
    forward_pass,
    load_network,
    log_epoch,
    partition,
    result_lines,
    say,
    train_one_epoch,
)
from dbm_loss.GML.schedule import Schedule, StepSchedule


def train(
    argv: Sequence[str] | None,
    args: Namespace,
    schedule: StepSchedule | Schedule,
    load_data: Callable,
    make_loaders: Callable[..., tuple],
    transform: Callable[..., dict],
) -> dict | None:
    """Train, or with ``--evaluate`` only evaluate; returns the last epoch's figures.

    Args:
        argv: the command line, written to command.txt; None: that of the process.
        load_data: ``load_data(args)``, the training set and the whole test set.
        make_loaders: ``make_loaders(args, data, seed=, process=, memory_format=)`` of training,
            validation and test images.
        transform: ``transform(args, data)`` of a test image, as plain data.
    """
    process = launch.start(args.gpu)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)
    memory_format = speed.memory_format(args.channels_last)
    for note in opts.notes(args, schedule):
        process.say(note)

    data = load_data(args)
    for note in data.notes:
        process.say(note)
    args.num_classes = len(data.cls_num_list)
    args.cls_num_list = data.cls_num_list
    process.say(f"===> Training data length {len(data.train.targets)}")

    folder = Path(args.root_path) / args.dataset / args.mark
    record = Record(
        Files(
            folder,
            folder,
            latest="moco_ckpt.pth.tar",
            best="moco_ckpt.best.pth.tar",
            numbered="moco_ckpt_{:04d}.pth.tar",
            text_logs=(f"{args.mark}.log",),
            events="tb_logs",
        ),
        process,
        vars(args),
        data.facts,
        about=about(args, data, transform),
        selection=Selection(data.split, data.chosen_on),
    )
    state = record.resume(args.resume, args.epochs)
    args.margin_norm = margin_norm(record, data)
    for note in margin_notes(args, data.cls_num_list, data.classes):
        process.say(note)
    seed = seeds.choose_seed(args.seed if args.seed is not None else record.seed)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)
    train_loader, val_loader, test_loader = make_loaders(
        args, data, seed=seed, process=process, memory_format=memory_format
    )

    if args.evaluate:  # what classifies is enough: neither teacher nor queue
        path = checkpoint.find(args.resume, record.latest)
        model = load_network(state, str(path), args.arch, args.num_classes)
        model = launch.distribute(model.to(memory_format=memory_format), process)
        result = evaluate(model, test_loader, args, record).result(data.cls_num_list)
        process.say(result_lines(result))
        return result

    # Model: a cosine classifier alone, or query and key encoder with one, and the queue.
    teacher = load_teacher(args, data.classes, process) if args.path_t else None
    process.say(f"=> creating model '{args.arch}'")
    seeds.seed_everything(seed)
    model = build_model(args, teacher)
    if (args.pretrained or args.weights) and not record.resumed:
        process.say(models.pretrained.load(model.encoder_q, args.arch, args.weights))
        if teacher is None:  # the key encoder is a copy
            model.encoder_k.load_state_dict(model.encoder_q.state_dict())
    criterion = build_criterion(args, data.cls_num_list)
    if process.distributed and process.device.type == "cuda" and args.program == "main":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(memory_format=memory_format)
    # Every process keeps the same queue by itself: no buffer needs to be sent around.
    ddp = {"find_unused_parameters": True, "broadcast_buffers": False}
    model = launch.distribute(model, process, **ddp)
    criterion = launch.distribute(criterion, process, **ddp)

    optimizer = build_optimizer(model, criterion, args)
    scaler = precision.grad_scaler(process.device, args.amp)
    record.restore(
        {"state_dict": model, "criterion": criterion},
        optimizer,
        scaler,
        optional={"criterion": "it holds no temperature, it starts at --moco-t"},  # the original's
    )
    if record.resumed:
        args.start_epoch = record.epoch
    partition(launch.unwrap(model), args)

    start_step, sums = record.place(len(train_loader), Means.figures)
    record.open(seed)
    if process.is_main:
        if not record.resumed:
            write_text(folder / "command.txt", shlex.join(sys.argv[1:] if argv is None else argv))
        cls_weight = launch.unwrap(criterion).cls_weight.tolist()
        write_text(folder / "cls_weight.txt", " ".join(map(str, cls_weight)) + "\n")
    forward = speed.compiled(forward_pass, args.compile, process, train_loader.full_batch)
    learner = Learner(model, optimizer, scaler, forward)
    tally = None
    for epoch in range(args.start_epoch, args.epochs):
        start = time.perf_counter()
        train_loader.set_epoch(epoch, start_step)
        lr = schedule(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        means = Means(process, start_step, sums)

        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(learner, train_loader, criterion, epoch, args, record, means)
        trained = len(data.train.targets) * (1 - start_step / len(train_loader))  # since this start
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = trained / seconds
        start_step, sums = 0, None
        if record.evaluates(epoch, args.epochs, args.eval_every):
            tally = evaluate(model, val_loader, args, record, log=True)
            row |= tally.result(data.cls_num_list)
            say(record, result_lines(row))
        row["epoch_s"] = time.perf_counter() - start

        best = record.best_score_with(row)
        log_epoch(record, row, best, args)
        keep = args.program != "main" and (epoch + 1) % args.print_freq == 0
        record.end_epoch(row, numbered=keep, arch=args.arch, acc=best)
    last = record.finish(
        tally, lambda _: evaluate(model, test_loader, args, record), files=data.files
    )
    return last


def load_teacher(args: Namespace, classes: Sequence[str], process: Process) -> nn.Module:
    """The network of ``--path_t``; it teaches by place, so it has to know the same classes."""
    state, source = checkpoint.load(args.path_t, "--path_t"), f"--path_t {args.path_t}"
    for note in restore.check_classes(state, classes, source):
        process.say(note)
    return load_network(state, source, args.arch_t, args.num_classes)


def about(args: Namespace, data: Data, transform: Callable[..., dict]) -> dict[str, object]:
    """What is trained, for the report and the checkpoints: see ``Record``."""
    method = "balanced softmax" if args.program == "cifar_ce" else "GML"
    head = {} if args.program == "main" else {"head": "fc"}  # where it is not the only name
    return {
        "program": f"dbm_loss/GML/{args.program}.py",
        "method": method if without_dbm(args) else f"{method} with DBM",
        "data": data.name,
        "network": {
            "arch": args.arch,
            "num_classes": args.num_classes,
            "use_norm": args.normalize,
            **head,
        },
        "transform": transform(args, data),
        "scale": SCALE,  # of a linear classifier, too
        "classes": data.classes,
        "cls_num_list": data.cls_num_list,
    }
