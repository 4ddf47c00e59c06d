#!/usr/bin/env python
"""Difficulty-aware balancing margin on ImageNet-LT, iNaturalist 2018, or a folder of images.

    python train.py --dataset imgnet --num_classes 1000 --root datasets/imagenet-LT --epochs 90 \
        --arch resnet50 --use_norm --use_dbm --wd 5e-4 --cos --lr 0.1 --batch_size 256 \
        --loss_type BCL --exp_str dbm_bcl_resnet_m01 --max_margin 0.1

AAAI 2025, Table 3: 56.3 % (BCL without the margin: 56.0 %) on ImageNet-LT.
All visible GPUs work on each batch; the paper had four.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

import torch

from common.evaluation import Tally
from common.models import pretrained
from common.training import launch, precision, seeds, speed
from common.training.files import Files
from common.training.learner import Learner
from common.training.logs import write_text
from common.training.record import Record
from common.training.selection import Selection
from dbm_loss.flags import about, margin_norm, margin_notes, require_classes
from dbm_loss.large_scale import opts
from dbm_loss.large_scale.data import (
    Source,
    load_data,
    make_loaders,
    test_transform,
    train_recipes,
)
from dbm_loss.large_scale.engine import (
    Sums,
    build_criterion,
    class_line,
    evaluate,
    forward_pass,
    hms,
    log_epoch,
    result_lines,
    train_one_epoch,
)
from dbm_loss.large_scale.models import ARCHITECTURES, build_model
from dbm_loss.large_scale.schedule import Schedule

KEEP_EVERY = 20  # epochs whose checkpoint is kept under its number


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures (None if child processes did the work)."""
    began = time.perf_counter()
    args = opts.parse_args(argv)
    if launch.fan_out(main, argv, args.gpu):
        return None
    process = launch.start(args.gpu)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)
    memory_format = speed.memory_format(args.channels_last)
    schedule = Schedule(args.dataset, args.lr, args.epochs, args.cos, args.stretch_schedule)
    for note in opts.notes(args, schedule):
        process.say(note)

    # Data: the long-tailed lists as they are.
    data = load_data(Source.of(args), train_recipes(args.loss_fn))
    for note in data.notes:
        process.say(note)
    args.num_classes = len(data.classes)
    require_classes(args, data.classes)
    args.cls_num_list = data.cls_num_list

    record = Record(
        Files(
            Path(args.root_log) / args.store_name,
            Path(args.root_model) / args.store_name,
            numbered="{}_ckpt.pth.tar",
            text_logs=("log_train.csv", "log_test.csv"),
        ),
        process,
        vars(args),
        data.facts,
        about=about(args, "dbm_loss/large_scale/train.py", args.arch, data, test_transform(args)),
        selection=Selection(data.split, data.chosen_on),
    )
    record.resume(args.resume, args.epochs)
    args.margin_norm = margin_norm(record, data)
    for note in margin_notes(args, data.cls_num_list, data.classes):
        process.say(note)
    seed = seeds.choose_seed(args.seed if args.seed is not None else record.seed)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)
    train_loader, val_loader, test_loader, balanced_loader = make_loaders(
        data, args, seed=seed, process=process, memory_format=memory_format
    )

    # Model: with the heads of BCL for bcl.
    process.say(f"=> creating model '{args.arch}'")
    seeds.seed_everything(seed)
    model = build_model(args.loss_fn, args.arch, args.num_classes, args.use_norm)
    if (args.pretrained or args.weights) and not record.resumed:
        encoder = model.encoder if args.loss_fn == "bcl" else model
        process.say(pretrained.load(encoder, ARCHITECTURES[args.arch], args.weights))
    model = model.to(memory_format=memory_format)
    model = launch.distribute(model, process)
    criterion = build_criterion(args, data.cls_num_list, schedule.drw_epoch).to(process.device)

    # Optimiser: weight decay on everything, as in the original.
    optimizer = torch.optim.SGD(
        model.parameters(),
        args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        nesterov=args.nesterov,
    )
    scaler = precision.grad_scaler(process.device, args.amp)
    record.restore(
        model,
        optimizer,
        scaler,
        optional={"optimizer": "it holds no momentum, it starts at 0"},  # the original's
    )
    if record.resumed:
        args.start_epoch = record.epoch
    process.say("cls num list:")
    process.say(data.cls_num_list)

    def test(_: int) -> Tally:
        """Evaluate on the test set, whatever the epoch."""
        return evaluate(model, test_loader, args.num_classes, args, process)

    if args.evaluate:
        result = test(record.epoch).result(data.cls_num_list)
        split = record.selection.name_of_test
        process.say(result_lines(result, split) + class_line(result["cls_acc"], 100, split))
        return result

    start_step, sums = record.place(len(train_loader), Sums.figures)
    record.open(seed)
    if process.is_main:
        write_text(record.log_dir / "args.txt", str(args))

    process.say("Training started!")
    forward = speed.compiled(
        forward_pass(args.loss_fn), args.compile, process, train_loader.full_batch
    )
    learner = Learner(model, optimizer, scaler, forward)
    tally = None
    for epoch in range(args.start_epoch, args.epochs):
        process.say("START!!")
        start = time.perf_counter()
        seeds.seed_everything(seed, "training", epoch)
        lr = schedule(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        mixing = args.start_data_aug < epoch < args.epochs - args.end_data_aug
        loaders = train_loader, balanced_loader if mixing else None
        for loader in filter(None, loaders):
            loader.set_epoch(epoch, start_step)
        sums = Sums(process, start_step, sums)

        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(learner, loaders, criterion, epoch, args, record, sums)
        trained = len(data.train) * (1 - start_step / len(train_loader))  # since this start
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = trained / seconds
        start_step, sums = 0, None
        if record.evaluates(epoch, args.epochs, args.test_epoch):
            tally = evaluate(model, val_loader, args.num_classes, args, process)
            row |= tally.result(data.cls_num_list)
        row["epoch_s"] = time.perf_counter() - start

        best_acc1 = record.best_score_with(row)
        log_epoch(record, row, best_acc1)
        keep = (epoch + 1) % KEEP_EVERY == 0
        record.end_epoch(row, numbered=keep, arch=args.arch, best_acc1=best_acc1)

    took = f"It took {hms(time.perf_counter() - began)} to execute the program"
    process.say(took)
    record.log["log_test.csv"].write(took + "\n")
    last = record.finish(tally, test, files=data.files)
    for loader in filter(None, (train_loader, val_loader, test_loader, balanced_loader)):
        loader.close()
    return last


if __name__ == "__main__":
    launch.run(main)
