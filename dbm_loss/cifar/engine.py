"""One training epoch and one evaluation of the CIFAR program, and its log lines."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.evaluation import Tally
from common.gather import gather_batch
from common.training.launch import Process, sync_buffers, unwrap
from common.training.learner import Learner
from common.training.logs import AverageMeter, Progress
from common.training.precision import FiniteGuard, autocast
from common.training.record import Record
from common.training.speed import Forward
from dbm_loss import augment
from dbm_loss.augment import batch
from dbm_loss.augment.cutmix import cutmix
from dbm_loss.cifar.schedule import Schedule
from dbm_loss.flags import logit_scale
from dbm_loss.losses import LDAM, BalancedSoftmax, BCLLoss, CrossEntropy, NCLLoss, drw_stage
from dbm_loss.margin import DBMargin


def build_criterion(args: Namespace, cls_num_list: list[int], schedule: Schedule) -> nn.Module:
    """The loss of ``--loss_fn``, behind the margin where the flags ask for it.

    With ``--use_norm`` alone the cosines are scaled and have no margin. NCL scales with
    ``--use_dbm`` only and LDAM, which has a margin of its own, never does.
    """
    margin = None
    if args.use_dbm or (args.use_norm and args.loss_fn != "ncl"):
        margin = DBMargin(
            cls_num_list,
            max_margin=args.max_margin,
            tau=args.tau,
            scale=args.cos_scale,
            lambda_inst=args.lambda_inst,
            use_dbm=args.use_dbm,
            margin_norm=args.margin_norm,
        )
    if args.loss_fn in ("ce", "ce_drw"):
        return CrossEntropy(cls_num_list, schedule.drw_epoch, margin)
    if args.loss_fn == "bs":
        return BalancedSoftmax(cls_num_list, margin=margin)
    if args.loss_fn in ("ldam", "ldam_drw"):
        return LDAM(cls_num_list, args.max_margin, drw_epoch=schedule.drw_epoch)
    if args.loss_fn == "bcl":
        return BCLLoss(cls_num_list, margin)
    return NCLLoss(cls_num_list, margin=margin)


def _num_contrastive_views(loss_fn: str) -> int:
    return {"ncl": 1, "bcl": 2}.get(loss_fn, 0)


def image_transform(args: Namespace, size: int) -> Callable | list[Callable]:
    """Of one PIL image: view A, which is classified, then NCL's key view or BCL's two views."""
    view_a = augment.recipes.view_a(aug_type=args.aug_type, cutout=args.cutout, size=size)
    count = _num_contrastive_views(args.loss_fn)
    contrastive = [augment.recipes.view_s(size=size) for _ in range(count)]
    return [view_a, *contrastive] if contrastive else view_a


def batch_transform(args: Namespace) -> Callable[[Tensor, torch.Generator], object]:
    """The same for a batch of uint8 images (B, 3, H, W) on the training device."""
    view_a = partial(batch.view_a, aug_type=args.aug_type, cutout=args.cutout)
    count = _num_contrastive_views(args.loss_fn)

    def transform(images: Tensor, generator: torch.Generator) -> Tensor | tuple[Tensor, ...]:
        first = view_a(images, generator)
        rest = [batch.view_s(images, generator) for _ in range(count)]
        return (first, *rest) if rest else first

    return transform


def base_pass(
    model: nn.Module,
    criterion: nn.Module,
    images: Tensor,
    target: Tensor,
    epoch: int,
    other: Tensor | None = None,
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Loss and logits of single images.

    ``other``: the labels of what CutMix pasted in; ``share``: what it left of the images.
    """
    logits = model(images)
    everything = gather_batch(logits)
    loss = criterion(everything, gather_batch(target), epoch)
    if other is not None:
        pasted = criterion(everything, gather_batch(other), epoch)
        loss = loss * share + pasted * (1.0 - share)
    return loss, logits


def bcl_pass(
    model: nn.Module, criterion: nn.Module, views: Sequence[Tensor], target: Tensor, epoch: int
) -> tuple[Tensor, Tensor]:
    """Balanced contrastive learning: one pass over all three views, batch norm over all of them."""
    features, logits, centers = model(torch.cat(list(views)))
    batch_size = len(target)
    logits = logits[:batch_size]
    pairs = features[batch_size:].unflatten(0, (2, batch_size)).transpose(0, 1)  # B x 2 x D
    loss = criterion(gather_batch(logits), gather_batch(pairs), centers, gather_batch(target))
    return loss, logits


def ncl_pass(
    model: nn.Module, criterion: nn.Module, views: Sequence[Tensor], target: Tensor, epoch: int
) -> tuple[Tensor, Tensor]:
    """Nested collaborative learning: three networks, their moving averages and queues."""
    outputs = model(*views)
    # B x 3 x ... while gathering the rows of all processes
    logits, queries, keys = (gather_batch(x.transpose(0, 1)).transpose(0, 1) for x in outputs)
    networks = unwrap(model)
    loss = criterion(logits, gather_batch(target)) + networks.contrast(queries, keys)
    networks.update_average()
    return loss, logits


def forward_pass(loss_fn: str) -> Forward:
    """What computes loss and logits of a batch for ``--loss_fn``."""
    return {"bcl": bcl_pass, "ncl": ncl_pass}.get(loss_fn, base_pass)


