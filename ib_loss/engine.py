"""One training epoch and one evaluation of the influence-balanced programs."""

from __future__ import annotations

import time
from argparse import Namespace

import numpy as np
import torch
from torch import Tensor, nn

from common.evaluation import Running, Tally, accuracy, group_line, result_lines
from common.gather import gather_batch
from common.imbalance import effective_number_weights, inverse_frequency_weights
from common.training.launch import Process, sync_buffers, unwrap
from common.training.learner import Learner
from common.training.logs import AverageMeter, Progress
from common.training.precision import FiniteGuard, autocast
from common.training.record import Record
from ib_loss.losses import FocalLoss, IB_FocalLoss, IBLoss, LDAMLoss
from ib_loss.schedule import in_ib_phase

# Constants of the authors' programs (their class defaults differ).
ALPHA, GAMMA, LDAM_SCALE = 1000.0, 1.0, 30.0
EVALUATION_BATCH = 100  # images whose weighted mean is one loss
INFLUENCE = (IBLoss, IB_FocalLoss)  # these look at the features
Meter = AverageMeter | Running  # last value and mean


def class_weights(
    train_rule: str, cls_num_list: list[int], epoch: int, drw_epoch: int
) -> Tensor | None:
    """Class weights (K,) float32 of a train rule in 0-based ``epoch``; they sum to K.

    Raises ``ValueError`` if a class has no image, also for DRW before ``drw_epoch``: it would fail
    hours later.
    """
    if train_rule in ("None", "Resample"):
        return None
    if train_rule == "IBReweight":
        weights = inverse_frequency_weights(cls_num_list)
    else:  # CBReweight, and DRW: deferred, with ones before drw_epoch
        weights = effective_number_weights(cls_num_list)
        if train_rule == "DRW" and epoch < drw_epoch:
            weights = np.ones_like(weights)
    return torch.from_numpy(weights).float()


def build_criterion(
    args: Namespace, cls_num_list: list[int], epoch: int, drw_epoch: int
) -> nn.Module:
    """The criterion of 0-based ``epoch``, for training and validation alike.

    IB and IBFocal train with unweighted cross entropy before ``--start_ib_epoch``.
    """
    weight = class_weights(args.train_rule, cls_num_list, epoch, drw_epoch)
    if args.loss_type == "CE":
        return nn.CrossEntropyLoss(weight=weight)
    if args.loss_type == "LDAM":
        return LDAMLoss(cls_num_list, max_m=0.5, s=LDAM_SCALE, weight=weight)
    if args.loss_type == "Focal":
        return FocalLoss(weight=weight, gamma=GAMMA)
    if not in_ib_phase(epoch, args.loss_type, args.start_ib_epoch):
        return nn.CrossEntropyLoss()
    if args.loss_type == "IB":
        return IBLoss(weight=weight, alpha=ALPHA)
    return IB_FocalLoss(weight=weight, alpha=ALPHA, gamma=GAMMA)


def logit_scale(args: Namespace) -> float:
    """What the loss multiplies the logits by."""
    return LDAM_SCALE if args.loss_type == "LDAM" else 1.0


def compute_loss(
    criterion: nn.Module, logits: Tensor, target: Tensor, features: Tensor | None = None
) -> Tensor:
    """The criterion's value; the influence-balanced ones also take the features."""
    if isinstance(criterion, INFLUENCE):
        return criterion(logits, target, features)
    return criterion(logits if logits.dtype == torch.float64 else logits.float(), target)


