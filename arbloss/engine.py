"""The criterion, one training epoch and one evaluation, of both stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from arbloss import opts
from arbloss.diagnostic import attraction_repulsion
from arbloss.losses import (
    ARBFocalLoss,
    ARBLoss,
    LabelAwareSmoothing,
    WARBLoss,
    batch_class_counts,
    full_precision,
)
from arbloss.mixup import mixup_criterion, mixup_data
from common.evaluation import Running, Tally, accuracy, finite_mean
from common.training.launch import Process, all_reduce_sum, sync_buffers, unwrap
from common.training.learner import Learner
from common.training.logs import AverageMeter, Events, Progress, TextLog
from common.training.precision import FiniteGuard, autocast

FIELDS = (("Time", "6.3f"), ("Loss", ".3f"), ("Acc@1", "6.3f"), ("Acc@5", "6.3f"))
Say = Callable[..., None]  # a line, and optionally the function that shows it


def build_criterion(config: CfgNode, stage: int, cls_num_list: Sequence[int]) -> nn.Module:
    """The training criterion of a stage: the first that the keys name.

    Every label of a batch is counted (``class_counter``), so the losses need not check it.
    """
    smoothing = partial(
        LabelAwareSmoothing, cls_num_list, config.smooth_head, config.smooth_tail, validate=False
    )
    if stage == 1 and config.LAS:
        return smoothing()
    if config.arbloss:
        return ARBLoss(validate=False)
    if stage == 1:
        return nn.CrossEntropyLoss()
    if config.arbloss_fl:
        return ARBFocalLoss(validate=False)
    if config.warbloss:
        return WARBLoss(ugcc=config.arb_loss_use_global_class_cnt, validate=False)
    return smoothing()


def class_counter(
    config: CfgNode, stage: int, cls_num_list: Sequence[int], device: torch.device
) -> Callable[[Tensor], Tensor] | None:
    """Labels (B,) -> the class counts (C,) that the criterion takes; None if it takes none.

    With ``arb_loss_use_global_class_cnt`` those of the training set, else those of the labels, in
    each process for itself.
    """
    if not opts.takes_counts(config, stage):
        return None
    if config.arb_loss_use_global_class_cnt:
        class_cnt = torch.tensor(cls_num_list, dtype=torch.float32, device=device)
        return lambda target: class_cnt
    return lambda target: batch_class_counts(target, config.num_classes)


def forward_pass(
    model: nn.Module,
    criterion: nn.Module,
    images: Tensor,
    target: Tensor,
    counts: Tensor | None = None,
    other: Tensor | None = None,
    lam: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, logits and features of a batch; of a mixed one with the labels ``other`` and ``lam``.

    ``counts`` are the class counts (C,) that the criterion takes, if it takes any.
    """
    logits, features = model(images)
    logits = full_precision(logits)
    if other is not None:
        loss = mixup_criterion(criterion, logits, target, other, lam, counts)
    elif counts is None:
        loss = criterion(logits, target)
    else:
        loss = criterion(logits, target, counts)
    return loss, logits, features


