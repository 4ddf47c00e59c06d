#!/usr/bin/env python
"""Cross entropy and influence-balanced loss side by side on long-tailed digits, in minutes.

    python ib_loss/demo.py [--out FOLDER]

Trains the two through the real program on scikit-learn's handwritten digits (embedded, made
long-tailed: 130 images of "0" down to 2 of "9"), prints one table and names the pictures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from common.training import interrupt

interrupt.during_imports(__name__)

from common.training.errors import RunError
from common.training.flags import Parser
from common.training.launch import run

EPOCHS = 24
SHARED = [
    "--dataset", "digits", "--arch", "resnet20", "--imb_type", "exp", "--imb_factor", "0.02",
    "--epochs", str(EPOCHS), "--batch-size", "32", "--stretch_schedule", "--seed", "0",
    "--print_freq", "1000",
]  # fmt: skip
RUNS = {
    "CE": ["--loss_type", "CE", "--train_rule", "None"],
    "IB": ["--loss_type", "IB", "--train_rule", "IBReweight"],
}


def train(name: str, out: Path) -> tuple[dict, Path]:
    """Run the program in a process of its own; returns its report and its log folder."""
    command = [*SHARED, *RUNS[name]]
    # The newline in the string: two threads print, and print() writes its own newline apart.
    print(f"{name}: python ib_loss/cifar_train.py {' '.join(command)}\n", end="", flush=True)
    folders = ["--root_log", str(out / "log"), "--root_model", str(out / "checkpoint")]
    threads = max(1, (os.cpu_count() or 1) // len(RUNS))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "ib_loss" / "cifar_train.py"), *command, *folders],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
    )
    start, epochs = time.perf_counter(), 0
    for line in process.stdout:
        if line.startswith("Best Prec@1"):
            epochs += 1
            if epochs % 6 == 0:
                seconds = time.perf_counter() - start
                print(f"{name}: {epochs} of {EPOCHS} epochs, {seconds:.0f} s\n", end="", flush=True)
    if process.wait() != 0:
        raise RunError(f"{name} ended with exit code {process.returncode}")
    rule = RUNS[name][-1]
    folder = out / "log" / f"digits_resnet20_{name}_{rule}_exp_0.02_0"
    return json.loads((folder / "report.json").read_text()), folder


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs") / "demo", help="output folder")
    out = parser.parse_args(argv).out.resolve()
    with ThreadPoolExecutor(len(RUNS)) as pool:
        results = dict(zip(RUNS, pool.map(lambda name: train(name, out), RUNS), strict=True))

    counts = results["CE"][0]["cls_num_list"]
    print("\nlast epoch, accuracy on the balanced test set (%)")
    print(f"{'':18}" + "".join(f"{name:>10}" for name in results))
    for figure in ("top1", "many", "medium", "few"):
        row = [report["final"][figure] for report, _ in results.values()]
        print(f"{figure:18}" + "".join(f"{value:10.1f}" for value in row))
    for digit, count in enumerate(counts):
        row = [report["final"]["cls_acc"][digit] for report, _ in results.values()]
        print(f"{f'digit {digit} ({count} images)':18}" + "".join(f"{v:10.1f}" for v in row))
    print("\npictures (per_class.png, confusion.png, curves.png), metrics.csv and report.json:")
    for _, folder in results.values():
        print(f"  {folder}")


if __name__ == "__main__":
    run(main)
