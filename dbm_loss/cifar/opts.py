"""The flags of the CIFAR program: the original's names, defaults and meaning, then ours."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from common.training.errors import UsageError
from common.training.flags import LARGEST, Parser, add_run_flags
from dbm_loss.augment.policies import AUTO_AUGMENT_NAMES, POLICY_NAMES
from dbm_loss.cifar.models import NCLModel
from dbm_loss.cifar.schedule import LR_DECAY, Schedule
from dbm_loss.flags import add_margin_norm, check_nesterov, check_scale, no_effect, without_scale

LOSSES = ("ce", "ce_drw", "bs", "ldam", "ldam_drw", "bcl", "ncl")
DATASETS = ("cifar100", "cifar10", "digits", "imagefolder", "npz")
WHOLE_BATCH_POLICIES = ("none", *AUTO_AUGMENT_NAMES)  # the others run image by image only
COS_SCALE, NCL_SCALE = 32.0, 16.0
DEAD_FLAGS = ("network", "update_epoch", "aug_prob", "posthoc_la", "sim_type", "num_max",
              "num_experts", "ride_distill")  # fmt: skip
DEAD = "no effect, as in the original; accepted so that its commands run"


def _seed(text: str) -> int | None:
    return None if text == "None" else int(text)


def _ratio(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def get_parser() -> Parser:
    """The argument parser; every original flag with its alias and default, then ours."""
    parser = Parser(description="Difficulty-aware balancing margin on long-tailed CIFAR")
    add = parser.add_argument
    add("--name", default="tmp", help="name of the run, part of its folder (default: tmp)")
    add("--network", default="resnet32", help=f"{DEAD}: the network is a ResNet-32")
    add(
        "--epochs",
        type=int,
        default=200,
        metavar="N",
        help="epochs; 200 and 400 also choose the learning rate schedule (default: 200)",
    )
    add(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="training and test batch, over all GPUs (default: 64)",
    )
    add("--update-epoch", type=int, default=1, help=DEAD)
    add(
        "--lr",
        "--learning-rate",
        dest="lr",
        type=float,
        default=0.1,
        help="base learning rate (default: 0.1)",
    )
    add(
        "--lr_decay",
        type=float,
        default=LR_DECAY,
        help="factor of each step of the step schedule (default: 0.01)",
    )
    add("--momentum", type=float, default=0.9, help="SGD momentum (default: 0.9)")
    add("--wd", type=float, default=2e-4, help="weight decay on all parameters (default: 2e-4)")
    add("--nesterov", action="store_true", help="Nesterov momentum")
    add(
        "--scheduler",
        default="warmup",
        choices=["warmup", "cosine"],
        help="warmup: warm-up, then --cos or steps; cosine: PyTorch's (default: warmup)",
    )
    add("--warmup", type=int, default=5, metavar="N", help="warm-up epochs (default: 5)")
    add("--aug_prob", type=float, default=0.5, help=f"{DEAD}: a policy changes every image")
    add(
        "--cutout",
        action="store_true",
        help="black square in the first view, of half the image's side: 16 of 32 pixels",
    )
    add(
        "--cmo",
        action="store_true",
        help="CutMix of class-balanced images into the batch; not with bcl and ncl",
    )
    add("--posthoc_la", action="store_true", help=DEAD)
    add(
        "--aug_type",
        default="none",
        choices=POLICY_NAMES,
        help="augmentation policy of the first view (default: none)",
    )
    add("--sim_type", default="none", help=DEAD)
    add(
        "--use_norm",
        action="store_true",
        help="cosine classifier, its output scaled by --cos_scale (ldam: by 30; ncl: with "
        "--use_dbm only)",
    )
    add(
        "--cos",
        action="store_true",
        help="cosine schedule; without --stretch_schedule for 200 epochs only",
    )
    add(
        "--out",
        default="./results/",
        metavar="DIR",
        help="results go to DIR/<dataset>/<name>/ir_<ratio> (default: ./results/)",
    )
    add(
        "--data_dir",
        default="./dataset/",
        metavar="DIR",
        help="data are in DIR/cifar100 or DIR/cifar10, imagefolder in DIR, npz: FILE.npz (default: "
        "./dataset/)",
    )
    add(
        "--workers",
        type=int,
        default=4,
        metavar="N",
        help="worker processes of --loader workers (default: 4)",
    )
    add(
        "--seed",
        type=_seed,
        default=None,
        help="seed everything and use deterministic kernels (default: a random seed, reported)",
    )
    add(
        "--gpu",
        type=int,
        default=None,
        help="use this GPU (default: the first; the CPU where there is none)",
    )
    add("--dataset", default="cifar100", choices=DATASETS, help="data set (default: cifar100)")
    add("--num_max", type=int, default=500, help=f"{DEAD}: the largest class has all its images")
    add(
        "--imb_ratio",
        type=_ratio,
        default=100,
        metavar="R",
        help="largest class / smallest class (default: 100)",
    )
    add("--loss_fn", default="ce", choices=LOSSES, help="loss (default: ce)")
    add("--num_experts", type=int, default=3, help=f"{DEAD}: NCL has three")
    add("--ride_distill", action="store_true", help=DEAD)
    add("--use_dbm", action="store_true", help="the margin; needs --use_norm")
    add(
        "--cos_scale",
        type=float,
        help=f"s, the scale of the cosines (default: {COS_SCALE:g}; ncl: {NCL_SCALE:g})",
    )
    add(
        "--max_margin",
        type=float,
        default=0.1,
        help="K, the margin of the class that --margin_norm says; ldam: its largest margin "
        "(default: 0.1)",
    )
    add("--tau", type=float, default=1.0, help="exponent of the class margin (default: 1)")
    add("--lambda_inst", type=float, default=1.0, help="weight of the instance margin (default: 1)")
    add_run_flags(parser)
    ours = parser.add_argument_group("also added").add_argument
    ours(
        "--imb_type",
        default="exp",
        choices=["exp", "none"],
        help="exp: a long tail is cut out of the data; none: the data as they are (default: exp)",
    )
    add_margin_norm(ours)
    ours(
        "--resume",
        default="",
        metavar="PATH",
        help="checkpoint to go on from; 'auto': this run's own, if there is one",
    )
    ours("-e", "--evaluate", action="store_true", help="evaluate the --resume checkpoint and stop")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Schedule]:
    """Parse and check a command line.

    Returns: the flags, with ``cos_scale`` as the loss will use it (16 for NCL unless given, as in
    the original), the ``loader`` that knows the policy, and ``out`` as the folder of this run;
    ``margin_norm`` stays None where the user does not say it; and the learning rate schedule.
    Raises:
        UsageError: flags that contradict each other or cannot mean anything.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.cos_scale is None:
        args.cos_scale = _default_scale(args.loss_fn)
    if args.aug_type not in WHOLE_BATCH_POLICIES:
        args.loader = "workers"
    _check(parser, args)
    ratio = args.imb_ratio if args.imb_type == "exp" else "none"
    args.out = os.path.join(args.out, args.dataset, args.name, f"ir_{ratio}", "")
    schedule = Schedule(
        loss_fn=args.loss_fn,
        lr=args.lr,
        epochs=args.epochs,
        cos=args.cos,
        scheduler=args.scheduler,
        warmup=args.warmup,
        lr_decay=args.lr_decay,
        stretched=args.stretch_schedule,
    )
    return args, schedule


