"""Flags of ``train_cifar.py``: the original's under all their spellings, then ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.models.archs import CIFAR_RESNETS, IMAGENET_RESNETS
from common.training.flags import Parser, add_run_flags
from hmloss import flags
from hmloss.schedule import Schedule

IMB_FACTOR = 0.01
ARCHS = (*CIFAR_RESNETS, *IMAGENET_RESNETS)


def get_parser() -> Parser:
    """The parser of the program."""
    parser = Parser(description="Hard mining loss on long-tailed CIFAR")
    add = parser.add_argument
    add(
        "--dataset",
        "--dataset_name",
        default="cifar10",
        choices=["cifar10", "cifar100", "digits", "imagefolder", "npz"],
        help="data set (default: cifar10)",
    )
    add(
        "--imb_type",
        default="exp",
        choices=["exp", "step", "both", "none"],
        help="long tail, two steps, one after the other, or the data as it is (default: exp)",
    )
    add(
        "--imb_ratio_list",
        "--ir_list",
        "--imb_ratio",
        type=float,
        nargs="+",
        default=None,
        metavar="R",
        dest="ir_list",
        help='smallest class / largest class, 0 < r <= 1, one or more: 0.02 is "ratio 50" '
        "(default: --imb_factor, or 0.01)",
    )
    add("--imb_factor", type=float, default=None, metavar="R", help="the same for a single ratio")
    add("--rand_number", type=int, default=0, help="seed of the choice of the subset (default: 0)")
    flags.add_training_flags(
        parser, arch="resnet32", archs=ARCHS, loss_type="CE", batch_size=128, num_runs=10
    )
    add_run_flags(parser)
    flags.add_our_flags(parser, gamma=0.0)
    parser.add_argument_group("data").add_argument(
        "--root",
        default="./data",
        metavar="DIR",
        help="folder of the data set, or FILE.npz (default: ./data)",
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Schedule]:
    """Parse and check a command line.

    Returns: the flags, ``ir_list`` a list and ``start_hm_epoch`` filled in; the schedule, stretched
    if asked for.
    Raises:
        UsageError: it asks for the impossible.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    flag = "--imb_ratio"
    if args.ir_list is not None and args.imb_factor is not None:
        parser.error(f"--imb_ratio and --imb_factor {args.imb_factor} say the same: leave one out")
    if args.ir_list is None:
        flag, factor = "--imb_factor", args.imb_factor
        args.ir_list = [IMB_FACTOR if factor is None else factor]
    for ratio in args.ir_list:
        if not 0 < ratio <= 1:
            parser.error(f"{flag} {ratio}: smallest / largest class, 0 < r <= 1")
    ratios = " ".join(map(str, args.ir_list))
    if len(set(args.ir_list)) < len(args.ir_list):
        parser.error(f"--imb_ratio {ratios}: names a ratio twice")
    if args.imb_type == "none" and len(args.ir_list) > 1:
        parser.error(
            f"--imb_ratio {ratios}: --imb_type none takes the data as they are, whatever the "
            "ratio; give one"
        )
    return args, flags.check(parser, args, Schedule())


def notes(args: argparse.Namespace, schedule: Schedule) -> list[str]:
    """``flags.notes``, and an imbalance without effect."""
    found = list(flags.notes(args, schedule))
    if args.imb_type == "none" and args.ir_list != [IMB_FACTOR]:
        flag = "--imb_ratio" if args.imb_factor is None else "--imb_factor"
        found.append(f"note: {flag} has no effect with --imb_type none")
    return found


def imb_types(imb_type: str) -> list[str]:
    """The imbalance types that ``--imb_type`` names, in the order in which they run."""
    return ["exp", "step"] if imb_type == "both" else [imb_type]


def store_name(args: argparse.Namespace, imb_type: str, ratio: float) -> str:
    """Name of a group of runs, as the original builds it."""
    parts = [args.dataset, imb_type, str(ratio), args.arch, args.loss_type]
    parts += ["W", args.weighting_type]
    if "HML" in args.loss_type:
        parts += ["D", str(args.delta)]
    return "_".join(parts)


def run_name(args: argparse.Namespace, store: str, run: int) -> str:
    """Folder of one run; the original's other losses name no run, so that only one keeps it."""
    if "HML" in args.loss_type or args.num_runs > 1:
        return f"{store}_run{run}"
    return store
