"""A whole influence-balanced run, from the data to the report; the two entry points share it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from common import models
from common.evaluation import Tally, group_line, result_lines
from common.imbalance import sample_weights
from common.training import launch, precision, seeds, speed
from common.training.files import Files
from common.training.learner import Learner
from common.training.logs import write_text
from common.training.record import Record
from common.training.selection import Selection
from datasets import augment
from datasets.augment import batch, described
from datasets.data import Data
from datasets.loaders import drawn_by_weight
from datasets.long_tail import (
    Augmentation,
    load_long_tailed,
    make_loaders,
    require_images,
)
from ib_loss import opts
from ib_loss.engine import (
    EVALUATION_BATCH,
    build_criterion,
    evaluate,
    forward_pass,
    log_epoch,
    logit_scale,
    train_one_epoch,
)
from ib_loss.schedule import Schedule, in_ib_phase, learning_rate

TINY = "ib_loss/tinyimage_train.py"  # brings images to 224 pixels, as networks for ImageNet want
ENLARGED = Augmentation(
    batch.random_resized_crop_flip,
    augment.recipes.imagenet_train,
    batch.resize_center_crop,
    augment.recipes.imagenet_eval,
)


def train(
    args: Namespace,
    schedule: Schedule,
    build_model: Callable[..., nn.Module],
    program: str,
) -> dict | None:
    """Train and evaluate as the flags say; returns the last epoch's figures.

    Args:
        build_model: ``build_model(args)``, with random weights.
        program: file of the entry point, which knows how to build the network.
    """
    process = launch.start(args.gpu)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)
    memory_format = speed.memory_format(args.channels_last)
    for note in opts.notes(args, schedule):
        process.say(note)

    # Data: a long-tailed training set, the whole test set.
    data = load_long_tailed(
        args.dataset,
        args.root,
        imb_type=args.imb_type,
        imb_factor=args.imb_factor,
        rand_number=args.rand_number,
        image_size=args.image_size,
        num_classes=args.num_classes,
        val_fraction=args.val_fraction,
    )
    for note in data.notes:
        process.say(note)
    args.num_classes = len(data.classes)
    args.cls_num_list = data.cls_num_list
    if args.train_rule != "None":
        require_images(data.cls_num_list, f"--train_rule {args.train_rule}")
    if args.loss_type == "LDAM":
        require_images(data.cls_num_list, "--loss_type LDAM")

    record = Record(
        Files(
            Path(args.root_log) / args.store_name,
            Path(args.root_model) / args.store_name,
            text_logs=("log_train.csv", "log_test.csv"),
        ),
        process,
        vars(args),
        data.facts,
        about=about(args, data, program),
        selection=Selection(data.split, data.chosen_on),
    )
    record.resume(args.resume, args.epochs)
    seed = seeds.choose_seed(args.seed if args.seed is not None else record.seed)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)

    augmentation = ENLARGED if program == TINY else Augmentation()
    side = 224 if program == TINY else data.test.images.shape[1]  # of what the network sees
    order = None
    if args.train_rule == "Resample":
        order = drawn_by_weight(sample_weights(data.train.targets), len(data.train.targets))
    train_loader, val_loader, test_loader = make_loaders(
        data,
        augmentation,
        loader=args.loader,
        batch_size=args.batch_size,
        test_batch_size=speed.evaluation_batch(EVALUATION_BATCH, process.device, side),
        workers=args.workers,
        seed=seed,
        process=process,
        order=order,
        memory_format=memory_format,
    )

    process.say(f"=> creating model '{args.arch}'")
    seeds.seed_everything(seed)
    model = build_model(args)
    if (args.pretrained or args.weights) and not record.resumed:
        process.say(models.pretrained.load(model, args.arch, args.weights, opts.FROM_SCRATCH))
    model = model.to(memory_format=memory_format)
    model = launch.distribute(model, process)

    # Optimiser: weight decay on everything, as in the original.
    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scaler = precision.grad_scaler(process.device, args.amp)
    record.restore(model, optimizer, scaler)
    if record.resumed:
        args.start_epoch = record.epoch
    process.say("cls num list:")
    process.say(data.cls_num_list)

    criteria: dict[tuple[bool, bool], nn.Module] = {}

    def criterion_of(epoch: int) -> nn.Module:
        """The criterion of ``epoch``, the same one for all epochs of a phase."""
        deferred = args.train_rule == "DRW" and epoch >= schedule.drw_epoch
        phase = in_ib_phase(epoch, args.loss_type, args.start_ib_epoch), deferred
        if phase not in criteria:
            criterion = build_criterion(args, data.cls_num_list, epoch, schedule.drw_epoch)
            criteria[phase] = criterion.to(process.device)
        return criteria[phase]

    def test(epoch: int) -> Tally:
        """Evaluate on the test set, with the loss of the phase of ``epoch``."""
        criterion = criterion_of(epoch)
        return evaluate(model, test_loader, criterion, args.num_classes, args, process)

    if args.evaluate:
        result = test(max(args.start_epoch - 1, 0)).result(data.cls_num_list)
        process.say(result_lines(result, record.selection.name_of_test) + group_line(result))
        return result

    record.open(seed)
    forward = speed.compiled(forward_pass, args.compile, process, train_loader.full_batch)
    learner = Learner(model, optimizer, scaler, forward)
    if process.is_main:
        write_text(record.log_dir / "args.txt", str(args))
    tally = None
    for epoch in range(args.start_epoch, args.epochs):
        start = time.perf_counter()
        seeds.seed_everything(seed, "training", epoch)
        train_loader.set_epoch(epoch)
        ib_phase = in_ib_phase(epoch, args.loss_type, args.start_ib_epoch)
        lr = learning_rate(epoch, args.lr, ib_phase, schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr

        criterion = criterion_of(epoch)
        row = {"epoch": epoch, "lr": lr}
        row |= train_one_epoch(learner, train_loader, criterion, epoch, args, record)
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = len(data.train.targets) / seconds
        if record.evaluates(epoch, args.epochs, args.eval_every):
            tally = evaluate(model, val_loader, criterion, args.num_classes, args, process)
            row |= tally.result(data.cls_num_list)
        row["epoch_s"] = time.perf_counter() - start

        best_acc1 = record.best_score_with(row)
        log_epoch(record, row, best_acc1)
        record.end_epoch(row, arch=args.arch, best_acc1=torch.tensor(best_acc1))
    last = record.finish(tally, test, files=data.files)
    for loader in (train_loader, val_loader, test_loader):
        loader.close()
    return last


def about(args: Namespace, data: Data, program: str) -> dict[str, object]:
    """What is trained, for the report and the checkpoints: see ``Record``."""
    rule = "" if args.train_rule == "None" else f", {args.train_rule}"
    tiny = program == TINY
    side = data.test.images.shape[1]
    return {
        "program": program,
        "method": f"{args.loss_type}{rule}",
        "data": data.name,
        "network": {
            "arch": args.arch,
            "num_classes": args.num_classes,
            "use_norm": args.loss_type == "LDAM" and not tiny,
        },
        "transform": described.imagenet(square=side) if tiny else described.cifar(side),
        "scale": logit_scale(args),
        "classes": data.classes,
        "cls_num_list": data.cls_num_list,
    }