def forward_pass(
    model: nn.Module, criterion: nn.Module, images: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of the batch of all processes, logits of this one's images."""
    logits, features = model(images, return_features=True)
    parts = (logits, target, features) if isinstance(criterion, INFLUENCE) else (logits, target)
    loss = compute_loss(criterion, *map(gather_batch, parts))
    return loss, logits


def train_one_epoch(
    learner: Learner,
    loader,
    criterion: nn.Module,
    epoch: int,
    args: Namespace,
    record: Record,
) -> dict[str, float]:
    """Train on every batch once; returns the epoch's means {"train_loss", "train_top1", …}."""
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler
    process = record.process
    batch_time, data_time = AverageMeter(), AverageMeter()
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    lr = optimizer.param_groups[0]["lr"]
    guard = FiniteGuard(model, optimizer)
    progress = Progress(f"epoch {epoch}", len(loader), enabled=process.is_main)
    model.train()
    end = time.perf_counter()
    for step, (images, target, _) in enumerate(loader):
        data_time.update(time.perf_counter() - end)
        optimizer.zero_grad(set_to_none=True)
        with autocast(process.device, args.amp):
            loss, logits = learner.forward(model, criterion, images, target)
        guard.check(loss, epoch=epoch, step=step, lr=lr)

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
        if step % args.print_freq == 0 and process.is_main:
            fields = _fields(batch_time, losses, top1, top5, data_time)
            line = f"Epoch: [{epoch}][{step}/{len(loader)}], lr: {lr:.5f}\t{fields}"
            progress.line(line)
            record.log["log_train.csv"].write(line + "\n")
    guard.close()
    progress.close()
    for meter in (losses, top1, top5):
        meter.reduce(process.device)
    return {"train_loss": losses.avg, "train_top1": top1.avg, "train_top5": top5.avg}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader,
    criterion: nn.Module,
    num_classes: int,
    args: Namespace,
    process: Process,
) -> Tally:
    """Evaluate on every test image once, shared among the processes; counts of all of them."""
    sync_buffers(model)
    model = unwrap(model).eval()
    tally = Tally(num_classes, process.device, scale=logit_scale(args))
    batch_time = AverageMeter()
    end = time.perf_counter()
    for step, (images, target, index) in enumerate(loader):
        with autocast(process.device, args.amp):
            logits, features = model(images, return_features=True)
            # However many images the network sees at once, the loss is that of the original.
            parts = (x.split(EVALUATION_BATCH) for x in (logits, target, features, index))
            for *batch, its_index in zip(*parts, strict=True):
                loss = compute_loss(criterion, *batch)
                tally.update(batch[0], batch[1], loss, its_index)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % args.print_freq == 0 and process.is_main:
            print(f"Test: [{step}/{len(loader)}]\t{_fields(batch_time, *tally.running())}")
    tally.reduce()
    return tally


def _fields(
    batch_time: AverageMeter,
    losses: Meter,
    top1: Meter,
    top5: Meter,
    data_time: AverageMeter | None = None,
) -> str:
    """The original's log fields: last value and running mean."""
    data = f"Data {data_time.val:.3f} ({data_time.avg:.3f})\t" if data_time else ""
    return (
        f"Time {batch_time.val:.3f} ({batch_time.avg:.3f})\t{data}"
        f"Loss {losses.val:.4f} ({losses.avg:.4f})\t"
        f"Prec@1 {top1.val:.3f} ({top1.avg:.3f})\t"
        f"Prec@5 {top5.val:.3f} ({top5.avg:.3f})"
    )


def log_epoch(record: Record, row: dict, best_acc1: float) -> None:
    """Print and log a finished epoch in the original's words, and write its tensorboard scalars."""
    if record.writer is None:
        return
    scalars = {
        "loss/train": row["train_loss"],
        "acc/train_top1": row["train_top1"],
        "acc/train_top5": row["train_top5"],
        "lr": row["lr"],
    }
    if "top1" in row:  # not every epoch, with --eval_every
        text = result_lines(row) + f"Best {record.selection.score_name}: {best_acc1:.3f}\n"
        print(text + group_line(row) + "\n", flush=True)
        record.log["log_test.csv"].write(text + "\n")
        scalars |= {
            "loss/test_val": row["loss"],
            "acc/test_val_top1": row["top1"],
            "acc/test_val_top5": row["top5"],
            "acc/test_top1_best": best_acc1,
        }
        scalars |= {f"acc/test_val_cls_acc/{c}": acc for c, acc in enumerate(row["cls_acc"])}
    for tag, value in scalars.items():
        record.writer.add_scalar(tag, value, row["epoch"])
