#!/usr/bin/env python
"""All benchmarks in one table, with the facts of the machine.

    python benchmarks/all.py [--write] [--quick]

About a quarter of an hour on two idle CPU cores; anything else that runs spoils the ratios. --write
puts the table into README.md beside this file; --quick tries everything in a minute or two, for
nothing.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the repository, from any folder

from benchmarks import (
    augment,
    cifar_epoch,
    isic_preprocess,
    large_scale_step,
    losses,
    programs,
    start,
)
from benchmarks.timing import Row, machine, table
from common.training import launch
from common.training.logs import write_text

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def measure(device: torch.device, quick: bool) -> list[Row]:
    """The rows of every benchmark."""
    rounds = 1 if quick else 2
    steps = (
        ("start", lambda: start.rows(2 * rounds)),
        (
            "programs",
            lambda: programs.rows(*((256, 128, 1) if quick else (1280, 128, 2))),
        ),
        ("epoch", lambda: cifar_epoch.rows(128 if quick else 640, rounds, "resnet32", device)),
        ("memory", lambda: [cifar_epoch.memory_row("resnet32")] if device.type == "cpu" else []),
        ("augmentation", lambda: augment.rows(128, 2 * rounds, device)),
        ("losses", lambda: losses.rows(rounds, device)),
        (
            "large images",
            lambda: large_scale_step.rows(
                images=16 if quick else 64,
                loader_batch=16,
                batch=256 if device.type == "cuda" else 8,
                arch="resnet50",
                rounds=rounds,
                device=device,
            ),
        ),
        ("preprocessing", lambda: isic_preprocess.rows(2 if quick else 10, rounds)),
    )
    found = []
    for name, rows in steps:
        began = time.perf_counter()
        found += rows()
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--quick", action="store_true", help="try all; the figures mean nothing")
    args = parser.parse_args(argv)
    if args.quick and args.write:
        parser.error("--write: the figures of --quick mean nothing; leave one of them out")
    torch.manual_seed(0)
    device = launch.start().device
    today = datetime.date.today().isoformat()
    text = f"{machine(device)}; {today}\n\n{table(measure(device, args.quick))}"
    print(text)
    if args.write:
        readme = (HERE / "README.md").read_text()
        before, after = readme.split(BEGIN)[0], readme.split(END)[1]
        write_text(HERE / "README.md", f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
