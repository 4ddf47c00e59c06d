#!/usr/bin/env python
"""Small runs of the four programs on embedded digits: what they gave, and whether they still do.

    python tests/regression/short.py --record --seeds 0 1 2

writes traces/*.json anew, after a change of numbers that is meant; test_short.py compares with it.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the repository, from any folder

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from common.training.logs import write_text

TRACES = Path(__file__).resolve().parent / "traces"
CLASSES, TRAIN, TEST, SIZE = 5, 130, 20, 16  # the smallest class keeps 6 images at factor 0.05
EPOCHS = 12
# What every program is told; {…} are filled in by ``train``. Channels-last sums in another order.
IB = (
    "ib_loss.cifar_train --dataset imagefolder --root {data} --image_size {size} --arch resnet20 "
    "--imb_factor 0.05 --epochs {epochs} --batch-size 16 --stretch_schedule --seed {seed} "
    "--print_freq 1000 --root_log {out} --root_model {out} --no-channels_last"
)
DBM = (
    "dbm_loss.cifar.main --dataset imagefolder --data_dir {data} --image_size {size} --cos "
    "--imb_ratio 20 --epochs {epochs} --batch-size 16 --stretch_schedule --seed {seed} --out {out} "
    "--no-channels_last"
)
HML = (
    "hmloss.cifar_implementation.train_cifar --dataset imagefolder --root {data} "
    "--image_size {size} --arch resnet20 --imb_ratio 0.05 --epochs {epochs} --batch-size 16 "
    "--stretch_schedule --num_runs 1 --seed {seed} --print_freq 1000 --path_history {out} "
    "--path_model {out} --no-channels_last"
)
ARB = (
    "arbloss.train_stage1 --cfg {root}/arbloss/config/cifar10/cifar10_imb001{variant}.yaml "
    "dataset imagefolder data_path {data} image_size {size} num_classes 5 backbone resnet20_fe "
    "head_class_idx [0,1] med_class_idx [1,3] tail_class_idx [3,5] imb_factor 0.05 "
    "num_epochs {epochs} batch_size 16 stretch_schedule True seed {seed} print_freq 1000 "
    "log_dir {out} model_dir {out} channels_last False"
)
# Accuracy: cross entropy against the paper's loss.
RUNS = {
    "ib_loss": {
        "CE": f"{IB} --loss_type CE",
        "IB": f"{IB} --loss_type IB --train_rule IBReweight",
    },
    "dbm_loss": {
        # The first five epochs of --cos warm up: it needs more of them. At the default rate of
        # 0.1 the top-1 of three seeds goes from 51 to 74.
        "CE": f"{DBM} --loss_fn ce --epochs 14 --lr 0.05",
        "DBM-BS": f"{DBM} --loss_fn bs --use_norm --use_dbm --epochs 14 --lr 0.05",
    },
    "hmloss": {
        "CE": f"{HML} --loss_type CE",
        # From the first epoch on: a few epochs at the rate of its stage, --lr / 100, are too few.
        "HML + CS": f"{HML} --loss_type HML --weighting_type CS --start_hm_epoch 0",
    },
    "arbloss": {
        "CE": ARB.replace("{variant}", ""),
        "ARB-Loss": ARB.replace("{variant}", "_arbloss"),
    },
}
# Traces: the paper's loss from the first step on, at a small learning rate.
TRACED = {
    "ib_loss": {
        "IB": f"{RUNS['ib_loss']['IB']} --start_ib_epoch 0",
        "IB+CB": f"{IB} --loss_type IB --train_rule CBReweight --start_ib_epoch 0",
        "IB+Focal": f"{IB} --loss_type IBFocal --train_rule IBReweight --start_ib_epoch 0",
    },
    "dbm_loss": {
        # A margin so wide that the part for hard samples alone can be seen.
        "DBM-CE": f"{DBM} --loss_fn ce --use_norm --use_dbm --max_margin 1 --lr 0.001",
        "DBM-BS": f"{DBM} --loss_fn bs --use_norm --use_dbm --lr 0.001",
    },
    "hmloss": {"HML + CS": RUNS["hmloss"]["HML + CS"]},
    "arbloss": {"ARB-Loss": f"{RUNS['arbloss']['ARB-Loss']} mixup False lr 0.001"},
}
TRACE_EPOCHS = 1
TOLERANCE = {"top1": 10.0, "few": 20.0}  # points about the mean, of 100 and 40 test images


def make_data(folder: Path) -> Path:
    """The first five of scikit-learn's digits as 16x16 images: folder/{train,test}/<digit>/*."""
    digits = load_digits()
    for digit in range(CLASSES):
        images = np.clip(digits.images[digits.target == digit] * (255 / 16), 0, 255)
        images = images.astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
        for split, chosen in (("train", images[:TRAIN]), ("test", images[TRAIN : TRAIN + TEST])):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for i, image in enumerate(chosen):
                Image.fromarray(image).save(target / f"{i:03d}.png")
    return folder


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Models are made, fed and trained in float64.

    Training multiplies a rounding error by ten every few steps: in float32 a processor with other
    instructions soon goes another way, in float64 it gives the same first ten digits.
    """

    def to_double(module: nn.Module, inputs: tuple) -> tuple:
        return tuple(
            x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
        )

    hook = nn.modules.module.register_module_forward_pre_hook(to_double)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        hook.remove()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The same order of summation on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(command: str, data: Path, out: Path, *, seed: int = 0, epochs: int = EPOCHS) -> list:
    """Run a program in this process; returns its metrics.csv as a dictionary per epoch."""
    values = {"data": data, "out": out, "seed": seed, "epochs": epochs, "root": ROOT, "size": SIZE}
    module, *words = command.split()
    words = [word.format(**values) for word in words]
    quiet = io.StringIO()
    with (
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
        one_thread(),
        double_precision(),
    ):
        importlib.import_module(module).main(words)
    (metrics,) = out.rglob("metrics.csv")
    with open(metrics, newline="") as file:
        return [
            {name: float(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def figures(history: list) -> dict[str, float]:
    """What is recorded of an accuracy run: the last epoch's, all classes and rare ones."""
    return {name: round(history[-1][name], 2) for name in ("top1", "few")}


