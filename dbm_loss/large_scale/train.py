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

from common.training import checkpoint, launch, precision, seeds, speed
from common.training.logs import write_text
from common.training.old_record import Record
from dbm_loss.flags import margin_notes
from dbm_loss.large_scale import opts
from dbm_loss.large_scale.data import load_data, make_loaders
from dbm_loss.large_scale.engine import (
    Sums,
    build_criterion,
    class_line,
    evaluate,
    hms,
    log_epoch,
    result_lines,
    train_one_epoch,
)
from dbm_loss.large_scale.models import build_model
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
    say = print if process.is_main else lambda *_, **__: None
    schedule = Schedule(args.dataset, args.lr, args.epochs, args.cos, args.stretch_schedule)
    for note in opts.notes(args, schedule):
        say(note, flush=True)

    # Data: the long-tailed lists as they are.
    data = load_data(args)
    for note in data.notes:
        say(note, flush=True)
    for note in margin_notes(args, data.cls_num_list, data.classes):
        say(note, flush=True)
    args.num_classes = data.num_classes
    args.cls_num_list = data.cls_num_list

    record = Record(
        Path(args.root_log) / args.store_name,
        Path(args.root_model) / args.store_name,
        process,
        vars(args),
        text_logs=("log_train.csv", "log_test.csv"),
        split=data.split,
    )
    state = record.resume(args.resume)
    seed = seeds.choose_seed(args.seed if args.seed is not None else record.seed)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)
    train_loader, _, test_loader, balanced_loader = make_loaders(
        data, args, seed=seed, process=process, memory_format=memory_format
    )

    # Model: with the heads of BCL for bcl.
    say(f"=> creating model '{args.arch}'", flush=True)
    seeds.seed_everything(seed)
    model = build_model(args.loss_fn, args.arch, args.num_classes, args.use_norm)
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
    best_acc1, start_step, sums = 0.0, 0, None
    if state is not None:
        checkpoint.load_weights(launch.unwrap(model), state["state_dict"], args.resume)
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        else:
            say("note: the checkpoint holds no momentum, it starts at 0", flush=True)
        if state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        args.start_epoch, start_step = state["epoch"], state.get("step", 0)
        best_acc1, sums = float(state["best_acc1"]), state.get("sums")
    say("cls num list:", flush=True)
    say(data.cls_num_list, flush=True)

    if args.evaluate:
        tally = evaluate(model, test_loader, args.num_classes, args, process)
        result = tally.result(data.cls_num_list)
        say(result_lines(result) + class_line(result["cls_acc"], most=100), flush=True)
        return result

    record.open(seed)
    if process.is_main:
        write_text(record.log_dir / "args.txt", str(args))

    def snapshot(epoch: int, step: int = 0, sums: Sums | None = None) -> dict:
        """What the checkpoint holds after ``epoch`` whole epochs and ``step`` steps."""
        return {
            "epoch": epoch,
            "step": step,
            "sums": None if sums is None else sums.total(),
            "arch": args.arch,
            "state_dict": launch.unwrap(model).state_dict(),
            "best_acc1": best_acc1,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }

    say("Training started!", flush=True)
    tally = None
    for epoch in range(args.start_epoch, args.epochs):
        say("START!!", flush=True)
        start = time.perf_counter()
        seeds.seed_everything(seed, "training", epoch)
        lr = schedule(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        mixing = args.start_data_aug < epoch < args.epochs - args.end_data_aug
        balanced = balanced_loader if mixing else None
        for loader in filter(None, (train_loader, balanced)):
            loader.set_epoch(epoch, start_step)
        sums = Sums(process, sums)

        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(
            model,
            train_loader,
            balanced,
            criterion,
            optimizer,
            scaler,
            epoch,
            args,
            process,
            record,
            seed,
            sums,
            start_step,
            save=lambda step, epoch=epoch, sums=sums: record.save(snapshot(epoch, step, sums)),
        )
        trained = len(data.train) * (1 - start_step / len(train_loader))  # since this start
        row["images_per_s"] = trained / (time.perf_counter() - start)
        start_step, sums = 0, None
        last = epoch == args.epochs - 1
        if epoch % args.test_epoch == 0 or last or record.best_row is None:
            tally = evaluate(model, test_loader, args.num_classes, args, process)
            row |= tally.result(data.cls_num_list)
        row["epoch_s"] = time.perf_counter() - start

        is_best = row.get("top1", 0.0) > best_acc1
        best_acc1 = max(row.get("top1", 0.0), best_acc1)
        record.end_epoch(row, is_best=is_best)
        for past in record.history[:-1]:
            if past is not record.best_row:  # 8142 numbers an epoch would swell the checkpoint
                past.pop("cls_acc", None)
        log_epoch(record, row, best_acc1)
        state = snapshot(epoch + 1)
        if (epoch + 1) % KEEP_EVERY == 0 and process.is_main:
            checkpoint.save(state, record.model_dir / f"{epoch + 1}_ckpt.pth.tar")
        record.save(state, is_best=is_best)

    took = f"It took {hms(time.perf_counter() - began)} to execute the program"
    say(took, flush=True)
    record.log["log_test.csv"].write(took + "\n")
    record.finish(data.cls_num_list, confusion=tally and tally.confusion, **data.facts)
    for loader in filter(None, (train_loader, test_loader, balanced_loader)):
        loader.close()
    return record.history[-1] if record.history else None


if __name__ == "__main__":
    launch.run(main)
