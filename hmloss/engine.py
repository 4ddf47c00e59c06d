"""One training epoch and one evaluation of the CIFAR and iNaturalist programs."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence

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
from hmloss.flags import LDAM_SCALE, logit_scale
from hmloss.losses import CELoss, FocalLoss, HMLoss, LDAMLoss

EVALUATION_BATCH = 100  # images whose weighted mean is one loss
Meter = AverageMeter | Running  # last value and mean


def class_weights(weighting_type: str, cls_num_list: Sequence[int]) -> Tensor | None:
    """Class weights (C,) float32, which sum to C.

    ``CS`` (cost-sensitive) is 1/n_c, ``CB`` (class-balanced) one over the effective number of
    images with β = 0.9999, ``None`` none.
    """
    if weighting_type == "None":
        return None
    weigh = {"CS": inverse_frequency_weights, "CB": effective_number_weights}[weighting_type]
    return torch.from_numpy(weigh(cls_num_list)).float()


def build_criterion(args: Namespace, cls_num_list: Sequence[int], hml_stage: bool) -> nn.Module:
    """The criterion of a stage, for training and validation alike.

    The class weights act throughout with CE, Focal and LDAM, but only in the second stage with
    HML: deferred re-weighting.
    """
    weight = class_weights(args.weighting_type, cls_num_list)
    if args.loss_type == "CE":
        return CELoss(weight)
    if args.loss_type == "Focal":
        return FocalLoss(weight, args.gamma)
    if args.loss_type == "LDAM":
        return LDAMLoss(cls_num_list, max_m=0.5, weight=weight, s=LDAM_SCALE)
    if args.loss_type == "HML2":  # the class's δ of 1e10 in both stages, whatever --delta says
        return HMLoss(weight) if hml_stage else HMLoss()
    return HMLoss(weight, args.delta) if hml_stage else CELoss()


def forward_pass(
    model: nn.Module, criterion: nn.Module, images: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of the batch of all processes, logits of this one's images."""
    logits = model(images)
    return criterion(gather_batch(logits), gather_batch(target)), logits


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
            line = (
                f"Epoch: [{epoch}][{step}/{len(loader)}], lr: {lr:.5f}\t"
                f"Time {batch_time.val:.3f} ({batch_time.avg:.3f})\t"
                f"Data {data_time.val:.3f} ({data_time.avg:.3f})\t"
                f"{_losses_and_accuracies(losses, top1, top5)}"
            )
            progress.line(line)
            record.log["train_history.csv"].write(line + "\n")
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
            logits = model(images)
            # However many images the network sees at once, the loss is that of the original.
            parts = (x.split(EVALUATION_BATCH) for x in (logits, target, index))
            for scores, labels, its_index in zip(*parts, strict=True):
                tally.update(scores, labels, criterion(scores, labels), its_index)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % args.print_freq == 0 and process.is_main:
            print(
                f"Test: [{step}/{len(loader)}]\t"
                f"Time {batch_time.val:.3f} ({batch_time.avg:.3f})\t"
                f"{_losses_and_accuracies(*tally.running())}",
                flush=True,
            )
    tally.reduce()
    return tally


def _losses_and_accuracies(losses: Meter, top1: Meter, top5: Meter) -> str:
    return (
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
        record.log["test_history.csv"].write(text + "\n")
        scalars |= {
            "loss/test_val": row["loss"],
            "acc/test_val_top1": row["top1"],
            "acc/test_val_top5": row["top5"],
            "acc/test_top1_best": best_acc1,
        }
        if len(row["cls_acc"]) <= 100:  # more curves are unreadable
            scalars |= {f"acc/test_val_cls_acc/{c}": acc for c, acc in enumerate(row["cls_acc"])}
    for tag, value in scalars.items():
        record.writer.add_scalar(tag, value, row["epoch"])
