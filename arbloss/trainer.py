"""A whole run of either stage, from the data to the report."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pprint import pformat

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from arbloss import opts
from arbloss.data import load_data, make_loaders, transform
from arbloss.engine import (
    Say,
    build_criterion,
    class_counter,
    evaluate,
    forward_pass,
    log_line,
    log_scalars,
    result_lines,
    results,
    train_one_epoch,
)
from arbloss.models import Network
from arbloss.reliability import draw_reliability_diagram
from arbloss.start import (
    BEST,
    LATEST,
    other_images,
    run_folder,
    score_to_beat,
    start_process,
)
from common import models
from common.evaluation import Tally
from common.training import checkpoint, launch, precision, restore, seeds, speed
from common.training.files import Files
from common.training.learner import Learner
from common.training.logs import write_text
from common.training.record import Record
from common.training.report import epoch_title
from common.training.selection import Selection
from datasets.data import Data


def train(
    args: Namespace,
    config: CfgNode,
    stage: int,
    trained_parts: Callable[[Network], Sequence[nn.Module]],
    learning_rates: Callable[[CfgNode, int], Sequence[float]],
) -> dict | None:
    """Train and evaluate as the configuration says; returns the last epoch's figures.

    Args:
        trained_parts: the modules of the network that this stage trains.
        learning_rates: ``learning_rates(config, epoch)``, one for each of them.
    """
    notes = opts.check(config, stage)
    process, more_notes = start_process(config, args.local_rank)
    opts.check_batch(config, stage, process.local_world_size)
    channels_last = speed.use_channels_last(config.channels_last, process.device, config.amp)
    memory_format = speed.memory_format(channels_last)

    # Data: a long-tailed training set, the whole test set.
    data = load_data(config)
    counts = data.cls_num_list

    folder = run_folder(args.cfg, config, stage, data)
    if stage == 1 and not folder.resume:  # which `resume auto` may not have found
        opts.check_published(config)
    log_name = f"{opts.stem(args.cfg)}.txt"
    record = Record(
        Files(
            folder.path / config.log_dir,
            folder.path / config.model_dir,
            latest=LATEST,
            best=BEST,
            text_logs=(log_name,),
            others=("gradient_norms_*.npy", "reliability.png"),
        ),
        process,
        {**config, "channels_last": channels_last},
        data.facts,
        about=about(config, data, stage),
        selection=Selection(data.split, data.chosen_on),
        dashes="",
    )
    state, stage1 = None, None
    if stage == 2 and not folder.continues:
        # Its weights are where this stage begins; its history and its epochs are not this run's.
        record.claim("")
        stage1 = checkpoint.load(folder.resume, "resume")
        restore.check_checkpoint(stage1, folder.resume, weights_alone=True)
        notes += restore.check_classes(stage1, data.classes, folder.resume)
        record.best_score, why_not = score_to_beat(stage1, data)
        notes += other_images(stage1, data.facts) + why_not
    else:
        # Absolute folders may hold what was killed in its first epoch: only auto begins it again.
        begins = config.resume == "auto" and not record.latest.is_file()
        state = record.resume("auto" if begins else folder.resume, config.num_epochs)
    before = state or stage1 or {}
    its_ece = float(before.get("its_ece", 100.0))  # of the best epoch

    wanted = 0 if config.seed is None and config.deterministic else config.seed
    seed = seeds.choose_seed(record.seed if wanted is None else wanted)
    seeds.set_kernels(process.device, deterministic=wanted is not None)
    machines = process.world_size // process.local_world_size
    loaders = train_loader, val_loader, test_loader = make_loaders(
        data,
        config,
        batch_size=config.batch_size * machines,  # the key is the total of a machine
        seed=seed,
        process=process,
        memory_format=memory_format,
        balanced=stage == 2 and not config.train_stage2_instance,
    )

    # Model: stage 2 begins where stage 1 ended; see Network for what each of them trains.
    seeds.seed_everything(seed)
    network = Network(
        config.backbone,
        config.num_classes,
        places=config.dataset == "places",
        stage=stage,
        shift_bn=config.shift_bn,
    )
    if stage1 is not None:
        network.load_parts(stage1, f"resume {folder.resume}")
    elif state is None and opts.wants_weights(config):
        arch = config.backbone.removesuffix("_fe")
        cure = opts.from_scratch(config)
        notes.append(models.pretrained.load(network.model, arch, config.weights or None, cure))
    network = network.to(memory_format=memory_format)
    model = launch.distribute(network, process)

    # Optimiser: a group for each part, weight decay on everything as in the original.
    optimizer = torch.optim.SGD(
        [{"params": part.parameters()} for part in trained_parts(network)],
        config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    scaler = precision.grad_scaler(process.device, config.amp)
    record.restore(
        network.parts(),
        optimizer,
        scaler,
        optional={"optimizer": "it holds no momentum, it starts at 0"},  # the original's
    )
    criterion = build_criterion(config, stage, counts).to(process.device)
    count = class_counter(config, stage, counts, process.device)

    record.open(seed)
    say = partial(log_line, record.log[log_name], process)
    if process.is_main:
        write_text(record.log_dir / "config.yaml", config.dump())
    say("\n" + pformat(vars(args)))
    say("\n" + str(config))
    for note in (*notes, *more_notes, *folder.notes, *data.notes):
        say(note)
    if process.device.type == "cpu":
        say("using CPU, this will be slow")
    else:
        say(f"Use GPU: {process.device.index} for training")

    forward = speed.compiled(forward_pass, config.compile, process, train_loader.full_batch)
    learner = Learner(model, optimizer, scaler, forward)
    tally = None
    for epoch in range(record.epoch, config.num_epochs):
        start = time.perf_counter()
        seeds.seed_everything(seed, "training", epoch)
        train_loader.set_epoch(epoch)
        for group, lr in zip(optimizer.param_groups, learning_rates(config, epoch), strict=True):
            group["lr"] = lr

        row = {"epoch": epoch, "lr": lr}
        means, norms = train_one_epoch(
            learner, train_loader, criterion, count, epoch, config, process, say
        )
        row |= means
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = len(data.train.targets) / seconds
        if record.evaluates(epoch, config.num_epochs, config.eval_every):
            tally = evaluate(model, val_loader, config, process, say)
            row |= results(tally, counts, config)
        row["epoch_s"] = time.perf_counter() - start

        if norms is not None:
            row |= gradient_norms(norms, epoch, record, say)
        if record.is_best(row):
            its_ece = row["ece"]
        best_acc1 = record.best_score_with(row)
        if "top1" in row:  # not every epoch, with eval_every
            for line in result_lines(row, tally, counts, config):
                say(line)
            say(f"Best {record.selection.score_name}: {best_acc1:.3f}% ECE: {its_ece:.3f}%\n")
        log_scalars(record.writer, row)
        best_acc1 = torch.tensor(best_acc1, dtype=torch.float64)
        record.end_epoch(row, best_acc1=best_acc1, its_ece=its_ece)

    def test(_: int) -> Tally:
        """Evaluate on the test set, whatever the epoch; the log has the last epoch's lines."""
        return evaluate(model, test_loader, config, process, lambda text, *_: process.say(text))

    last = record.finish(
        tally,
        test,
        figures=lambda tally: results(tally, counts, config),
        files=data.files,
    )
    for loader in loaders:
        loader.close()
    if process.is_main:
        title = epoch_title(record.about, record.selection, record.outcome.epoch)
        bins = record.outcome.tally.bins
        draw_reliability_diagram(bins, record.log_dir / "reliability.png", title)
    return last


