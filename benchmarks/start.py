#!/usr/bin/env python
"""How long a program takes to say what its flags are, beside ``python -c "import torch"``.

    python benchmarks/start.py [--rounds 5]

Processor time of a fresh interpreter, in turn; the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository, from any folder

from benchmarks.timing import Row, table

PROGRAMS = (
    "ib_loss/cifar_train.py", "dbm_loss/cifar/main.py",
    "hmloss/cifar_implementation/train_cifar.py", "arbloss/train_stage1.py",
)  # fmt: skip


def processor_seconds(words: Sequence[str]) -> float:
    """User and system time of ``python words…``."""
    before = os.times()
    subprocess.run([sys.executable, *words], capture_output=True, check=True, cwd=ROOT)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def rows(rounds: int, programs: Sequence[str] = PROGRAMS) -> list[Row]:
    commands = {"torch": ["-c", "import torch"]} | {p: [p, "--help"] for p in programs}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, words in commands.items():
            spent = processor_seconds(words)
            if turn:  # the first one fills the file cache
                times[name].append(spent)
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        Row(
            f"`{name} --help` beside `import torch`, processor time",
            f"{median['torch']:.2f} s",
            f"{median[name]:.2f} s",
            f"{median[name] / median['torch']:.2f} of it",
        )
        for name in programs
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="starts that count (default: 5)")
    args = parser.parse_args(argv)
    print(table(rows(args.rounds)))


if __name__ == "__main__":
    main()