def _default_scale(loss_fn: str) -> float:
    return NCL_SCALE if loss_fn == "ncl" else COS_SCALE


def _check(parser: Parser, args: argparse.Namespace) -> None:
    parser.check_numbers(args, batch_size=(2, LARGEST), imb_ratio=(1, sys.float_info.max))
    check_nesterov(args)
    check_scale(args)
    if args.use_dbm and not args.use_norm:
        raise UsageError("--use_dbm: the margin is an angle and needs cosines; add --use_norm")
    if args.cmo and args.loss_fn in ("bcl", "ncl"):
        raise UsageError(
            f"--cmo with --loss_fn {args.loss_fn}: it mixes single images, this loss compares "
            "several views; leave --cmo out"
        )
    if args.loss_fn == "ncl" and NCLModel.queue_size % args.batch_size:
        raise UsageError(
            f"--batch-size {args.batch_size}: with --loss_fn ncl it must divide the "
            f"{NCLModel.queue_size} keys of the queue; take 64, 128 or 256"
        )
    if args.evaluate and not args.resume:
        raise UsageError("--evaluate: name the checkpoint to evaluate with --resume")


def notes(args: argparse.Namespace, schedule: Schedule) -> list[str]:
    """What the user should know before the run: flags and steps without effect."""
    parser = get_parser()
    parser.set_defaults(cos_scale=_default_scale(args.loss_fn))
    reasons = {"cos_scale": without_scale(args)}
    if args.imb_type == "none":
        reasons["imb_ratio"] = "with --imb_type none"
    if args.scheduler == "cosine":
        reasons["warmup"] = "with --scheduler cosine"
        if not args.loss_fn.endswith("_drw"):
            reasons["stretch_schedule"] = "with --scheduler cosine"
    if args.epochs < 8:
        reasons["cmo"] = (
            f"with --epochs {args.epochs}: the first four and the last three are not mixed"
        )
    found = [
        f"--{name.replace('update_epoch', 'update-epoch')} has no effect, as in the original"
        for name in DEAD_FLAGS
        if getattr(args, name) != parser.get_default(name)
    ]
    if args.loss_fn == "ncl" and args.use_norm and not args.use_dbm:
        found.append("--loss_fn ncl with --use_norm, without --use_dbm: the cosines are not scaled")
    if args.aug_type not in WHOLE_BATCH_POLICIES:
        found.append(f"--aug_type {args.aug_type} runs image by image: the loader is 'workers'")
    found = [*no_effect(args, parser, reasons), *found]
    return [f"note: {note}" for note in found] + schedule.notes()
