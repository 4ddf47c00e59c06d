"""Flags of ``train_inat.py``, a program that the authors named and never published."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.models.archs import IMAGENET_RESNETS
from common.training.flags import Parser, add_run_flags
from hmloss import flags
from hmloss.schedule import Schedule

INAT = "./data/iNaturalist18"
ARCHS = (*IMAGENET_RESNETS, "resnext50_32x4d", "resnext101_32x8d")


def get_parser() -> Parser:
    """The parser of the program."""
    parser = Parser(description="Hard mining loss on iNaturalist 2018 or a folder of images")
    flags.add_training_flags(
        parser, arch="resnet50", archs=ARCHS, loss_type="HML", batch_size=256, num_runs=1
    )
    add_run_flags(parser, loader=False, image_size=False)
    flags.add_our_flags(parser, gamma=0.0)
    ours = parser.add_argument_group("data")
    ours.add_argument(
        "--dataset",
        default="inat",
        choices=["inat", "imagefolder"],
        help="inat reads list files, imagefolder DIR/train/<class>/* and DIR/{val,test}/<class>/* "
        "(default: inat)",
    )
    ours.add_argument(
        "--dataset_dir",
        "--root",
        metavar="DIR",
        help=f"folder of the images, which the paths in the lists start from (default: {INAT})",
    )
    for part in ("train", "val"):
        ours.add_argument(
            f"--{part}_list",
            default=f"iNaturalist18_{part}.txt",
            metavar="FILE",
            help="list of `relative/path label` lines, here or in DATASET_DIR (default: "
            f"iNaturalist18_{part}.txt)",
        )
    ours.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes, one a line in the order of the labels (default: the third "
        "column of the training list, or numbers)",
    )
    ours.add_argument(
        "--image_size", type=int, default=224, metavar="PX", help="side of the input (default: 224)"
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Schedule]:
    """Parse and check a command line.

    Returns: the flags, ``start_hm_epoch`` filled in; the schedule, stretched if asked for.
    Raises:
        UsageError: it asks for the impossible.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.dataset == "imagefolder":
        if args.dataset_dir is None:
            parser.error("--dataset imagefolder: say where the images are, --root DIR")
        for name in ("train_list", "val_list", "classes"):
            if (value := getattr(args, name)) != parser.get_default(name):
                parser.error(
                    f"--{name} {value}: for list files; an image folder's classes are its folders, "
                    "whose order a classes.txt in it gives"
                )
    args.dataset_dir = args.dataset_dir or INAT
    return args, flags.check(parser, args, Schedule())


def store_name(args: argparse.Namespace) -> str:
    """Name of the group of runs."""
    data = "inat2018" if args.dataset == "inat" else args.dataset
    return f"{data}_{args.arch}_{args.loss_type}_W_{args.weighting_type}_D_{args.delta}"


def run_name(args: argparse.Namespace, run: int) -> str:
    """Folder of one run."""
    return f"{store_name(args)}_run{run}"
