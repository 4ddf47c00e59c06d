#!/usr/bin/env python
"""Difficulty-aware balancing margin on long-tailed CIFAR-10/100, the digits, or your own images.

    python main.py --gpu 0 --dataset cifar100 --name dbm_bs_m01 --loss_fn bs --imb_ratio 100 \
        --use_norm --use_dbm --max_margin 0.1 --cos --cutout --aug_type autoaug_cifar

AAAI 2025, Table 2: 51.30 % (balanced softmax alone: 49.35 %), ResNet-32, CIFAR-100, ratio 100.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

import torch

from common.evaluation import Tally
from common.imbalance import sample_weights
from common.training import launch, precision, seeds, speed
from common.training.errors import UsageError
from common.training.files import Files
from common.training.learner import Learner
from common.training.record import Record
from common.training.selection import Selection
from datasets.augment import described
from datasets.loaders import drawn_by_weight
from datasets.long_tail import (
    Augmentation,
    load_long_tailed,
    make_loaders,
    make_train_loader,
    require_images,
)
from dbm_loss.cifar import opts
from dbm_loss.cifar.engine import (
    batch_transform,
    build_criterion,
    evaluate,
    forward_pass,
    image_transform,
    log_arguments,
    log_end,
    log_epoch,
    result_lines,
    train_one_epoch,
)
from dbm_loss.cifar.models import build_model
from dbm_loss.flags import about, margin_norm, margin_notes, require_classes


def main(argv: Sequence[str] | None = None) -> dict:
    """Run the program; returns the last epoch's figures."""
    args, schedule = opts.parse_args(argv)
    process = launch.start(args.gpu)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)
    memory_format = speed.memory_format(args.channels_last)
    for note in opts.notes(args, schedule):
        process.say(note)

    # Data: a long-tailed training set, the whole test set.
    names = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
    process.say(f"==> Preparing imbalanced {names.get(args.dataset, args.dataset)}")
    root = Path(args.data_dir)
    data = load_long_tailed(
        args.dataset,
        root / args.dataset if args.dataset in names else root,
        imb_type=args.imb_type,
        imb_factor=1.0 / args.imb_ratio,
        image_size=args.image_size,
        val_fraction=args.val_fraction,
    )
    for note in data.notes:
        process.say(note)
    counts = data.cls_num_list
    require_images(counts, f"--imb_ratio {args.imb_ratio}")
    args.num_class = len(data.classes)
    require_classes(args, data.classes)
    if args.aug_type != "none":
        process.say(args.aug_type)
    process.say(f"#Train: {len(data.train.targets)}, #Test: {len(data.test.targets)}")

    record = Record(
        Files(
            args.out,
            args.out,
            latest="last.pth.tar",
            best="checkpoint.pth.tar",
            numbered="model_{}.pth.tar",
            text_logs=(time.strftime("%Y-%m-%d-%H-%M-%S.txt"),),  # one for each start
            others=("[0-9][0-9][0-9][0-9]-[0-9]*-[0-9]*-[0-9]*-[0-9]*-[0-9]*.txt",),
        ),
        process,
        vars(args),
        data.facts,
        about=about(
            args,
            "dbm_loss/cifar/main.py",
            "resnet32",
            data,
            described.cifar(data.test.images.shape[1]),
        ),
        selection=Selection(data.split, data.chosen_on, later_of_equals=True),
    )
    record.resume(args.resume, args.epochs)
    args.margin_norm = margin_norm(record, data)
    for note in margin_notes(args, counts, data.classes):
        process.say(note)
    seed = seeds.choose_seed(args.seed if args.seed is not None else record.seed)
    process.say(f"Setting {'random' if args.seed is None else 'fixed'} seed: {seed}")
    seeds.set_kernels(process.device, deterministic=args.seed is not None)

    side = data.train.images.shape[1]
    augmentation = Augmentation(batch_transform(args), partial(image_transform, args, side))
    feed = {
        "loader": args.loader,
        "batch_size": args.batch_size,
        "workers": args.workers,
        "process": process,
        "drop_last": args.loss_fn == "ncl",
        "memory_format": memory_format,
    }
    test_batch_size = speed.evaluation_batch(args.batch_size, process.device, side)
    train_loader, val_loader, test_loader = make_loaders(
        data, augmentation, test_batch_size=test_batch_size, seed=seed, **feed
    )
    if not len(train_loader) and not args.evaluate:
        raise UsageError(
            f"--batch-size {args.batch_size}: there are {sum(counts)} training images, and "
            f"--loss_fn {args.loss_fn} takes full batches only; make it smaller"
        )
    balanced_loader = None
    if args.cmo:
        weights = sample_weights(data.train.targets, beta=1.0)
        order = drawn_by_weight(weights, len(weights))
        its_seed = seeds.derive(seed, "balanced")
        balanced_loader = make_train_loader(
            data, augmentation, seed=its_seed, order=order, quiet=True, **feed
        )

    process.say(f"==> creating {args.network}")
    seeds.seed_everything(seed)
    model = build_model(args.loss_fn, args.num_class, args.use_norm)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    process.say(f"    Total params: {size:.2f}M")
    model = model.to(memory_format=memory_format)
    model = launch.distribute(model, process)
    criterion = build_criterion(args, counts, schedule).to(process.device)

    # Optimiser: weight decay on everything; the loss has no parameters, but a group, as published.
    optimizer = torch.optim.SGD(
        [{"params": model.parameters()}, {"params": criterion.parameters()}],
        args.lr,
        momentum=args.momentum,
        weight_decay=args.wd,
        nesterov=args.nesterov,
    )
    scaler = precision.grad_scaler(process.device, args.amp)
    record.restore(model, optimizer, scaler)

    def test(_: int) -> Tally:
        """Evaluate on the test set, whatever the epoch."""
        return evaluate(model, test_loader, args.num_class, args, process)

    if args.evaluate:
        result = test(record.epoch).result(counts)
        for line in result_lines(result):
            process.say(line)
        return result

    record.open(seed)
    log_arguments(record, args)
    forward = speed.compiled(
        forward_pass(args.loss_fn), args.compile, process, train_loader.full_batch
    )
    learner = Learner(model, optimizer, scaler, forward)
    tally = None
    for epoch in range(record.epoch, args.epochs):
        start = time.perf_counter()
        seeds.seed_everything(seed, "training", epoch)
        train_loader.set_epoch(epoch)
        lr = schedule(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        balanced = None
        if args.cmo and 3 < epoch < args.epochs - 3:
            balanced_loader.set_epoch(epoch)
            balanced = balanced_loader

        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(learner, train_loader, criterion, epoch, args, process, balanced)
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = len(data.train.targets) / seconds
        if record.evaluates(epoch, args.epochs, args.eval_every):
            tally = evaluate(model, val_loader, args.num_class, args, process)
            row |= tally.result(counts)
        row["epoch_s"] = time.perf_counter() - start

        log_epoch(record, row, args.epochs)
        hundredth = (epoch + 1) % 100 == 0
        record.end_epoch(row, numbered=hundredth and record.is_best(row))
    log_end(record)
    return record.finish(tally, test, files=data.files)


if __name__ == "__main__":
    launch.run(main)
