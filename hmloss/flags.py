"""Flags that the CIFAR and iNaturalist programs share, and their checks."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence

from common.training.flags import LARGEST, WEIGHTS_HELP, Parser, check_pretrained
from common.training.schedules import unreached
from datasets.data import Data
from hmloss.schedule import Schedule

WEIGHTINGS = ["None", "CS", "CB"]
LDAM_SCALE = 30.0  # of the logits
DELTA = 10000  # the default of --delta


def add_training_flags(
    parser: argparse.ArgumentParser,
    *,
    arch: str,
    archs: Collection[str],
    loss_type: str,
    batch_size: int,
    num_runs: int,
) -> None:
    """Add the original's flags with this program's defaults."""
    add = parser.add_argument
    add(
        "-a",
        "--arch",
        default=arch,
        choices=sorted(archs),
        metavar="ARCH",
        help=f"model, one of {', '.join(sorted(archs))} (default: {arch})",
    )
    add(
        "--loss_type",
        "--loss_function",
        default=loss_type,
        choices=["CE", "Focal", "LDAM", "HML", "HML1", "HML2"],
        help="HML and HML1: cross-entropy first, then the hard mining loss; HML2: the hard mining "
        "loss throughout, with a δ of 1e10 whatever --delta says (default: %(default)s)",
    )
    add(
        "--delta",
        type=int,
        default=DELTA,
        help="δ of HML and HML1: samples with a probability below about 1.2/δ count as outliers "
        "(default: 10000)",
    )
    add(
        "--weighting_type",
        default="None",
        choices=WEIGHTINGS,
        help="class weights: 1/n (CS) or effective number (CB); with HML in the second stage only",
    )
    add(
        "--start_hm_epoch",
        type=int,
        default=None,
        metavar="N",
        help="first epoch, from 0, of the second stage (default: 100)",
    )
    add(
        "--num_runs",
        type=int,
        default=num_runs,
        metavar="N",
        help="trainings, run r with seed --seed + r, and a summary over them (default: "
        "%(default)s)",
    )
    add(
        "-j",
        "--workers",
        type=int,
        default=4,
        metavar="N",
        help="worker processes that load images; on CIFAR with --loader workers (default: 4)",
    )
    add("--epochs", type=int, default=200, metavar="N", help="epochs (default: 200)")
    add(
        "-b",
        "--batch-size",
        type=int,
        default=batch_size,
        metavar="N",
        help="training batch over all GPUs; 100 in validation (default: %(default)s)",
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
        help="checkpoint to go on from; 'auto': the runs' own, as far as there are any",
    )
    add("-e", "--evaluate", action="store_true", help="evaluate the --resume checkpoint and stop")
    add(
        "--pretrained",
        action="store_true",
        help="start from ImageNet weights, torchvision's first ones (not for the CIFAR ResNets)",
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
    add("--path_history", default="history", help="folder of the logs (default: history)")
    add(
        "--path_model", default="checkpoint", help="folder of the checkpoints (default: checkpoint)"
    )


def add_our_flags(parser: argparse.ArgumentParser, gamma: float) -> None:
    """Add the flags that the original lacks."""
    group = parser.add_argument_group("losses and weights")
    group.add_argument(
        "--gamma",
        type=float,
        default=gamma,
        help="exponent of the focal loss (default: %(default)s, as in the original)",
    )
    group.add_argument("--weights", metavar="FILE", help=WEIGHTS_HELP)


def check(parser: Parser, args: argparse.Namespace, schedule: Schedule) -> Schedule:
    """Refuse impossible values; fill in ``start_hm_epoch``.

    Returns: the schedule, stretched if asked for.
    """
    check_losses(parser, args)
    check_pretrained(args, args.arch)
    if args.stretch_schedule:
        schedule = schedule.stretched(args.epochs)
    if args.start_hm_epoch is None:
        args.start_hm_epoch = schedule.start_hm_epoch
    return schedule


def check_losses(parser: Parser, args: argparse.Namespace) -> None:
    """What every program of this folder checks."""
    parser.check_numbers(
        args,
        delta=(1, LARGEST),
        num_runs=(1, 10_000),
        delay=(1, LARGEST),
        step_size_up=(1, LARGEST),
    )
    if args.evaluate and not args.resume:
        parser.error("--evaluate: name the checkpoint to evaluate with --resume")


def loss_notes(
    args: argparse.Namespace, epochs: int, *, start: int, gamma: float = 0.0, first: int = 0
) -> list[str]:
    """What may surprise about the chosen loss, and flags that it does not look at.

    ``start`` and ``gamma`` are the defaults of ``start_hm_epoch`` and ``gamma``, ``first`` is the
    number of the first epoch.
    """
    last = first + epochs - 1
    unused = {} if args.loss_type == "Focal" else {"gamma": gamma}
    if "HML" not in args.loss_type:
        unused |= {"delta": DELTA, "start_hm_epoch": start}
    found = [
        f"note: --{name} has no effect with --loss_type {args.loss_type}"
        for name, default in unused.items()
        if getattr(args, name) != default
    ]
    if "HML" in args.loss_type and args.start_hm_epoch > last:
        stage_one = "HML WITHOUT CLASS WEIGHTS" if args.loss_type == "HML2" else "CROSS ENTROPY"
        stretch = ", or leave it out and give --stretch_schedule"
        found.append(
            f"WARNING: the second stage of --loss_type {args.loss_type} starts at epoch "
            f"{args.start_hm_epoch} of {first} to {last}: THE WHOLE RUN IS {stage_one}. Lower "
            f"--start_hm_epoch{'' if args.stretch_schedule else stretch}"
        )
    if args.loss_type == "HML2" and args.delta != DELTA:
        found.append("note: HML2 has a δ of 1e10; --delta only names its folder")
    if args.loss_type == "Focal" and args.gamma == 0:
        found.append("note: the focal loss with γ = 0 is cross-entropy; --gamma changes that")
    return found


def notes(args: argparse.Namespace, schedule: Schedule) -> Sequence[str]:
    """What the user should know before the run: stages and steps that it never reaches."""
    found = loss_notes(args, args.epochs, start=schedule.start_hm_epoch)
    if note := unreached(schedule.milestones, args.epochs, args.stretch_schedule):
        found.append(note)
    return found


def logit_scale(args: argparse.Namespace) -> float:
    """What the loss multiplies the logits by."""
    return LDAM_SCALE if args.loss_type == "LDAM" else 1.0


def about(
    args: argparse.Namespace, program: str, data: Data, transform: Mapping[str, object]
) -> dict[str, object]:
    """What is trained, for the report and the checkpoints: see ``Record``.

    ``transform``: of an image to evaluate.
    """
    weighting = "" if args.weighting_type == "None" else f", {args.weighting_type}"
    return {
        "program": program,
        "method": f"{args.loss_type}{weighting}",
        "data": data.name,
        "network": {
            "arch": args.arch,
            "num_classes": len(data.classes),
            "use_norm": args.loss_type == "LDAM",
        },
        "transform": transform,
        "scale": logit_scale(args),
        "classes": data.classes,
        "cls_num_list": args.cls_num_list,
    }
