"""Loss, one training epoch and one evaluation of the large-scale programs."""

import time
from argparse import Namespace
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.evaluation import Tally, group_line
from common.gather import gather_batch
from common.training.launch import Process, all_reduce_sum, sync_buffers, unwrap
from common.training.learner import Learner
from common.training.logs import Progress
from common.training.precision import FiniteGuard, autocast
from common.training.record import Record
from common.training.seeds import seed_everything
from common.training.speed import Forward
from datasets.loaders import WorkersLoader
from dbm_loss.augment.cutmix import cutmix
from dbm_loss.flags import LDAM_STAGE, logit_scale
from dbm_loss.losses import LDAM, BalancedSoftmax, BCLLoss, CrossEntropy, drw_stage
from dbm_loss.margin import DBMargin


def build_criterion(args: Namespace, cls_num_list: Sequence[int], drw_epoch: int) -> nn.Module:
    """The loss of ``--loss_fn``; behind a cosine classifier the scale, and the margin if asked for.

    LDAM has a margin and a scale (30) of its own and takes neither.
    """
    margin = None
    if args.use_norm:
        margin = DBMargin(
            cls_num_list,
            max_margin=args.max_margin,
            tau=args.tau,
            scale=args.cos_scale,
            lambda_inst=args.lambda_inst,
            use_dbm=args.use_dbm,
            margin_norm=args.margin_norm,
        )
    drw = {"ce_drw": drw_epoch, "ldam_drw": drw_epoch, "ldam": LDAM_STAGE}.get(args.loss_fn)
    if args.loss_fn == "bcl":
        return BCLLoss(cls_num_list, margin=margin)
    if args.loss_fn == "bs":
        return BalancedSoftmax(cls_num_list, margin=margin)
    if args.loss_fn.startswith("ldam"):
        return LDAM(cls_num_list, max_margin=args.max_margin, drw_epoch=drw)
    return CrossEntropy(cls_num_list, drw, margin)


def bcl_pass(
    model: nn.Module, criterion: BCLLoss, x: Tensor, target: Tensor, epoch: int
) -> tuple[Tensor, Tensor]:
    """Loss and logits of a batch of B images whose three views stand below each other in ``x``.

    View 0 is classified, views 1 and 2 are contrasted, with the images of all processes: every
    process computes the loss of the whole batch.
    """
    count = len(target)
    features, logits, centers = model(x)
    pairs = torch.stack([features[count : 2 * count], features[2 * count :]], dim=1)  # B x 2 x D
    logits = logits[:count]
    loss = criterion(gather_batch(logits), gather_batch(pairs), centers, gather_batch(target))
    return loss, logits