def train_one_epoch(
    learner: Learner,
    loader: Iterable,
    criterion: nn.Module,
    epoch: int,
    args: Namespace,
    process: Process,
    balanced: Iterable | None = None,
) -> dict[str, float]:
    """Train on every batch once; returns {"train_loss"}, the mean over the epoch's images.

    ``balanced``: as many batches of class-balanced images. With it (CMO) every second batch, by the
    coin of numpy's global generator, has a box of such images pasted in.
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler
    losses = AverageMeter()
    lr = optimizer.param_groups[0]["lr"]
    guard = FiniteGuard(model, optimizer)
    stage = drw_stage(criterion, epoch)
    progress = Progress(f"Training {epoch + 1}", len(loader), enabled=process.is_main)
    model.train()
    foregrounds = iter(()) if balanced is None else iter(balanced)
    for step, (images, target, _) in enumerate(loader):
        foreground = next(foregrounds, None)
        pasted = ()
        if foreground is not None and np.random.rand() < 0.5:
            patches, labels, _ = foreground
            pasted = labels, cutmix(images, patches)
        optimizer.zero_grad(set_to_none=True)
        with autocast(process.device, args.amp):
            loss, _ = learner.forward(model, criterion, images, target, stage, *pasted)
        guard.check(loss, epoch=epoch, step=step, lr=lr)
        losses.update(loss, len(target))

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        progress.step()
    guard.close()
    progress.close()
    losses.reduce(process.device)
    return {"train_loss": losses.avg}


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: Iterable, num_classes: int, args: Namespace, process: Process
) -> Tally:
    """Evaluate on every test image once, shared among the processes; counts of all of them.

    The loss is the cross-entropy of the bare outputs: with ``--use_norm`` of unscaled cosines, so
    it stays near log C and does not compare with the training loss. As in the original.
    """
    sync_buffers(model)
    model = unwrap(model).eval()
    tally = Tally(num_classes, process.device, scale=logit_scale(args))
    progress = Progress("test Valid", len(loader), enabled=process.is_main)
    for images, target, index in loader:
        with autocast(process.device, args.amp):
            logits = model.classify(images)
        tally.update(logits, target, F.cross_entropy(logits.float(), target), index)
        progress.step()
    progress.close()
    tally.reduce()
    return tally


def say(record: Record, text: str, level: int = 1) -> None:
    """One of the original's two levels of lines, on stderr and in the log file of the run."""
    if not record.process.is_main:
        return
    line = ("---> " if level == 1 else "    └> ") + text + "\n"
    sys.stderr.write(line)
    sys.stderr.flush()
    for log in record.log.values():
        log.write(line)


def log_arguments(record: Record, args: Namespace) -> None:
    """The head of the log: the data set and every flag."""
    say(record, f"---{args.dataset}---")
    say(record, "Argument")
    for key, value in vars(args).items():
        say(record, f"{key:12s}: {value}", level=2)


def result_lines(row: dict, split: str = "Test") -> list[str]:
    """Loss, accuracy in percent, and the accuracy of the groups as fractions, of ``split``."""
    stats = [row[name] / 100 for name in ("many", "medium", "few")]
    return [
        f"[{split:5}]\tLoss:\t{row['loss']:.4f}\tAcc:\t{row['top1']:.4f}",
        "[Stats]\tMany:\t{:.4f}\tMedium:\t{:.4f}\tFew:\t{:.4f}".format(*stats),
    ]


def log_epoch(record: Record, row: dict, epochs: int) -> None:
    """Log a finished epoch in the original's words, and write its tensorboard scalars."""
    best = row if record.is_best(row) else record.best_row
    split = "Val" if record.selection.validated else "Test"
    say(record, f"Epoch: [{row['epoch'] + 1} | {epochs}]")
    for line in (
        f"[Train]\tLoss:\t{row['train_loss']:.4f}",
        *(result_lines(row, split) if "top1" in row else ()),  # not every epoch, with --eval_every
        f"[Best ]\tAcc:\t{best['top1']:.4f}\tMany:\t{best['many']:.4f}"
        f"\tMedium:\t{best['medium']:.4f}\tFew:\t{best['few']:.4f}",
        f"[Param]\tLR:\t{row['lr']:.4f}",
    ):
        say(record, line, level=2)
    if record.writer is None:
        return
    for tag, key in (
        ("loss/train", "train_loss"),
        ("loss/test", "loss"),
        ("acc/test_top1", "top1"),
        ("acc/test_many", "many"),
        ("acc/test_medium", "medium"),
        ("acc/test_few", "few"),
        ("lr", "lr"),
    ):
        if key in row:
            record.writer.add_scalar(tag, row[key], row["epoch"])
    record.writer.add_scalar("acc/test_top1_best", best["top1"], row["epoch"])


def log_end(record: Record) -> None:
    """Log the best epoch, its groups as fractions, and the time that all epochs took.

    ``bAcc`` is the score that chose it: on the test set the original's top-1.
    """
    best, selection = record.best_row, record.selection
    minutes, seconds = divmod(sum(row["epoch_s"] for row in record.history), 60)
    hours, minutes = divmod(int(minutes), 60)
    say(record, "Final performance...")
    if best is not None:  # else the finished run has got other images
        many, medium, few = (best[name] / 100 for name in ("many", "medium", "few"))
        say(record, f"best bAcc ({selection.chosen_on}):\t{best[selection.score]}", level=2)
        say(record, f"best statistics:\tMany:\t{many}\tMed:\t{medium}\tFew:\t{few}", level=2)
    say(record, f"Training Time: {hours}:{minutes:02d}:{seconds:05.2f}")