def gradient_norms(norms: Tensor, epoch: int, record: Record, say: Say) -> dict[str, float]:
    """Write the matrix of the diagnostic; its mean attraction and repulsion for the log."""
    diagonal = norms.diagonal()
    others = norms.numel() - len(diagonal)
    if record.process.is_main:
        path = record.log_dir / f"gradient_norms_{epoch:03d}.npy"
        with checkpoint.atomic_file(path) as file:
            np.save(file, norms.cpu().numpy())
    attraction = float(diagonal.mean())
    repulsion = float((norms.sum() - diagonal.sum()) / max(others, 1))
    say(f"mean gradient norm: attraction {attraction:.6f} repulsion {repulsion:.6f}")
    return {"attraction": attraction, "repulsion": repulsion}


def about(config: CfgNode, data: Data, stage: int) -> dict[str, object]:
    """What is trained, for the report and the checkpoints: see ``Record``."""
    return {
        "program": f"arbloss/train_stage{stage}.py",
        "method": method(config, stage),
        "data": data.name,
        "network": {
            "arch": config.backbone,
            "num_classes": config.num_classes,
            "places": config.dataset == "places",
            "stage": stage,
        },
        "transform": transform(config, data),
        "classes": data.classes,
        "cls_num_list": data.cls_num_list,
    }


def method(config: CfgNode, stage: int) -> str:
    """The loss of a stage in words, and what else the files of the configurations vary."""
    if stage == 1:  # as build_criterion chooses
        names = {"LAS": "ARB-Loss with LAS" if config.arbloss else "LAS", "arbloss": "ARB-Loss"}
        other = "CE"
    else:
        names = {"arbloss": "ARB-Loss", "arbloss_fl": "ARB-Focal", "warbloss": "WARB-Loss"}
        other = "LAS"
    name = next((name for key, name in names.items() if config[key]), other)
    if config.mixup:
        name += " with mixup"
    if config.arb_loss_use_global_class_cnt and opts.takes_counts(config, stage):
        name += ", counts of the training set"
    return name if stage == 1 else f"stage 2 by {name}"