def train_one_epoch(
    learner: Learner,
    loader: Iterable,
    criterion: nn.Module,
    count: Callable[[Tensor], Tensor] | None,
    epoch: int,
    config: CfgNode,
    process: Process,
    say: Say,
) -> tuple[dict[str, float], Tensor | None]:
    """Train on every batch once.

    Args:
        criterion: called with logits and labels, and class counts if there is ``count``.
        count: see ``class_counter``; it sees the un-mixed labels.

    Returns: the epoch's means {"train_loss", "train_top1", "train_top5"}; and with
        ``config.diagnostic`` the mean over batches of ``attraction_repulsion``, (C, C).
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler
    meters = batch_time, losses, top1, top5 = [AverageMeter() for _ in FIELDS]
    lr = optimizer.param_groups[0]["lr"]
    guard = FiniteGuard(model, optimizer)
    progress = Progress(f"epoch {epoch}", len(loader), enabled=process.is_main)
    norms = None
    model.train()
    end = time.perf_counter()
    for step, (images, target, _) in enumerate(loader):
        counts = None if count is None else count(target)
        mixed = ()
        if config.mixup:
            images, _, *mixed = mixup_data(images, target, config.alpha)
        optimizer.zero_grad(set_to_none=True)
        with autocast(process.device, config.amp):
            batch = (images, target, counts, *mixed)
            loss, logits, features = learner.forward(model, criterion, *batch)
        guard.check(loss, epoch=epoch, step=step, lr=lr)
        if config.diagnostic:
            matrix = attraction_repulsion(logits, features, target, counts)
            norms = matrix if norms is None else norms.add_(matrix)

        acc1, acc5 = accuracy(logits, target, topk=(1, 5))
        losses.update(loss, len(target))
        top1.update(acc1, len(target))
        top5.update(acc5, len(target))

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        progress.step()
        if step % config.print_freq == 0 and process.is_main:
            say(progress_line(f"Epoch: [{epoch}]", step, len(loader), meters), progress.line)
    guard.close()
    progress.close()
    for meter in (losses, top1, top5):
        meter.reduce(process.device)
    if norms is not None:
        all_reduce_sum(norms)
        norms /= len(loader) * process.world_size
    return {"train_loss": losses.avg, "train_top1": top1.avg, "train_top5": top5.avg}, norms


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: Iterable, config: CfgNode, process: Process, say: Say
) -> Tally:
    """Evaluate with cross entropy on every test image once; counts of all processes."""
    batch_time = AverageMeter()
    sync_buffers(model)
    model = unwrap(model).eval()
    tally = Tally(config.num_classes, process.device)
    end = time.perf_counter()
    for step, (images, target, index) in enumerate(loader):
        with autocast(process.device, config.amp):
            logits, _ = model(images)
        loss = nn.functional.cross_entropy(logits.float(), target)
        tally.update(logits, target, loss, index)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % config.print_freq == 0 and process.is_main:
            meters = batch_time, *tally.running()
            say(progress_line("Eval: ", step, len(loader), meters))
    tally.reduce()
    return tally


def progress_line(
    prefix: str, batch: int, num_batches: int, meters: Sequence[AverageMeter | Running]
) -> str:
    """``prefix[batch/num_batches]``, then ``name value (average)`` of each of ``FIELDS``."""
    fields = [f"{prefix}[{batch:{len(str(num_batches))}}/{num_batches}]"]
    for (name, spec), meter in zip(FIELDS, meters, strict=False):
        fields.append(f"{name} {meter.val:{spec}} ({meter.avg:{spec}})")
    return "\t".join(fields)


def class_groups(config: CfgNode, cls_num_list: Sequence[int]) -> dict[str, np.ndarray]:
    """Indices of the classes in each group of the configuration.

    Its half-open ranges are places among the classes sorted by size, largest first: in the paper's
    data, which are sorted so, labels; in others, such as image folders, not.
    """
    by_size = np.argsort(-np.asarray(cls_num_list), kind="stable")
    return {
        "head": by_size[slice(*config.head_class_idx)],
        "med": by_size[slice(*config.med_class_idx)],
        "tail": by_size[slice(*config.tail_class_idx)],
    }


def group_means(cls_acc: Sequence[float], groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean class accuracy over groups of class indices; NaN for a group without classes.

    Classes without test images, whose accuracy is NaN, do not count.
    """
    acc = np.asarray(cls_acc, dtype=np.float64)
    return {name: finite_mean(acc[classes]) for name, classes in groups.items()}


def results(tally: Tally, cls_num_list: Sequence[int], config: CfgNode) -> dict:
    """``Tally.result``, and the mean class accuracy in percent of the configuration's groups."""
    result = tally.result(cls_num_list)
    cls_acc = [100 * accuracy for accuracy in result["cls_acc"]]
    return result | group_means(cls_acc, class_groups(config, cls_num_list))


def result_lines(
    result: dict, tally: Tally, cls_num_list: Sequence[int], config: CfgNode
) -> list[str]:
    """The original's two lines after an evaluation; groups with their correct and total images."""
    groups = class_groups(config, cls_num_list)

    def group(name: str) -> str:
        classes = groups[name].tolist()
        correct, total = int(tally.correct[classes].sum()), int(tally.total[classes].sum())
        return f"{result[name]:.3f} ({correct}/{total})"

    return [
        f"* Acc@1 {result['top1']:.3f}; Acc@5 {result['top5']:.3f}; many: {group('head')}; "
        f"median {group('med')}; low {group('tail')}.",
        f"* ECE   {result['ece']:.3f}%.",
    ]


def log_line(
    log: TextLog, process: Process, text: str, show: Callable[[str], None] = print
) -> None:
    """Show a line and append it, with the time, to the run's log (process 0 alone)."""
    if process.is_main:
        show(text)
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def log_scalars(writer: Events | None, row: dict) -> None:
    """Write an epoch's tensorboard scalars: those of the evaluation, if there was one."""
    if writer is not None:
        for tag in ("lr", "train_loss", "train_top1", "loss", "top1", "ece"):
            if tag in row:
                writer.add_scalar(tag, row[tag], row["epoch"])
