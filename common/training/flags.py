"""The parser of every program, and the flags added to the original's; defaults change nothing."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from common import models
from common.training.errors import UsageError

LARGEST = 2**63 - 1  # of the whole numbers that torch and NumPy take
# Smallest and largest value of a number by its flag or key; any other begins at 0.
LIMITS = {
    "epochs": (1, LARGEST),
    "num_epochs": (1, LARGEST),
    "batch_size": (1, LARGEST),
    "print_freq": (1, LARGEST),
    "eval_every": (1, LARGEST),
    "num_classes": (1, 1_000_000),
    "workers": (0, 1024),
    "image_size": (8, 8192),
    "rand_number": (0, 2**32 - 1),  # NumPy's legacy generator takes no more
    "fake_data": (0, 100_000_000),
}
# Of the place of a process, which the launch checks, not of the training.
PLACES = {"gpu", "local_rank", "rank", "world_size"}


def check_numbers(
    numbers: Mapping[str, object], where: str = "", **limits: tuple[float, float]
) -> None:
    """Refuse numbers that are negative, not finite or beyond their limits, before any training.

    Args:
        numbers: values by flag (``--lr``) or key (``lr``), also lists of them; others are skipped.
        where: what the message starts with, say the file that a key stands in.
        limits: smallest and largest value of some of them, instead of ``LIMITS``.
    Raises:
        UsageError: names the flag, the value and the limit.
    """
    for flag, value in numbers.items():
        name = flag.lstrip("-").replace("-", "_")
        low, high = limits.get(name) or LIMITS.get(name) or (0, None)
        for number in value if isinstance(value, list) else [value]:
            if type(number) not in (int, float) or name in PLACES:
                continue
            most = high if high is not None else LARGEST
            if high is None and isinstance(number, float):
                most = sys.float_info.max
            if not low <= number <= most:  # NaN neither
                wrong = f"must be at least {low}" if number < low else f"must be at most {most}"
                if not math.isfinite(number):
                    wrong = f"must be a finite number, at least {low}"
                raise UsageError(f"{where}{flag} {number}: {wrong}")


def spelled(name: str, dashes: str = "--", value: object = "") -> str:
    """A flag as the user of a program writes it; without ``dashes`` a key, as arbloss has them."""
    return f"{dashes}{name} {value or ('' if dashes else True)}".rstrip()


def check_start_epoch(start_epoch: int, epochs: int) -> None:
    """Refuse a first epoch (from 0) behind the last one.

    Raises:
        UsageError: nothing would be trained.
    """
    if start_epoch >= epochs:
        raise UsageError(
            f"--start-epoch {start_epoch}: the last of --epochs {epochs} is epoch {epochs - 1}"
        )


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line, instead of below a page of usage.

    The original's flags stand in the parser's own group; what is added has groups of its own.
    """

    def error(self, message: str) -> NoReturn:
        """Raises UsageError, as every check of the flags does: one process says it, exit code 2."""
        raise UsageError(message)

    def check_numbers(self, args: argparse.Namespace, **limits: tuple[float, float]) -> None:
        """``check_numbers`` of all flags, under their first long names."""
        flags = {
            next(name for name in action.option_strings if name.startswith("--")): action.dest
            for action in self._actions
            if action.option_strings
        }
        numbers = {flag: getattr(args, dest, None) for flag, dest in flags.items()}
        check_numbers(numbers, **limits)

    def _get_option_tuples(self, option_string: str) -> list[tuple]:
        """The flags that an abbreviation may mean: the original's, as far as there are any.

        ``--weight`` is ``--weight-decay`` as it always was, although ``--weights`` was added; and
        several spellings of one flag are no choice.
        """
        matches = super()._get_option_tuples(option_string)
        original = [match for match in matches if match[0] in self._optionals._group_actions]
        return list({match[0].dest: match for match in original or matches}.values())


def fraction(text: str) -> float:
    """A number from 0 to below 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 0 to below 1")
    return value


WEIGHTS_HELP = (
    "start from the weights in this file, those of torchvision or of a checkpoint; a classifier of "
    "other classes or another kind is left out"
)


def add_pretrained_flags(add: Callable[..., object]) -> None:
    """Add ``--pretrained`` and ``--weights``, for ``common.models.pretrained``."""
    add(
        "--pretrained",
        action="store_true",
        help="start from ImageNet weights, torchvision's first ones (default: random weights)",
    )
    add("--weights", metavar="FILE", help=WEIGHTS_HELP)


def check_pretrained(
    args: argparse.Namespace, arch: str, cure: str = "leave --pretrained out"
) -> None:
    """Refuse ``--pretrained`` for a network of which there are no published weights.

    With ``--resume`` the checkpoint has the weights; where ``auto`` finds none, loading refuses.

    Raises:
        UsageError: see ``common.models.pretrained.check``.
    """
    if args.pretrained and args.weights is None and not args.resume:
        models.pretrained.check(arch, cure)


def add_run_flags(
    parser: argparse.ArgumentParser,
    *,
    loader: bool = True,
    image_size: bool = True,
    val_fraction: bool = True,
    eval_every: bool = True,
) -> None:
    """Add the shared flags: feeding, precision, schedule length, validation images.

    Without ``loader`` and ``image_size`` for data that does not fit in memory, without
    ``val_fraction`` for data that have validation images in any case, and without ``eval_every``
    for a program that has it under another name.
    """
    group = parser.add_argument_group("added by this repository")
    if loader:
        group.add_argument(
            "--loader",
            default="device",
            choices=["device", "workers"],
            help="device: the whole set in memory, augmented by the batch on the training "
            "device; workers: image by image in worker processes (default: device)",
        )
    group.add_argument(
        "--amp",
        default="none",
        choices=["none", "bf16", "fp16"],
        help="mixed precision of the forward pass (default: none, float32)",
    )
    group.add_argument(
        "--channels_last",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="channels-last memory format (default: where it is faster, on the CPU and in half "
        "precision)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="start again in the folders of an earlier run: its logs and checkpoints are removed",
    )
    group.add_argument(
        "--other_data",
        action="store_true",
        help="go on with --resume although the data are not those that the run began with",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile forward pass and loss with torch.compile, for minutes at first",
    )
    group.add_argument(
        "--stretch_schedule",
        action="store_true",
        help="scale the milestones and phase switches, made for the paper's number of epochs, "
        "to --epochs (warm-up kept)",
    )
    if eval_every:
        group.add_argument(
            "--eval_every",
            type=int,
            default=1,
            metavar="N",
            help="evaluate the first epoch, from there each N-th, and the last (default: 1)",
        )
    if val_fraction:
        group.add_argument(
            "--val_fraction",
            type=fraction,
            default=0.0,
            metavar="F",
            help="this part of the training images of each class chooses the best epoch, and the "
            "test set is evaluated once (default: 0, the best epoch is chosen on the test set)",
        )
    if image_size:
        group.add_argument(
            "--image_size",
            type=int,
            default=32,
            metavar="PX",
            help="side to which imagefolder, npz and digits images are brought (default: 32)",
        )