def base_pass(
    model: nn.Module,
    criterion: nn.Module,
    x: Tensor,
    target: Tensor,
    epoch: int,
    other: Tensor | None = None,
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Loss and logits of a batch of one view.

    ``other``: the labels of what CutMix pasted in; ``share``: what it left of the images.
    """
    logits = model(x)
    everything = gather_batch(logits)
    loss = criterion(everything, gather_batch(target), epoch)
    if other is not None:
        pasted = criterion(everything, gather_batch(other), epoch)
        loss = share * loss + (1 - share) * pasted
    return loss, logits


def forward_pass(loss_fn: str) -> Forward:
    """What computes loss and logits of a batch for ``--loss_fn``."""
    return bcl_pass if loss_fn == "bcl" else base_pass


class Sums:
    """Loss, correct and images of the steps of an epoch, on the device; (3,) float64.

    ``before``: the totals of a checkpoint taken in mid-epoch, after ``start_step`` steps, which the
    first process goes on from.
    """

    figures = 3

    def __init__(self, process: Process, start_step: int = 0, before: Tensor | None = None) -> None:
        self.start_step = start_step
        go_on = before is not None and process.is_main
        start = before if go_on else torch.zeros(self.figures)
        self.own = start.to(process.device, torch.float64, copy=True)

    @torch.no_grad()
    def update(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Count a batch: loss, a scalar; logits (B, C); labels (B,)."""
        count = self.own.new_full((), len(target))  # filled on the device, nothing to wait for
        correct = (logits.argmax(dim=1) == target).sum()
        self.own += torch.stack([loss.double() * count, correct.double(), count])

    def total(self) -> Tensor:
        """Over all processes."""
        total = self.own.clone()
        all_reduce_sum(total)
        return total

    def means(self) -> dict[str, float]:
        """{"train_loss", "train_top1" in percent} over all processes."""
        loss, correct, images = self.total().tolist()
        return {"train_loss": loss / images, "train_top1": correct / images * 100}


def train_one_epoch(
    learner: Learner,
    loaders: tuple[WorkersLoader, WorkersLoader | None],
    criterion: nn.Module,
    epoch: int,
    args: Namespace,
    record: Record,
    sums: Sums,
) -> dict[str, float]:
    """Train on the batches of ``epoch`` from ``sums.start_step`` on; returns the epoch's means.

    The second of ``loaders`` is CMO's second stream of images, or None. A checkpoint is written
    every ``--save_every`` steps.
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler
    loader, balanced = loaders
    process, start_step = record.process, sums.start_step
    stage = drw_stage(criterion, epoch)
    device, lr = process.device, optimizer.param_groups[0]["lr"]
    guard = FiniteGuard(model, optimizer)
    progress = Progress(f"epoch {epoch}", len(loader), enabled=process.is_main)
    progress.step(start_step)
    pasted = None if balanced is None else iter(balanced)
    model.train()
    data_time, end = 0.0, time.perf_counter()
    for step, (x, target, _) in enumerate(loader, start=start_step):
        data_time += time.perf_counter() - end
        mixed = ()
        if pasted is not None:
            foreground, labels, _ = next(pasted)
            # The same box in every process, also after a resume.
            seed_everything(record.seed, "cutmix", epoch, step)
            if np.random.rand() < args.mixup_prob:
                mixed = labels, cutmix(x, foreground)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, args.amp):
            loss, logits = learner.forward(model, criterion, x, target, stage, *mixed)
        guard.check(loss, epoch=epoch, step=step, lr=lr)
        sums.update(loss.detach(), logits.detach(), target)

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

        progress.step()
        done = step + 1
        if step % args.print_freq == 0 and process.is_main:
            line = (
                f"Epoch: [{epoch}][{step}/{len(loader)}], lr: {lr:.5f}\t"
                f"Data {data_time / (done - start_step):.3f}\tLoss {float(loss.detach()):.4f}"
            )
            progress.line(line)
            record.log["log_train.csv"].write(line + "\n")
        if args.save_every and done % args.save_every == 0 and done < len(loader):
            guard.close()
            best_acc1 = record.best_score
            entries = {"step": done, "steps": len(loader), "sums": sums.total()}
            record.save(**entries, arch=args.arch, best_acc1=best_acc1)
        end = time.perf_counter()
    guard.close()
    progress.close()
    return sums.means()


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: WorkersLoader, num_classes: int, args: Namespace, process: Process
) -> Tally:
    """Evaluate on every test image once, shared among the processes; counts of all of them.

    As in the original the loss is the plain cross-entropy of the logits; those of a cosine
    classifier are not scaled.
    """
    sync_buffers(model)
    model = unwrap(model).eval()
    classify = model.classify if args.loss_fn == "bcl" else model
    tally = Tally(num_classes, process.device, scale=logit_scale(args))
    for x, target, index in loader:
        with autocast(process.device, args.amp):
            logits = classify(x)
        tally.update(logits, target, F.cross_entropy(logits.float(), target), index)
    tally.reduce()
    return tally


def result_lines(result: dict, split: str = "val") -> str:
    """What an evaluation of ``split`` found: a line of totals, a line of the groups."""
    return (
        f"{split} Results: Prec@1 {result['top1']:.3f} Prec@5 {result['top5']:.3f} "
        f"Loss {result['loss']:.5f}\n{group_line(result)}\n"
    )


def class_line(cls_acc: Sequence[float], most: int, split: str = "val") -> str:
    """Accuracies of the classes as fractions; of more than ``most`` the first and last three."""
    text = np.array2string(
        np.asarray(cls_acc),
        separator=",",
        threshold=most,
        max_line_width=10**6 if most > 100 else 100,
        formatter={"float_kind": lambda x: f"{x:.3f}"},
    )
    return f"{split} Class Accuracy: {text}\n"


def log_epoch(record: Record, row: dict, best_acc1: float) -> None:
    """Print and log a finished epoch, and write its tensorboard scalars."""
    if record.writer is None:
        return
    best = f"Best {record.selection.score_name}: {best_acc1:.3f}\n\n"
    scalars = {
        "loss/train": row["train_loss"],
        "acc/train_top1": row["train_top1"],
        "lr": row["lr"],
    }
    if "top1" in row:  # not every epoch, with --test_epoch
        lines = result_lines(row)
        print(lines + class_line(row["cls_acc"], most=100), end="", flush=True)
        record.log["log_test.csv"].write(lines + class_line(row["cls_acc"], most=10**6) + best)
        scalars |= {"loss/test_val": row["loss"], "acc/test_top1_best": best_acc1}
        scalars |= {
            f"acc/test_val_{name}": row[name] for name in ("top1", "top5", "many", "medium", "few")
        }
    print(best, end="", flush=True)
    for tag, value in scalars.items():
        record.writer.add_scalar(tag, value, row["epoch"])


def hms(seconds: float) -> str:
    """``H:MM:SS.ss``, as the original prints its running time."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{seconds:05.2f}"
