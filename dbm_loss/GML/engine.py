"""What the three GML programs share: loss, optimiser, teacher, one epoch, one evaluation, logs."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import models
from common.evaluation import Running, Tally, accuracy
from common.training import restore
from common.training.errors import UsageError
from common.training.launch import Process, all_reduce_sum, sync_buffers, unwrap
from common.training.learner import Learner
from common.training.logs import AverageMeter, Progress
from common.training.precision import FiniteGuard, autocast
from common.training.record import Record
from common.training.seeds import seed_everything
from datasets.loaders import Loader
from dbm_loss.GML.losses import GMLLoss
from dbm_loss.GML.moco import MoCo
from dbm_loss.margin import DBMargin

SCALE = 30.0  # of the cosines in the margin, 1 / T_s


def build_criterion(args: Namespace, cls_num_list: Sequence[int]) -> GMLLoss:
    """The loss with the weights of its terms, and the margin if asked for."""
    margin = None
    if args.use_dbm:
        margin = DBMargin(
            cls_num_list,
            max_margin=args.max_margin,
            tau=args.tau,
            scale=SCALE,
            lambda_inst=args.lambda_inst,
            margin_norm=args.margin_norm,
        )
    return GMLLoss(cls_num_list, args.alpha, args.beta, args.gamma, args.moco_t, margin)


def build_optimizer(model: nn.Module, criterion: nn.Module, args: Namespace) -> torch.optim.SGD:
    """SGD with weight decay on everything but the temperature, in the original's order."""
    groups = [
        {"params": list(model.parameters()), "weight_decay": args.weight_decay},
        {"params": list(criterion.parameters()), "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, args.lr, momentum=args.momentum)


def network(arch: str) -> Callable[..., nn.Module]:
    """Constructor of a network whose classifier is named ``fc``, as in the original."""
    build = models.archs.constructor(arch)
    return partial(build, head="fc") if arch in models.archs.CIFAR_RESNETS else build


def num_views(args: Namespace) -> int:
    """Views for classifier, query and key, as far as there is use for them."""
    if args.program == "cifar_ce":
        return 1
    return 3 if args.alpha > 0 or args.beta > 0 else 2


def build_model(args: Namespace, teacher: nn.Module | None) -> nn.Module:
    """A cosine classifier; or the model with its queue, teacher or momentum copy as key encoder.

    Raises:
        UsageError: ``--feat_dim`` or ``--feat_t`` is not that of the networks.
    """
    build = network(args.arch)
    if args.program == "cifar_ce":
        model = build(num_classes=args.num_classes, use_norm=True)
        check_feature_size("--feat_dim", args.feat_dim, model)
        return model
    feat_t = None if teacher is None else teacher.feature_dim
    moco = MoCo(
        build, args.moco_dim, args.moco_k, args.moco_m, args.mlp, feat_t, args.normalize,
        args.num_classes,
    )  # fmt: skip
    check_feature_size("--feat_dim", args.feat_dim, moco.encoder_q)
    check_feature_size("--feat_t", args.feat_t, teacher or moco.encoder_k)
    if teacher is not None:
        moco.set_distiller(teacher)
    return moco


def check_feature_size(flag: str, given: int | None, network: nn.Module) -> None:
    """Refuse a feature size that the network does not have."""
    if given not in (None, network.feature_dim):
        raise UsageError(f"{flag} {given}: the network has {network.feature_dim} features")


def partition(moco: MoCo, args: Namespace) -> None:
    """Divide the queue among the classes if ``--base_k`` says so (after a resume again)."""
    if args.base_k == 0:
        return
    try:
        counts = torch.tensor(args.cls_num_list, dtype=torch.float32)
        moco.set_cls_weight(counts / counts.sum(), args.base_k)
    except ValueError as error:
        raise UsageError(f"--{error}; K is --moco-k") from None


def load_network(
    state: Mapping[str, object], source: str, arch: str, num_classes: int
) -> nn.Module:
    """The network in a checkpoint: a bare one, or the query encoder of a MoCo.

    Args:
        state: what the file ``source`` holds.
    Raises:
        UsageError: no weights, or of another architecture than ``arch``.
    """
    weights = models.pretrained.encoder(restore.weights_in(state, source))
    model = network(arch)(num_classes=num_classes, use_norm="fc.bias" not in weights)
    restore.load_weights(model, weights, source)
    return model


class Means:
    """Last value and mean over the epoch of loss, top-1 and top-5, summed on the device.

    ``state``: the sums of a checkpoint taken in mid-epoch, after ``start_step`` steps.
    """

    figures = 4  # these, and the number of images

    def __init__(self, process: Process, start_step: int = 0, state: Tensor | None = None) -> None:
        self.start_step = start_step
        self.last = torch.zeros(3, dtype=torch.float64, device=process.device)
        self._sums = torch.zeros(self.figures, dtype=torch.float64, device=process.device)
        if state is not None and process.is_main:  # the sums of all processes, once
            self._sums += state.to(process.device)

    @torch.no_grad()
    def update(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Count a batch: loss, a scalar; logits (B, C); labels (B,)."""
        top1, top5 = accuracy(logits, target, topk=(1, 5))
        self.last = torch.stack([loss.double(), top1.double(), top5.double()])
        count = torch.full_like(self.last[:1], len(target))
        self._sums += torch.cat([self.last, torch.ones_like(count)]) * count

    def state(self) -> Tensor:
        """Sums over all processes; for the checkpoint of an unfinished epoch."""
        sums = self._sums.clone()
        all_reduce_sum(sums)
        return sums.cpu()

    def running(self) -> list[Running]:
        """Loss, top-1 and top-5 of the last batch and of all of this process so far."""
        means = (self._sums[:3] / self._sums[3]).tolist()
        return [Running(*pair) for pair in zip(self.last.tolist(), means, strict=True)]

    def row(self) -> dict[str, float]:
        """{"train_loss", "train_top1", "train_top5"} over all processes."""
        loss, top1, top5, count = self.state().tolist()
        count = max(count, 1.0)
        return {
            "train_loss": loss / count, "train_top1": top1 / count, "train_top5": top5 / count,
        }  # fmt: skip


def train_line(
    args: Namespace,
    epoch: int,
    step: int,
    steps: int,
    means: Means,
    batch_time: AverageMeter,
    data_time: AverageMeter,
) -> str | None:
    """The original's log line of a training step, if it is time for one; of this process."""
    if args.program != "main":
        if step % args.print_freq:
            return None
        return f"Epoch: [{epoch}]{_count(step, steps)}\t{_fields(means.running())}"
    if (step + 1) % args.print_freq:
        return None
    return (
        f"Epoch: [{epoch}]{_count(step, steps)}\t"
        f"Time {batch_time.val:6.3f} ({batch_time.avg:6.3f})\t"
        f"Data {data_time.val:6.3f} ({data_time.avg:6.3f})\t{_fields(means.running(), '.4e')}"
    )


def _fields(running: Sequence[Running], loss_format: str = ".4f") -> str:
    """``Loss v (mean)``, ``Acc@1 v (mean)``, ``Acc@5 v (mean)``."""
    return "\t".join(
        f"{name} {val:{spec}} ({avg:{spec}})"
        for name, (val, avg), spec in zip(
            ("Loss", "Acc@1", "Acc@5"), running, (loss_format, "6.2f", "6.2f"), strict=True
        )
    )


def _count(step: int, steps: int) -> str:
    return f"[{step:{len(str(steps))}d}/{steps}]"


def forward_pass(
    model: nn.Module,
    criterion: nn.Module,
    views: Sequence[Tensor],
    target: Tensor,
    index: Tensor,
    contrast: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and logits of a batch. A MoCo takes all views, a bare network the first."""
    if isinstance(unwrap(model), MoCo):
        out = model(*views, labels=target, index=index, contrast=contrast)
    else:
        out = {"logits": model(views[0])}
    return criterion(target=target, index=index, **out), out["logits"]


def train_one_epoch(
    learner: Learner,
    loader: Loader,
    criterion: nn.Module,
    epoch: int,
    args: Namespace,
    record: Record,
    means: Means,
) -> dict[str, float]:
    """Train on the batches of the epoch from ``means.start_step`` on; returns the epoch's means.

    The loader yields a list of views. A checkpoint is written every ``--save_every`` steps.
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler
    process, start_step = record.process, means.start_step
    steps = len(loader)
    lr = optimizer.param_groups[0]["lr"]
    contrast = num_views(args) == 3
    guard = FiniteGuard(model, optimizer)
    progress = Progress(f"epoch {epoch}", steps, enabled=process.is_main)
    progress.step(start_step)
    batch_time, data_time = AverageMeter(), AverageMeter()
    model.train()
    end = time.perf_counter()
    for step, (views, target, index) in enumerate(loader, start=start_step):
        data_time.update(time.perf_counter() - end)
        # The order in which MoCo shuffles its keys, also after a resume within the epoch.
        seed_everything(record.seed, "moco", epoch, step)
        optimizer.zero_grad(set_to_none=True)
        with autocast(process.device, args.amp):
            loss, logits = learner.forward(model, criterion, views, target, index, contrast)
        guard.check(loss, epoch=epoch, step=step, lr=lr)
        means.update(loss, logits, target)

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

        batch_time.update(time.perf_counter() - end)
        progress.step()
        line = None
        if process.is_main:
            line = train_line(args, epoch, step, steps, means, batch_time, data_time)
        if line is not None:
            progress.line(line)
            record.log[f"{args.mark}.log"].write(line + "\n")
        done = step + 1
        if args.save_every and done % args.save_every == 0 and done < steps:
            guard.close()
            entries = {"step": done, "steps": steps, "sums": means.state()}
            record.save(**entries, arch=args.arch, acc=record.best_score)
        end = time.perf_counter()
    guard.close()
    progress.close()
    return means.row()


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: Loader, args: Namespace, record: Record, log: bool = False
) -> Tally:
    """Evaluate on every image once, shared among the processes; counts of all of them.

    As in the original the loss is the cross-entropy of the unscaled cosines. With ``log`` the lines
    are written to the log, too.
    """
    process = record.process
    show = partial(say, record) if log else process.say
    sync_buffers(model)
    network = unwrap(model).eval()
    tally = Tally(args.num_classes, process.device, scale=SCALE)
    batch_time = AverageMeter()
    end = time.perf_counter()
    for step, (images, target, index) in enumerate(loader):
        with autocast(process.device, args.amp):
            logits = network(images)
        tally.update(logits, target, F.cross_entropy(logits.float(), target), index)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()
        if step % args.print_freq == 0 and process.is_main:
            fields = _fields(tally.running())
            if args.program == "main":
                timing = f"Time {batch_time.val:6.3f} ({batch_time.avg:6.3f})"
                fields = f"{timing}\t{_fields(tally.running(), '.4e')}"
            show(f"Test: {_count(step, len(loader))}\t{fields}")
    tally.reduce()
    return tally


def say(record: Record, text: str) -> None:
    """Print lines, and append them to the log of the run."""
    record.process.say(text)
    for log in record.log.values():
        log.write(text + "\n")


def result_lines(result: dict) -> str:
    """The original's two lines behind an evaluation; groups as fractions."""
    many, medium, low = (result[group] / 100 for group in ("many", "medium", "few"))
    return (
        f" * Acc@1 {result['top1']:.3f} Acc@5 {result['top5']:.3f}\n"
        f"Many_acc: {many:.5f}, Medium_acc: {medium:.5f} Low_acc: {low:.5f}"
    )


def log_epoch(record: Record, row: dict, best: float, args: Namespace) -> None:
    """Print a finished epoch in the original's words and write its tensorboard scalars."""
    if record.writer is None:
        return
    if "top1" in row:  # not every epoch, with --eval_every
        name, current = record.selection.score_name, row[record.selection.score]
        print(f"Current {name}: {current:.3f}\nBest {name}: {best:.3f}\n", flush=True)
    train = "Train/losses", "Train/top1", "Train/top5"
    if args.program == "main":
        train = "Train/Loss", "Train/Acc@1", "Train/Acc@5"
    tags = {
        **dict(zip(train, ("train_loss", "train_top1", "train_top5"), strict=True)),
        "Validation/Acc@1": "top1", "Validation/Acc@5": "top5",
        "Validation/Many_acc": "many", "Validation/Medium_acc": "medium",
        "Validation/Low_acc": "few", "lr": "lr",
    }  # fmt: skip
    for tag, key in tags.items():
        if key in row:
            record.writer.add_scalar(tag, row[key], row["epoch"])
