"""The parser of every program, and the flags added to the original's; defaults change nothing."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line, instead of below a page of usage.

    The original's flags stand in the parser's own group; what is added has groups of its own.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _get_option_tuples(self, option_string: str) -> list[tuple]:
        """The flags that an abbreviation may mean: the original's, as far as there are any.

        ``--weight`` is ``--weight-decay`` as it always was, although ``--weights`` was added; and
        several spellings of one flag are no choice.
        """
        matches = super()._get_option_tuples(option_string)
        original = [match for match in matches if match[0] in self._optionals._group_actions]
        return list({match[0].dest: match for match in original or matches}.values())


def add_run_flags(
    parser: argparse.ArgumentParser, *, loader: bool = True, image_size: bool = True
) -> None:
    """Add the shared flags: feeding, precision, schedule length.

    Without ``loader`` and ``image_size`` for data that does not fit in memory.
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
        "--stretch_schedule",
        action="store_true",
        help="scale the milestones and phase switches, made for the paper's number of epochs, "
        "to --epochs (warm-up kept)",
    )
    if image_size:
        group.add_argument(
            "--image_size",
            type=int,
            default=32,
            metavar="PX",
            help="side to which imagefolder, npz and digits images are brought (default: 32)",
        )
