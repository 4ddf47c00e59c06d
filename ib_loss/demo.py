#!/usr/bin/env python
"""Cross entropy and influence-balanced loss side by side on long-tailed digits, in minutes.

    python ib_loss/demo.py [--out FOLDER]

Trains the two through the real program on scikit-learn's handwritten digits (embedded, made
long-tailed: 130 images of "0" down to 2 of "9"), prints one table and names the pictures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = [
    "--dataset", "digits", "--arch", "resnet20", "--imb_type", "exp", "--imb_factor", "0.02",
    "--epochs", "80", "--batch-size", "32", "--stretch_schedule", "--seed", "0",
    "--print_freq", "1000",
]  # fmt: skip
RUNS = {
    "CE": ["--loss_type", "CE", "--train_rule", "None"],
    "IB": ["--loss_type", "IB", "--train_rule", "IBReweight"],
}


def train(name: str, flags: list[str], out: Path) -> tuple[dict, Path]:
    """Run the program; returns its report and its log folder."""
    command = [
        sys.executable, str(ROOT / "ib_loss" / "cifar_train.py"), *SHARED, *flags,
        "--root_log", str(out / "log"), "--root_model", str(out / "checkpoint"),
    ]  # fmt: skip
    print(f"{name}: python ib_loss/cifar_train.py {' '.join([*SHARED, *flags])}", flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    epochs = 0
    for line in process.stdout:
        if line.startswith("Best Prec@1"):
            epochs += 1
            if epochs % 10 == 0:
                seconds = time.perf_counter() - start
                print(f"  {epochs} epochs, {seconds:.0f} s, {line.strip()}", flush=True)
    if process.wait() != 0:
        sys.exit(process.returncode)
    store_name = "_".join(["digits", "resnet20", name, flags[-1], "exp", "0.02", "0"])
    folder = out / "log" / store_name
    return json.loads((folder / "report.json").read_text()), folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs") / "demo", help="output folder")
    out = parser.parse_args().out.resolve()
    results = {name: train(name, flags, out) for name, flags in RUNS.items()}

    counts = results["CE"][0]["cls_num_list"]
    print("\nlast epoch, accuracy on the balanced test set (%)")
    print(f"{'':18}" + "".join(f"{name:>10}" for name in results))
    for figure in ("top1", "many", "medium", "few"):
        row = [report["final"][figure] for report, _ in results.values()]
        print(f"{figure:18}" + "".join(f"{value:10.1f}" for value in row))
    for digit, count in enumerate(counts):
        row = [report["final"]["cls_acc"][digit] * 100 for report, _ in results.values()]
        print(f"{f'digit {digit} ({count} images)':18}" + "".join(f"{v:10.1f}" for v in row))
    print("\npictures (per_class.png, confusion.png, curves.png), metrics.csv and report.json:")
    for _, folder in results.values():
        print(f"  {folder}")


if __name__ == "__main__":
    main()
