"""Flags of ``cifar_train.py`` and ``tinyimage_train.py``: the original's, then ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.models.archs import CIFAR_RESNETS, IMAGENET_RESNETS
from common.training.flags import (
    WEIGHTS_HELP,
    Parser,
    add_run_flags,
    check_pretrained,
    check_start_epoch,
)
from common.training.schedules import unreached
from ib_loss.schedule import Schedule

ARCHS = (*CIFAR_RESNETS, *IMAGENET_RESNETS, "resnext50_32x4d", "resnext101_32x8d")
DATASETS = ["cifar10", "cifar100", "tinyimagenet", "digits", "imagefolder", "npz"]
OWN_SIDE = 64  # of one's own images in tinyimage_train.py: the side of Tiny ImageNet's
FROM_SCRATCH = "start from random weights with --no-pretrained"
IMB_FACTOR = 0.01
START_IB_EPOCH = 100  # in both programs
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "tinyimagenet": 200, "digits": 10}


def get_parser(program: str = "cifar") -> Parser:
    """The parser of a program, ``"cifar"`` or ``"tiny"``; both have the same flags."""
    tiny = program == "tiny"
    parser = Parser(
        description=f"Influence-balanced loss on {'Tiny ImageNet' if tiny else 'CIFAR'}",
    )
    add = parser.add_argument
    add(
        "--dataset",
        default="tinyimagenet" if tiny else "cifar10",
        choices=DATASETS,
        help="data set (default: %(default)s)",
    )
    add(
        "-a",
        "--arch",
        default="resnet18" if tiny else "resnet32",
        choices=sorted(ARCHS),
        metavar="ARCH",
        help=f"model, one of {', '.join(sorted(ARCHS))} (default: %(default)s)",
    )
    add(
        "--num_classes",
        type=int,
        default=None,
        help="width of the classifier (default: the data set's number of classes)",
    )
    add(
        "--loss_type",
        default="CE",
        choices=["CE", "LDAM", "Focal", "IB", "IBFocal"],
        help="IB and IBFocal: cross entropy first, then the influence-balanced loss",
    )
    add(
        "--imb_type",
        default="exp",
        choices=["exp", "step", "none"],
        help="long tail, two steps, or the data as it is (default: exp)",
    )
    add(
        "--imb_factor",
        type=float,
        default=IMB_FACTOR,
        help='smallest class / largest class, 0 < f <= 1 (default: 0.01, "ratio 100")',
    )
    add(
        "--train_rule",
        default="None",
        choices=["None", "Resample", "CBReweight", "Reweight", "IBReweight", "DRW"],
        help="class weights (Reweight is CBReweight), or class-balanced sampling",
    )
    add(
        "--start_ib_epoch",
        type=int,
        default=None,
        help="first epoch, from 0, with the influence-balanced loss (default: 100)",
    )
    add("--rand_number", type=int, default=0, help="seed of the choice of the subset (default: 0)")
    add("--exp_str", default="0", help="free label, last part of the run name (default: 0)")
    add(
        "-j",
        "--workers",
        type=int,
        default=4,
        metavar="N",
        help="worker processes of --loader workers (default: 4)",
    )
    add("--epochs", type=int, default=200, metavar="N", help="epochs (default: 200)")
    add("--start-epoch", type=int, default=0, metavar="N", help="first epoch (default: 0)")
    add(
        "-b",
        "--batch-size",
        type=int,
        default=128,
        metavar="N",
        help="training batch over all GPUs; 100 in validation (default: 128)",
    )
    add(
        "--lr",
        "--learning-rate",
        type=float,
        default=0.1,
        metavar="LR",
        dest="lr",
        help="base learning rate (default: 0.1)",
    )
    add("--momentum", type=float, default=0.9, metavar="M", help="SGD momentum (default: 0.9)")
    add(
        "--wd",
        "--weight-decay",
        type=float,
        default=2e-4,
        metavar="W",
        dest="weight_decay",
        help="weight decay on all parameters (default: 2e-4)",
    )
    add(
        "-p",
        "--print_freq",
        "--print-freq",
        type=int,
        default=100,
        metavar="N",
        help="a log line every so many batches (default: 100)",
    )
    add(
        "--resume",
        default="",
        metavar="PATH",
        help="checkpoint to go on from; 'auto': this run's own, if there is one",
    )
    add("-e", "--evaluate", action="store_true", help="evaluate the --resume checkpoint and stop")
    add(
        "--pretrained",
        action="store_true",
        default=tiny,
        help="start from ImageNet weights (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=None,
        help="seed everything and use deterministic kernels (default: a random seed, reported)",
    )
    add(
        "--gpu",
        type=int,
        default=None,
        help="use this GPU (default: all GPUs, one process each; the CPU where there is none)",
    )
    add("--root_log", default="log", help="folder of the logs (default: log)")
    add(
        "--root_model", default="checkpoint", help="folder of the checkpoints (default: checkpoint)"
    )
    add_run_flags(parser, image_size=not tiny)
    ours = parser.add_argument_group("data and weights")
    ours.add_argument(
        "--root",
        default="./data",
        metavar="DIR",
        help="folder of the data set, or FILE.npz (default: ./data)",
    )
    if tiny:
        ours.add_argument(
            "--image_size",
            type=int,
            default=None,
            metavar="PX",
            help="side to which imagefolder, npz and digits images are brought before they are "
            f"enlarged to 224 (default: {OWN_SIDE}, as Tiny ImageNet; digits 32)",
        )
    ours.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)
    ours.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    return parser


def parse_args(
    argv: Sequence[str] | None, program: str, schedule: Schedule
) -> tuple[argparse.Namespace, Schedule]:
    """Parse and check a command line.

    Returns: the flags, with ``num_classes`` (unless the data decides), ``image_size``,
    ``start_ib_epoch`` and the run name ``store_name`` filled in; and the schedule, stretched if
    asked for.
    Raises:
        UsageError: it asks for the impossible.
    """
    parser = get_parser(program)
    args = parser.parse_args(argv)
    expected = NUM_CLASSES.get(args.dataset)
    if args.num_classes is None:
        args.num_classes = expected
    elif expected and args.num_classes != expected:
        parser.error(
            f"--num_classes {args.num_classes}: {args.dataset} has {expected} classes; "
            f"give {expected} or leave the flag out"
        )
    parser.check_numbers(args)
    check_start_epoch(args.start_epoch, args.epochs)
    if not 0 < args.imb_factor <= 1:
        parser.error(f"--imb_factor {args.imb_factor}: smallest / largest class, 0 < f <= 1")
    if args.evaluate and not args.resume:
        parser.error("--evaluate: name the checkpoint to evaluate with --resume")
    if args.no_pretrained and args.weights:
        parser.error("--weights and --no-pretrained exclude each other: leave one out")
    args.pretrained = args.pretrained and not args.no_pretrained
    del args.no_pretrained
    check_pretrained(args, args.arch, FROM_SCRATCH)
    if args.image_size is None:
        args.image_size = OWN_SIDE if args.dataset in ("imagefolder", "npz") else 32
    if args.train_rule == "Reweight":
        args.train_rule = "CBReweight"
    if args.stretch_schedule:
        schedule = schedule.stretched(args.epochs)
    if args.start_ib_epoch is None:
        args.start_ib_epoch = _default_start(args, schedule)
    args.store_name = "_".join(
        [args.dataset, args.arch, args.loss_type, args.train_rule, args.imb_type,
         str(args.imb_factor), args.exp_str]
    )  # fmt: skip
    return args, schedule


def _default_start(args: argparse.Namespace, schedule: Schedule) -> int:
    return schedule.start_ib_epoch if args.stretch_schedule else START_IB_EPOCH


def notes(args: argparse.Namespace, schedule: Schedule) -> list[str]:
    """What the user should know before the run: phases and steps that it never reaches, and flags
    without effect.
    """
    found = []
    if args.imb_type == "none" and args.imb_factor != IMB_FACTOR:
        found.append("note: --imb_factor has no effect with --imb_type none")
    if "IB" not in args.loss_type and args.start_ib_epoch != _default_start(args, schedule):
        found.append(f"note: --start_ib_epoch has no effect with --loss_type {args.loss_type}")
    if "IB" in args.loss_type and args.start_ib_epoch >= args.epochs:
        stretch = ", or leave it out and give --stretch_schedule"
        found.append(
            f"WARNING: --loss_type {args.loss_type} starts at epoch {args.start_ib_epoch} of "
            f"{args.epochs}: THE WHOLE RUN IS CROSS ENTROPY. Lower --start_ib_epoch"
            f"{'' if args.stretch_schedule else stretch}"
        )
    milestones = [t for t, _ in (schedule.ib if "IB" in args.loss_type else schedule.plain)]
    if args.train_rule == "DRW":
        milestones.append(schedule.drw_epoch)
    if note := unreached(milestones, args.epochs, args.stretch_schedule):
        found.append(note)
    return found
