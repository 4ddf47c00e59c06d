"""Flags of ``train_isic.py``: the original's under all their spellings, then ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.models import pretrained
from common.training.flags import Parser, add_run_flags
from common.training.schedules import stretch
from hmloss import flags
from hmloss.isic2019_implementation.data import FOLDER, TASKS
from hmloss.isic2019_implementation.model import ARCHS, FROM_SCRATCH
from hmloss.isic2019_implementation.schedule import PAPER_EPOCHS, START_HM_EPOCH

FOLDERS = ("dataset_dir", "model_path", "history_path", "result_dir")
GAMMA = 1.0  # of the focal loss
UNUSED = {"momentum": 0.9, "weight_decay": 2e-4}  # the original parses them and trains with Adam


def boolean(text: str) -> bool:
    """``true``, ``false`` and their usual spellings; the original took every text for true."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
        text.lower()
    )
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r}: choose true or false")
    return value


def get_parser() -> Parser:
    """The parser of the program."""
    parser = Parser(
        description="Hard mining loss on ISIC 2019, melanoma against nevi; or on all its classes, "
        "or a folder of images"
    )
    add = parser.add_argument
    add(
        "--use_cuda",
        type=boolean,
        default=True,
        help="false: run on the CPU (default: true, where there is a GPU)",
    )
    add("--num_epochs", type=int, default=100, metavar="N", help="epochs (default: 100)")
    add(
        "--ratio_finetune",
        type=float,
        default=32,
        metavar="PERCENT",
        help="share of the parameter tensors that is trained, from the top (default: 32)",
    )
    add(
        "--weighting_type",
        default="None",
        choices=flags.WEIGHTINGS,
        help="class weights: 1/n (CS) or effective number (CB); with HML in the second stage only",
    )
    add(
        "--start_hm_epoch",
        type=int,
        default=None,
        metavar="N",
        help="first epoch, from 1, of the second stage (default: 50)",
    )
    add(
        "--gpu",
        type=int,
        default=None,
        help="use this GPU (default: all GPUs, one process each; the CPU where there is none)",
    )
    add(
        "--loss_type",
        "--loss_function",
        default="HML",
        choices=["CE", "HML", "HML1", "Focal", "LDAM"],
        help="HML and HML1: cross-entropy first, then the hard mining loss (default: HML)",
    )
    add(
        "--max_lr",
        "--learning-rate",
        type=float,
        default=0.001,
        metavar="LR",
        dest="max_lr",
        help="top of the cyclic learning rate (default: 0.001); with the rate set once an epoch, "
        "as in the original, 100 epochs end at 0.059 of it: see --step_size_up",
    )
    add(
        "-b",
        "--batch_size",
        "--batch-size",
        type=int,
        default=128,
        metavar="N",
        help="training batch over all GPUs; half of it in evaluation (default: 128)",
    )
    add(
        "--delay",
        type=int,
        default=15,
        metavar="N",
        help="stop after so many epochs without a better validation (default: 15)",
    )
    add(
        "--num_runs",
        type=int,
        default=10,
        metavar="N",
        help="trainings, run r with seed --seed + r, and a summary over them (default: 10)",
    )
    for flag, default, what in (
        ("--dataset_dir", "/dataset/", "images, see --task"),
        ("--model_path", "/checkpoint/", "checkpoints"),
        ("--history_path", "/history/", "logs, pictures and the split"),
        ("--result_dir", "/results/", "test results"),
    ):
        name = default.strip("/")
        add(
            flag,
            default=default,
            metavar="DIR",
            help=f"folder of the {what} (default: {name} in the current folder)",
        )
    add("--momentum", type=float, default=UNUSED["momentum"], help="unused: Adam has none")
    add(
        "--wd",
        "--weight-decay",
        type=float,
        default=UNUSED["weight_decay"],
        dest="weight_decay",
        help="unused: the original trains without weight decay",
    )
    add(
        "-j",
        "--workers",
        type=int,
        default=4,
        metavar="N",
        help="worker processes that load images (default: 4)",
    )
    add(
        "--delta",
        type=int,
        default=flags.DELTA,
        help="δ of HML: samples with a probability below about 1.2/δ count as outliers "
        "(default: 10000)",
    )
    add_run_flags(parser, loader=False, image_size=False, val_fraction=False)
    flags.add_our_flags(parser, gamma=GAMMA)
    ours = parser.add_argument_group("data, network and run")
    ours.add_argument(
        "--task",
        default="melanoma",
        choices=[*TASKS, FOLDER],
        help="melanoma: images in BEN/ and MAL/; all: the eight classes of ISIC 2019, in MEL/, "
        "NV/, …; both also below TRAIN/, VALID/ and TEST/; imagefolder: any classes, <class>/* "
        "below train/, val/ and test/, or without these to have them split (default: melanoma)",
    )
    ours.add_argument(
        "--split_file",
        metavar="FILE",
        help="split made by preprocessing/split.py (default: DATASET_DIR/split.csv if it is "
        "there, else the folders' own, or one drawn with the seed)",
    )
    ours.add_argument(
        "--augmented_eval",
        action="store_true",
        help="validate and test on randomly augmented images, as the original did by mistake",
    )
    ours.add_argument(
        "--arch",
        default="efficientnet_b3",
        choices=ARCHS,
        help="network (default: efficientnet_b3)",
    )
    ours.add_argument(
        "--image_size", type=int, default=300, metavar="PX", help="side of the input (default: 300)"
    )
    ours.add_argument(
        "--random_init",
        action="store_true",
        help="train from scratch (default: start from ImageNet weights, torchvision's first ones)",
    )
    ours.add_argument(
        "--step_size_up",
        type=int,
        default=None,
        metavar="N",
        help="half a cycle of the learning rate, in iterations (default: 2000 epochs)",
    )
    ours.add_argument(
        "--resume",
        default="",
        metavar="PATH",
        help="checkpoint to go on from; 'auto': the runs' own, as far as there are any",
    )
    ours.add_argument(
        "-e", "--evaluate", action="store_true", help="test the --resume checkpoint and stop"
    )
    ours.add_argument(
        "--seed",
        type=int,
        default=None,
        help="seed everything and use deterministic kernels (default: a random seed, reported)",
    )
    ours.add_argument(
        "-p",
        "--print_freq",
        type=int,
        default=100,
        metavar="N",
        help="a log line every so many iterations (default: 100)",
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check a command line.

    Returns: the flags, with folders as paths, ``start_hm_epoch`` and ``store_name`` filled in.
    Raises:
        UsageError: it asks for the impossible.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    flags.check_losses(parser, args)
    if not 0 < args.ratio_finetune <= 100:
        parser.error(f"--ratio_finetune {args.ratio_finetune}: a percentage, 0 < r <= 100")
    for name, value in UNUSED.items():
        if getattr(args, name) != value:
            flag = "--wd" if name == "weight_decay" else f"--{name}"
            parser.error(f"{flag} {getattr(args, name)}: this program trains with plain Adam")
    if args.weights and args.random_init:
        parser.error("--weights and --random_init exclude each other: leave one out")
    if not (args.weights or args.random_init or args.resume):
        pretrained.check(args.arch, FROM_SCRATCH)
    if args.start_hm_epoch is None:
        args.start_hm_epoch = default_start(args)
    for name in FOLDERS:
        # The original puts every folder below the current one; its defaults still go there.
        value = getattr(args, name)
        default = parser.get_default(name)
        setattr(args, name, Path.cwd() / value.strip("/") if value == default else Path(value))
    args.store_name = store_name(args)
    return args


def default_start(args: argparse.Namespace) -> int:
    """First epoch, from 1, of the second stage where ``--start_hm_epoch`` does not say it."""
    if args.stretch_schedule:
        return stretch(START_HM_EPOCH, args.num_epochs, PAPER_EPOCHS)
    return START_HM_EPOCH


def notes(args: argparse.Namespace) -> list[str]:
    """``flags.loss_notes``, and a ``--stretch_schedule`` without effect: it moves one epoch."""
    start = default_start(args)
    found = flags.loss_notes(args, args.num_epochs, start=start, gamma=GAMMA, first=1)
    if args.stretch_schedule and "HML" not in args.loss_type:
        found.append(f"note: --stretch_schedule has no effect with --loss_type {args.loss_type}")
    elif args.stretch_schedule and args.start_hm_epoch != start:
        found.append("note: --stretch_schedule has no effect with --start_hm_epoch")
    return found


def store_name(args: argparse.Namespace) -> str:
    """Name of the folders of a group of runs, as the original builds it."""
    arch = args.arch.replace("net_", "")
    prefix = {"melanoma": "isic2019", "all": "isic2019_all"}.get(args.task, args.task)
    name = f"{prefix}_{arch}_{args.loss_type}_W_{args.weighting_type}_F_{args.ratio_finetune}"
    return f"{name}_D_{args.delta}" if "HML" in args.loss_type else name
