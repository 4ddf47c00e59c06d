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

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from torch import nn

from common.evaluation import Tally
from common.models import archs
from common.training import checkpoint, launch, precision, seeds, speed
from common.training.errors import UsageError
from common.training.logs import write_text
from common.training.old_record import Record
from datasets.loaders import WorkersLoader
from dbm_loss.flags import margin_notes
from dbm_loss.GML import opts
from dbm_loss.GML.data import train_batch_size
from dbm_loss.GML.engine import (
    Means,
    build_criterion,
    build_moco,
    build_optimizer,
    evaluate,
    load_criterion,
    load_teacher,
    log_epoch,
    partition,
    result_lines,
    train_one_epoch,
)
from dbm_loss.GML.imagenet import load_imagenet, normalized


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures (None if child processes did the work)."""
    args, schedule = opts.parse_args(argv, "main")
    if args.multiprocessing_distributed and launch.fan_out(main, argv, per_machine=True):
        return None
    process = launch.start()
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)
    memory_format = speed.memory_format(args.channels_last)
    say = print if process.is_main else lambda *_, **__: None
    for note in opts.notes(args, schedule):
        say(note, flush=True)

    # Data: the long-tailed lists as they are. The view of the keys only if there is use for keys.
    contrast = args.alpha > 0 or args.beta > 0
    data = load_imagenet(args, views=3 if contrast else 2)
    for note in data.notes:
        say(note, flush=True)
    for note in margin_notes(args, data.cls_num_list, data.classes):
        say(note, flush=True)
    args.num_classes = data.num_classes
    args.cls_num_list = data.cls_num_list
    say(f"===> Training data length {len(data.train)}", flush=True)

    folder = Path(args.root_path) / args.dataset / args.mark
    log = f"{args.mark}.log"
    record = Record(
        folder,
        folder,
        process,
        vars(args),
        latest="moco_ckpt.pth.tar",
        best="moco_ckpt.best.pth.tar",
        text_logs=(log,),
        events="tb_logs",
        split=data.split,
    )
    if record.latest.is_file() and not (args.resume or args.overwrite):
        raise UsageError(
            f"--mark {args.mark}: {folder} holds a run already; go on with --resume auto, replace "
            "it with --overwrite, or choose another --mark"
        )
    state = record.resume(args.resume)
    seed = seeds.choose_seed(args.seed if args.seed is not None else record.seed)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)

    # --batch_size and --workers are those of a machine.
    local, machines = process.local_world_size, process.world_size // process.local_world_size
    batch_size = train_batch_size(args, len(data.train), machines)
    share = max(batch_size // process.world_size, 1)
    feed = {
        "workers": -(-args.workers // local), "seed": seed, "process": process,
        "memory_format": memory_format, "finish": normalized(args),
    }  # fmt: skip
    train_loader = WorkersLoader(data.train, share * process.world_size, drop_last=True, **feed)
    test_loader = WorkersLoader(data.test, share, train=False, **feed)

    # Model: query and key encoder with a cosine classifier, and the queue.
    teacher = None
    if args.path_t:
        teacher = load_teacher(args.path_t, archs.constructor(args.arch_t), args.num_classes)
    say(f"=> creating model '{args.arch}'", flush=True)
    seeds.seed_everything(seed)
    model = build_moco(args, archs.constructor(args.arch), teacher)
    criterion = build_criterion(args, data.cls_num_list)
    if state is not None:
        checkpoint.load_weights(model, state["state_dict"], args.resume)
        load_criterion(criterion, state, say)
    partition(model, criterion, args)
    if process.distributed and process.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(memory_format=memory_format)
    # Every process keeps the same queue by itself: no buffer needs to be sent around.
    ddp = {"find_unused_parameters": True, "broadcast_buffers": False}
    model = launch.distribute(model, process, **ddp)
    criterion = launch.distribute(criterion, process, **ddp)

    optimizer = build_optimizer(model, criterion, args)
    scaler = precision.grad_scaler(process.device, args.amp)
    start_epoch, start_step, sums = 0, 0, None
    if state is not None:
        if not args.evaluate:
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state.get("scaler", {}))
        start_epoch, start_step, sums = state["epoch"], state.get("step", 0), state.get("sums")

    def test(write: Callable[[str], None]) -> Tally:
        """Evaluate; ``write`` takes the log lines."""
        return evaluate(model, test_loader, args, process, write)

    if args.evaluate:
        result = test(lambda line: say(line, flush=True)).result(data.cls_num_list)
        say(result_lines(result), flush=True)
        return result

    record.open(seed)
    if process.is_main:
        if state is None:
            write_text(folder / "command.txt", shlex.join(sys.argv[1:] if argv is None else argv))
        cls_weight = launch.unwrap(criterion).cls_weight.tolist()
        write_text(folder / "cls_weight.txt", " ".join(map(str, cls_weight)) + "\n")

    def write(text: str) -> None:
        """Print a log line and append it to the log."""
        say(text, flush=True)
        record.log[log].write(text + "\n")

    def snapshot(epoch: int, step: int = 0, means: Means | None = None) -> dict:
        """What the checkpoint holds after ``epoch`` whole epochs and ``step`` steps."""
        return {
            "epoch": epoch,
            "step": step,
            "sums": None if means is None else means.state(),
            "arch": args.arch,
            "acc": record.best_score,
            "state_dict": launch.unwrap(model).state_dict(),
            "criterion": launch.unwrap(criterion).state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }

    tally = None
    for epoch in range(start_epoch, args.epochs):
        start = time.perf_counter()
        train_loader.set_epoch(epoch, start_step)
        lr = schedule(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        means = Means(process, sums)

        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(
            model,
            train_loader,
            criterion,
            optimizer,
            scaler,
            epoch,
            args,
            process,
            record,
            means,
            start_step,
            save=lambda step, epoch=epoch, means=means: record.save(snapshot(epoch, step, means)),
        )
        start_step, sums = 0, None
        row["images_per_s"] = len(data.train) / (time.perf_counter() - start)
        tally = test(write)
        row |= tally.result(data.cls_num_list)
        row["epoch_s"] = time.perf_counter() - start
        write(result_lines(row))

        is_best = record.best_row is None or row["top1"] > record.best_score
        record.end_epoch(row, is_best=is_best)
        log_epoch(record, row, args)
        record.save(snapshot(epoch + 1), is_best=is_best)
    record.finish(data.cls_num_list, confusion=tally and tally.confusion, **data.facts)
    return record.history[-1] if record.history else None


if __name__ == "__main__":
    launch.run(main)
