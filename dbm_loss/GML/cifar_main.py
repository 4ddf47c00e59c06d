#!/usr/bin/env python
"""GML on long-tailed CIFAR, the embedded digits, or a folder of images: the student.

    python cifar_main.py --dataset cifar100 --imb-factor 0.01 --arch resnet32 --arch_t resnet56 \
        --path_t ./outputs/cifar100/ce_CIFAR100_imb001_R56_lr0.1_0/moco_ckpt.pth.tar --feat_t 64 \
        --batch-size 128 --learning-rate 0.1 --mark CIFAR100_imb001_R32_tR56 --use_dbm

Son et al., AAAI 2025, Table 2: 53.70 % (GML without the margin: 53.12 %) on CIFAR-100, ratio 100.
``cifar_ce.py`` trains the teacher; without ``--path_t`` a momentum encoder takes its place.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from torch import nn

from common.evaluation import Tally
from common.models import archs
from common.training import checkpoint, launch, precision, seeds, speed
from common.training.old_record import Record
from datasets.long_tail import make_loaders, require_images
from dbm_loss.flags import margin_notes
from dbm_loss.GML import opts
from dbm_loss.GML.data import (
    cifar_device_views,
    cifar_views,
    load_cifar,
    train_batch_size,
)
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


def network(arch: str) -> Callable[..., nn.Module]:
    """Constructor of a CIFAR ResNet whose classifier is named ``fc``, as in the original."""
    return partial(archs.constructor(arch), head="fc")


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Run the program; returns the last epoch's figures."""
    args, schedule = opts.parse_args(argv, "cifar_main")
    process = launch.start(args.gpu)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)
    memory_format = speed.memory_format(args.channels_last)
    say = print if process.is_main else lambda *_, **__: None
    for note in opts.notes(args, schedule):
        say(note, flush=True)

    # Data: a long-tailed training set, the whole test set.
    data = load_cifar(args)
    for note in data.notes:
        say(note, flush=True)
    require_images(data.cls_num_list, "the loss")
    for note in margin_notes(args, data.cls_num_list, data.classes):
        say(note, flush=True)
    args.num_classes = len(data.classes)
    args.cls_num_list = data.cls_num_list
    say(f"===> Training data length {len(data.train.targets)}", flush=True)

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
    state = record.resume(args.resume)
    seed = seeds.choose_seed(args.seed if args.seed is not None else record.seed)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)
    # Views for classifier, query and key; the last one only if there is use for keys.
    contrast = args.alpha > 0 or args.beta > 0
    views = 3 if contrast else 2
    train_loader, _, test_loader = make_loaders(
        data,
        loader=args.loader,
        batch_size=train_batch_size(args, len(data.train.targets)),
        test_batch_size=args.batch_size,
        workers=args.workers,
        seed=seed,
        process=process,
        device_transform=cifar_device_views(views),
        image_recipe=partial(cifar_views, views, data.train.images.shape[1]),
        drop_last=True,
        memory_format=memory_format,
    )

    # Model: query and key encoder with a cosine classifier named fc, and the queue.
    teacher = None
    if args.path_t:
        teacher = load_teacher(args.path_t, network(args.arch_t), args.num_classes)
    say(f"=> creating model '{args.arch}'", flush=True)
    seeds.seed_everything(seed)
    model = build_moco(args, network(args.arch), teacher)
    criterion = build_criterion(args, data.cls_num_list)
    if state is not None:
        checkpoint.load_weights(model, state["state_dict"], args.resume)
        load_criterion(criterion, state, say)
    partition(model, criterion, args)
    model = model.to(memory_format=memory_format)
    # Every process keeps the same queue by itself: no buffer needs to be sent around.
    ddp = {"find_unused_parameters": True, "broadcast_buffers": False}
    model = launch.distribute(model, process, **ddp)
    criterion = launch.distribute(criterion, process, **ddp)

    optimizer = build_optimizer(model, criterion, args)
    scaler = precision.grad_scaler(process.device, args.amp)
    if state is not None:
        if not args.evaluate:
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state.get("scaler", {}))
        args.start_epoch = state["epoch"]

    def test(write: Callable[[str], None]) -> Tally:
        """Evaluate; ``write`` takes the log lines."""
        return evaluate(model, test_loader, args, process, write)

    if args.evaluate:
        result = test(lambda line: say(line, flush=True)).result(data.cls_num_list)
        say(result_lines(result), flush=True)
        return result

    record.open(seed)

    def write(text: str) -> None:
        """Print a log line and append it to the log."""
        say(text, flush=True)
        record.log[log].write(text + "\n")

    tally = None
    for epoch in range(args.start_epoch, args.epochs):
        start = time.perf_counter()
        train_loader.set_epoch(epoch)
        lr = schedule(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr

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
            Means(process),
        )
        row["images_per_s"] = len(data.train.targets) / (time.perf_counter() - start)
        tally = test(write)
        row |= tally.result(data.cls_num_list)
        row["epoch_s"] = time.perf_counter() - start
        write(result_lines(row))

        is_best = record.best_row is None or row["top1"] > record.best_score
        record.end_epoch(row, is_best=is_best)
        log_epoch(record, row, args)
        state = {
            "epoch": epoch + 1,
            "arch": args.arch,
            "state_dict": launch.unwrap(model).state_dict(),
            "optimizer": optimizer.state_dict(),
            "criterion": launch.unwrap(criterion).state_dict(),
            "scaler": scaler.state_dict(),
        }
        if (epoch + 1) % args.print_freq == 0 and process.is_main:
            checkpoint.save(state, folder / f"moco_ckpt_{epoch + 1:04d}.pth.tar")
        record.save(state, is_best=is_best)
    record.finish(
        data.cls_num_list,
        confusion=tally and tally.confusion,
        class_names=data.classes,
        **data.facts,
    )
    return record.history[-1] if record.history else None


if __name__ == "__main__":
    launch.run(main)
