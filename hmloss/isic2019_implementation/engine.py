"""One training epoch and one evaluation of the ISIC program."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.evaluation import Tally, accuracy
from common.training.errors import NonFiniteLoss
from common.training.launch import Process, all_reduce_sum, sync_buffers, unwrap
from common.training.learner import Learner
from common.training.logs import AverageMeter, Progress
from common.training.precision import CURE, FiniteGuard, autocast
from hmloss.flags import logit_scale
from hmloss.isic2019_implementation.metrics import figures

RULE = "-" * 60


@dataclass(frozen=True)
class Predictions:
    """What a network says of all images of a part, in the order of the data set.

    Attributes:
        labels: (N,) int64. scores: softmax probabilities, (N, C) float64.
        tally: accuracies, loss and confusion matrix, over all images.
    """

    labels: np.ndarray
    scores: np.ndarray
    tally: Tally

    def figures(self) -> dict[str, float]:
        """``metrics.FIGURES``, as fractions."""
        if not np.isfinite(self.scores).all():
            raise NonFiniteLoss(f"the network's outputs are not finite; {CURE}")
        return figures(self.labels, self.scores)


def train_one_epoch(
    learner: Learner,
    loader,
    criterion: nn.Module,
    epoch: int,
    learning_rate: Callable[[int], float],
    args: Namespace,
    process: Process,
) -> dict[str, float]:
    """Train on every batch once; returns {"lr", "train_loss", "train_top1"} over all images.

    ``learning_rate`` gives the rate of a step of this epoch; "lr" is that of the last one.
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler
    losses, top1 = AverageMeter(), AverageMeter()
    guard = FiniteGuard(model, optimizer)
    progress = Progress(f"epoch {epoch}", len(loader), enabled=process.is_main)
    model.train()
    for step, (images, target, _) in enumerate(loader):
        lr = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        with autocast(process.device, args.amp):
            loss, logits = learner.forward(model, criterion, images, target)
        guard.check(loss, epoch=epoch, step=step, lr=lr)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

        losses.update(loss, len(target))
        top1.update(accuracy(logits, target)[0], len(target))
        progress.step()
        if (step + 1) % args.print_freq == 0 and process.is_main:
            progress.line(
                f"[epoch {epoch}], [iter {step + 1} / {len(loader)}], "
                f"[train loss {losses.avg:.5f}], [train acc {top1.avg / 100:.5f}]"
            )
    guard.close()
    progress.close()
    losses.reduce(process.device)
    top1.reduce(process.device)
    return {"lr": lr, "train_loss": losses.avg, "train_top1": top1.avg}


@torch.inference_mode()
def predict(
    model: nn.Module,
    loader,
    num_images: int,
    criterion: nn.Module,
    args: Namespace,
    process: Process,
) -> Predictions:
    """Predictions for every image once, shared among the processes; all of them get all."""
    sync_buffers(model)
    model = unwrap(model).eval()
    num_classes = len(args.cls_num_list)
    tally = Tally(num_classes, process.device, scale=logit_scale(args))
    labels = torch.zeros(num_images, dtype=torch.int64, device=process.device)
    scores = torch.zeros(num_images, num_classes, dtype=torch.float64, device=process.device)
    for images, target, index in loader:
        with autocast(process.device, args.amp):
            logits = model(images)
            loss = criterion(logits, target)
        tally.update(logits, target, loss, index)
        labels[index] = target
        scores[index] = logits.double().softmax(dim=1)
    tally.reduce()
    all_reduce_sum(labels, scores)
    return Predictions(labels.cpu().numpy(), scores.cpu().numpy(), tally)


def validation_lines(row: dict) -> str:
    """The original's lines after a validation, with fractions; over all images."""
    accuracy, bacc, auc = (row[name] / 100 for name in ("accuracy", "bacc", "auc"))
    return (
        f"{RULE}\n[epoch {row['epoch'] + 1}], [val loss {row['loss']:.5f}], "
        f"[val acc {accuracy:.5f}]\n{RULE}\n"
        f"{RULE}\n[epoch {row['epoch'] + 1}],  [val bacc {bacc:.5f}] ,  "
        f"[val auc {auc:.5f}]\n{RULE}"
    )