def require_likeness(name: str, runs: dict[str, dict]) -> None:
    """Refuse seeds that differ by more than the tolerance: a test about their mean says nothing.

    Raises:
        SystemExit: names the figure and the values of the seeds.
    """
    for figure, tolerance in TOLERANCE.items():
        values = [run[figure] for run in runs.values()]
        if max(abs(value - statistics.fmean(values)) for value in values) > tolerance:
            raise SystemExit(
                f"{name}: {figure} of the seeds is {', '.join(f'{value:g}' for value in values)}, "
                f"more than {tolerance:g} points about their mean; train longer or at a smaller "
                "learning rate"
            )


def trace(history: list) -> dict[str, list[float]]:
    """What is recorded of a trace: training and test loss of each epoch."""
    return {name: [float(f"{row[name]:.9g}") for row in history] for name in ("train_loss", "loss")}


def update(paper: str, **content: object) -> None:
    """Replace some keys of traces/<paper>.json."""
    path = TRACES / f"{paper}.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    content = {**known, "torch": torch.__version__, **content}
    write_text(path, json.dumps(content, indent=1) + "\n")


def record(papers: list[str], what: list[str], seeds: list[int]) -> None:
    """Write traces/<paper>.json, or a part of it."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data")
        out = Path(folder) / "out"

        def run(command: str, **options: int) -> list:
            shutil.rmtree(out, ignore_errors=True)
            return train(command, data, out, **options)

        for paper in papers:
            if "trace" in what:
                traces = {
                    name: trace(run(command, epochs=TRACE_EPOCHS))
                    for name, command in TRACED[paper].items()
                }
                update(paper, trace=traces)
                print(paper, traces, flush=True)
            if "accuracy" in what:
                runs = {
                    name: {str(seed): figures(run(command, seed=seed)) for seed in seeds}
                    for name, command in RUNS[paper].items()
                }
                for name, found in runs.items():
                    require_likeness(f"{paper} {name}", found)
                update(paper, accuracy=runs)
                print(paper, runs, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = ["trace", "accuracy"]
    parser.add_argument("--record", nargs="*", choices=what, required=True, help="all, or a part")
    parser.add_argument("--paper", nargs="+", default=list(RUNS), choices=RUNS, metavar="PAPER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    record(args.paper, args.record or what, args.seeds)


if __name__ == "__main__":
    main()
