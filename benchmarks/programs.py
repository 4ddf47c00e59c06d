#!/usr/bin/env python
"""A whole training epoch of each program, with defaults, beside the plain loop, in turn.

    python benchmarks/programs.py [--images 1280] [--rounds 2] [--only ib_loss/cifar_train.py …]

The plain loop is how such programs are written: Pillow transforms image by image in four worker
processes, the same network and loss, an eager step that reads the loss, memory as the system gives
it. Both train on the same made-up images, each in a process of its own, an epoch in turn; the
medians of all rounds but the first two are compared, in which both still ask for memory. The
programs for images of 224 pixels train small networks, ResNet-18 and EfficientNet-B0, on
``--large_images`` of them in batches of 64 and 32; those that take three views of an image train on
half as many.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import inspect
import io
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository, from any folder

from arbloss.losses import batch_class_counts
from arbloss.mixup import mixup_data
from benchmarks.timing import Row, machine, rates, seconds, table
from common.training import allocator, launch
from common.training.launch import Process, unwrap
from common.training.learner import Learner
from datasets.augment import recipes
from datasets.memory import ArrayDataset
from dbm_loss.augment import recipes as dbm_recipes
from dbm_loss.large_scale.data import fake_jpeg

CLASSES = 10
WORKERS = 4
WARM_UP = 2  # rounds
POLICY = {"aug_type": "autoaug_cifar", "cutout": True}
ARB = [
    "--cfg", str(ROOT / "arbloss/config/cifar10/cifar10_imb001_stage{}.yaml"), "dataset", "npz",
    "data_path", "small.npz", "imb_factor", "null", "print_freq", "1000000", "gpu", "null",
]  # fmt: skip
SMALL = "--imb_type none --dataset npz"


@dataclass(frozen=True)
class Case:
    """A program and how its plain loop differs from the usual one.

    Attributes:
        trainer: the module whose ``train_one_epoch`` is measured, where that is not the program's.
        flags: {half} of the images and {rounds} are filled in.
        views: transforms of an image of 32 or 64 pixels; None: those of the program's data set.
    """

    program: str
    flags: str
    trainer: str = ""
    views: Callable[[], Callable | list[Callable]] | None = recipes.cifar_train


CASES = [
    Case(
        "ib_loss/cifar_train.py",
        f"{SMALL} --root small.npz --epochs {{rounds}} --loss_type IB --train_rule IBReweight "
        "--start_ib_epoch 0",
        "ib_loss.trainer",
    ),
    Case(
        "ib_loss/tinyimage_train.py",
        f"{SMALL} --root large.npz --image_size 64 --epochs {{rounds}} --loss_type IB "
        "--train_rule IBReweight --start_ib_epoch 0 --no-pretrained -b 64",
        "ib_loss.trainer",
        recipes.imagenet_train,
    ),
    Case(
        "dbm_loss/cifar/main.py",
        f"{SMALL} --data_dir small.npz --epochs {{rounds}} --loss_fn bs --use_norm --use_dbm "
        "--cutout --aug_type autoaug_cifar",
        views=lambda: dbm_recipes.view_a(**POLICY),
    ),
    Case(
        "dbm_loss/GML/cifar_ce.py",
        f"{SMALL} --data small.npz --epochs {{rounds}} --mark a --use_dbm -b 128 -p 1000000",
        "dbm_loss.GML.trainer",
        lambda: [dbm_recipes.view_a(**POLICY)],
    ),
    Case(
        "dbm_loss/GML/cifar_main.py",
        f"{SMALL} --data small.npz --epochs {{rounds}} --mark b --use_dbm -b 128 -p 1000000",
        "dbm_loss.GML.trainer",
        lambda: [dbm_recipes.view_a(**POLICY) for _ in range(3)],
    ),
    Case(
        "dbm_loss/GML/main.py",
        "--dataset imagenet --fake_data {half} --num_classes 10 --arch resnet18 --mark c -b 32 "
        "--epochs {rounds} --use_dbm --aug randcls_randclsstack --moco_k 64 --moco_dim 64 "
        "--workers 4",
        "dbm_loss.GML.trainer",
        None,
    ),
    Case(
        "dbm_loss/large_scale/train.py",
        "--dataset imgnet --fake_data {half} --num_classes 10 --arch resnet18 -b 32 "
        "--epochs {rounds} --loss_type BCL --use_norm --use_dbm",
        views=None,
    ),
    Case(
        "hmloss/cifar_implementation/train_cifar.py",
        f"{SMALL} --root small.npz --epochs {{rounds}} --num_runs 1 --loss_type HML "
        "--start_hm_epoch 0",
        "hmloss.trainer",
    ),
    Case(
        "hmloss/inat_implementation/train_inat.py",
        "--dataset_dir photos --train_list train.txt --val_list val.txt -a resnet18 -b 64 "
        "--epochs {rounds} --start_hm_epoch 0",
        "hmloss.trainer",
        None,
    ),
    Case(
        "hmloss/isic2019_implementation/train_isic.py",
        "--dataset_dir isic --arch efficientnet_b0 --random_init --image_size 224 -b 32 "
        "--num_epochs {rounds} --num_runs 1 --delay 99",
        views=None,
    ),
    Case("arbloss/train_stage1.py", "1_mixup num_epochs {rounds}", "arbloss.trainer"),
    Case("arbloss/train_stage2.py", "2_mislas num_epochs {rounds} resume auto", "arbloss.trainer"),
]


class InWorkers(Dataset):
    """What our loaders leave to the device, done image by image in the workers, as is usual."""

    def __init__(self, dataset: Dataset, finish: Callable | None) -> None:
        self.dataset, self.finish = dataset, finish

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[object, int, int]:
        images, target = self.dataset[index][:2]
        if self.finish is not None:
            many = isinstance(images, list)
            images = self.finish([x[None] for x in images] if many else images[None])
            images = [x[0] for x in images] if isinstance(images, list) else images
        return images, target, index


def plain_epoch(call: dict, data: Dataset, model: nn.Module, criterion: nn.Module) -> Callable:
    """The usual loop over ``data``, with what a program gave its ``train_one_epoch``."""
    settings = call.get("args") or call["config"]
    process = call.get("process") or call["record"].process
    trained: Learner = call["learner"]
    kind, defaults = type(trained.optimizer), trained.optimizer.defaults
    same = {key: defaults[key] for key in ("momentum", "weight_decay") if key in defaults}
    optimizer = kind(model.parameters(), lr=1e-4, **same)
    loader = DataLoader(
        data,
        _batch_size(call),
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
        pin_memory=process.device.type == "cuda",
    )

    def move(x: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        if isinstance(x, Tensor):
            return x.to(process.device, non_blocking=True)
        return [move(part) for part in x]

    def epoch() -> None:
        model.train()
        for images, target, index in loader:
            images, target, index = move(images), move(target), move(index)
            if isinstance(images, Tensor) and images.ndim == 5:  # views of an image to views
                images = images.transpose(0, 1).flatten(0, 1)
            rest: tuple = ()
            if "means" in call:  # GML
                rest = (index, len(images) == 3)
            elif "config" in call:  # arbloss
                counts = batch_class_counts(target, CLASSES) if call["count"] else None
                rest = (counts,)
                if settings.mixup:
                    images, _, *mixed = mixup_data(images, target, settings.alpha)
                    rest = (counts, *mixed)
            elif hasattr(settings, "loss_fn"):  # DBM
                rest = (0,)
            loss = trained.forward(model, criterion, images, target, *rest)[0]
            loss.item()  # the originals read it in every step
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def _batch_size(call: dict) -> int:
    loader = call["loaders"][0] if "loaders" in call else call["loader"]
    return loader.full_batch


def plain_data(call: dict, case: Case) -> Dataset:
    """The training images of a program, one by one."""
    loader = call["loaders"][0] if "loaders" in call else call["loader"]
    if case.views is not None:
        images = loader.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        return InWorkers(ArrayDataset(images, loader.targets.cpu().numpy(), case.views()), None)
    return InWorkers(loader._loader.dataset.dataset, loader._finish)


class Turns:
    """Hands the machine from one process to the other and back."""

    mine: Semaphore
    other: Semaphore

    @classmethod
    def init(cls, mine: Semaphore, other: Semaphore) -> None:
        cls.mine, cls.other = mine, other


def measure(which: str, kind: str, folder: Path, images: int, rounds: int) -> float:
    """Images/s of the program's epochs (``kind`` "ours") or of the plain loop's ("plain").

    To be run in a process of its own, as the program would be, that has its ``Turns``: what it
    does between two epochs, evaluation and files, belongs to the turn of the first one.
    """
    case = next(case for case in CASES if case.program == which)
    os.chdir(folder / kind)  # the programs write into the current folder
    set_start_method(None, force=True)  # for the loaders' workers that of the platform again
    if kind == "plain":
        allocator.keep_freed_memory = lambda: None
    name = case.program.removesuffix(".py").replace("/", ".")
    program = importlib.import_module(name)
    trainer = importlib.import_module(case.trainer) if case.trainer else program
    original = trainer.train_one_epoch
    times: list[float] = []
    plain: list[Callable] = []
    results: list[object] = []
    counted: list[int] = []  # images in an epoch

    def in_turn(*args: object, **options: object) -> object:
        if times:
            Turns.other.release()
        Turns.mine.acquire()
        bound = inspect.signature(original).bind(*args, **options)
        bound.apply_defaults()
        call = bound.arguments
        process: Process = call.get("process") or call["record"].process

        def ours() -> None:
            results.append(original(*args, **options))

        if kind == "ours":
            times.append(seconds(ours, process.device))
            batches = len(call["loaders"][0] if "loaders" in call else call["loader"])
            counted.append(batches * _batch_size(call))
            return results[-1]
        if not plain:
            ours()  # the program goes on with its figures
            model = copy.deepcopy(unwrap(call["learner"].model))
            model = model.to(memory_format=torch.contiguous_format)
            criterion = copy.deepcopy(unwrap(call["criterion"]))
            data = plain_data(call, case)
            plain.append(plain_epoch(call, data, model, criterion))
            counted.append(len(data) // _batch_size(call) * _batch_size(call))
        times.append(seconds(plain[0], process.device))
        return results[-1]

    flags = case.flags.format(half=images // 2, rounds=rounds + WARM_UP).split()
    if case.program.startswith("arbloss"):
        stage, *rest = flags
        flags = [word.format(stage) for word in ARB] + rest
        if "auto" in flags:
            flags[-1] = str(next(Path("saved").glob("*stage1*/ckps/current.pth.tar")))
    trainer.train_one_epoch = in_turn
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            program.main(flags)
    finally:
        for _ in range(rounds + WARM_UP):  # whatever happened here, the other one goes on
            Turns.other.release()
    return counted[-1] / statistics.median(times[WARM_UP:])


def make_data(folder: Path, images: int, large_images: int) -> None:
    """Images of all kinds that the programs train on, and ten of each to evaluate on."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count, side in (("small", images, 32), ("large", large_images, 64)):
        arrays = {}
        for split, number in (("train", count), ("test", CLASSES)):
            arrays[f"x_{split}"] = rng.integers(0, 256, (number, side, side, 3), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(number) % CLASSES
        np.savez(folder / f"{name}.npz", **arrays)
    for split, count in (("train", large_images), ("val", CLASSES)):
        lines = []
        for i in range(count):
            file = folder / "photos" / split / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(fake_jpeg(i))
            lines.append(f"{split}/{i}.jpg {i % CLASSES}")
        (folder / "photos" / f"{split}.txt").write_text("\n".join(lines))
    for part, count in (("TRAIN", large_images), ("VALID", 4), ("TEST", 4)):
        for i in range(count):
            file = folder / "isic" / part / ("BEN", "MAL")[i % 2] / f"{part}{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(fake_jpeg(i))


def rows(images: int, large_images: int, rounds: int, only: Sequence[str] = ()) -> list[Row]:
    """A row for each program."""
    found = []
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        for kind in ("ours", "plain"):
            make_data(Path(name) / kind, images, large_images)
        for case in CASES:
            if only and case.program not in only:
                continue
            first, second = context.Semaphore(1), context.Semaphore(0)
            turns = {"ours": (first, second), "plain": (second, first)}
            with contextlib.ExitStack() as stack:
                running = {}
                for kind in turns:
                    alone = ProcessPoolExecutor(1, context, Turns.init, turns[kind])
                    job = (measure, case.program, kind, Path(name), large_images, rounds)
                    running[kind] = stack.enter_context(alone).submit(*job)
                per_s = {kind: future.result() for kind, future in running.items()}
            row = rates(f"epoch of `{case.program}`, images/s", per_s["plain"], per_s["ours"])
            found.append(row)
            print(f"{row.what}: {row.ratio}", file=sys.stderr, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1280, help="of 32 pixels (default: 1280)")
    parser.add_argument("--large_images", type=int, default=128, help="of 224 (default: 128)")
    parser.add_argument("--rounds", type=int, default=2, help="epochs that count (default: 2)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PROGRAM")
    args = parser.parse_args(argv)
    print(machine(launch.start().device))
    print(table(rows(args.images, args.large_images, args.rounds, args.only)))


if __name__ == "__main__":
    main()
