#!/usr/bin/env python
"""Images of 224 pixels: loader, lists, and speed of a training step.

    python benchmarks/large_scale_step.py [--workers 2] [--batch_size 8]

Each pair is measured in turn; medians of ``--rounds``.
* Images/s of this repository's loader against torchvision's reference pipeline (ImageFolder,
  DataLoader, ToTensor and Normalize in the workers) with the same transforms and workers, up to
  normalised batches on the training device.
* Images/s of a training step with the default memory format, float32 and, where the machine has
  it, bfloat16, against a plain torchvision training step.
* Time and memory to open lists of the size of iNaturalist 2018 (437,513 images, 8142 classes).

On a GPU (``--device cuda``) take ``--batch_size 256``.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets as tv
from torchvision import models as tv_models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder

from benchmarks.timing import Row, in_turn, machine, rates, table
from common.training import speed
from common.training.launch import Process
from common.training.precision import autocast, has_bfloat16
from datasets.listfile import ListFile
from datasets.loaders import WorkersLoader
from dbm_loss.large_scale import data
from dbm_loss.large_scale.models import build_model

INAT_IMAGES, INAT_CLASSES = 437_513, 8142


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def write_photographs(root: Path, count: int) -> None:
    """``root/train/<class>/*.jpg`` and ``root/list.txt``: JPEG files of some 100 kB."""
    lines = []
    for i in range(count):
        file = root / "train" / f"class_{i % 8}" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.fake_jpeg(i))
        lines.append(f"{file.relative_to(root)} {i % 8}")
    (root / "list.txt").write_text("\n".join(lines))


def loaders(
    root: Path, loss_fn: str, workers: int, batch: int, device: torch.device
) -> dict[str, Iterable]:
    """The reference pipeline and ours; both yield all views of a batch as one tensor."""
    recipes = data.train_recipes(loss_fn)
    reference = DataLoader(
        tv.ImageFolder(str(root / "train"), data.Views(recipes)),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    views = data.Views([data.to_bytes(recipe) for recipe in recipes])
    ours = WorkersLoader(
        ListFile(root / "list.txt", root, views),
        batch,
        workers=workers,
        seed=0,
        process=Process(device),
        finish=data.stacked("imgnet"),
    )
    return {"reference": reference, "ours": ours}


def loader_rows(
    root: Path, images: int, workers: int, batch: int, rounds: int, device: torch.device
) -> list[Row]:
    """Up to normalised batches on the training device."""
    found = []
    for loss_fn, name in (("bcl", "three views"), ("ce", "one view")):
        both = loaders(root, loss_fn, workers, batch, device)

        def reference(both: dict = both) -> None:
            for views, target in both["reference"]:
                torch.cat([view.to(device, non_blocking=True) for view in views])
                target.to(device, non_blocking=True)

        def ours(both: dict = both) -> None:
            for _ in both["ours"]:
                pass

        times = in_turn({"reference": reference, "ours": ours}, rounds, device)
        both["ours"].close()
        what = f"loader of JPEG files beside torchvision's pipeline, {name}, images/s"
        found.append(rates(what, images / times["reference"], images / times["ours"]))
    return found


def measure_lists(root: Path) -> None:
    labels = np.sort(np.random.default_rng(0).integers(0, INAT_CLASSES, INAT_IMAGES))
    labels[:INAT_CLASSES] = np.arange(INAT_CLASSES)
    names = [f"train_val2018/Plantae/{c}/{i:032x}.jpg {c}" for i, c in enumerate(labels)]
    (root / "inat.txt").write_text("\n".join(names))
    for c in range(INAT_CLASSES):
        (root / f"train_val2018/Plantae/{c}").mkdir(parents=True)
    for name in names:  # all of them are looked for
        (root / name.split()[0]).touch()
    del names
    before, start = resident_mb(), time.perf_counter()
    opened = ListFile(root / "inat.txt", root)
    spent = time.perf_counter() - start
    print(
        f"a list of {len(opened):,} images of {opened.num_classes} classes opens in "
        f"{spent:.1f} s and holds {(opened.paths.nbytes + opened.targets.nbytes) / 2**20:.0f} MB "
        f"(process: {before:.0f} -> {resident_mb():.0f} MB)"
    )


def training_step(
    model: nn.Module, x: torch.Tensor, target: torch.Tensor, amp: str
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        with autocast(x.device, amp):
            loss = criterion(model(x), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def step_rows(arch: str, batch: int, rounds: int, device: torch.device) -> list[Row]:
    """Training steps with the default memory format, and with bfloat16 where the machine has it."""
    x = torch.randn(batch, 3, 224, 224, device=device)
    target = torch.arange(batch, device=device)
    plain = getattr(tv_models, arch)(num_classes=1000).to(device)
    runs = {"plain": training_step(plain, x, target, "none")}
    for amp in ("none", "bf16") if has_bfloat16(device) else ("none",):
        channels_last = speed.use_channels_last(None, device, amp)
        memory_format = speed.memory_format(channels_last)
        model = build_model("ce", arch, 1000, use_norm=False)
        model = model.to(device, memory_format=memory_format)
        last = x.contiguous(memory_format=memory_format)
        runs[f"{amp}, channels-last" if channels_last else amp] = training_step(
            model, last, target, amp
        )
    times = in_turn(runs, rounds, device)
    base = times.pop("plain")
    return [
        rates(
            f"step of {arch}, --amp {name}, beside torchvision's float32, images/s",
            batch / base,
            batch / spent,
        )
        for name, spent in times.items()
    ]


def rows(
    *, images: int, loader_batch: int, batch: int, arch: str, rounds: int, device: torch.device,
    workers: int = 2,
) -> list[Row]:  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), images)
        found = loader_rows(Path(folder), images, workers, loader_batch, rounds, device)
    return [*found, *step_rows(arch, batch, rounds, device)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="loading processes")
    parser.add_argument("--images", type=int, default=256, help="files of the loader's test")
    parser.add_argument("--loader_batch", type=int, default=32, help="batch of the loader's test")
    parser.add_argument("--batch_size", type=int, default=8, help="images of a training step")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; the median counts")
    parser.add_argument("--arch", default="resnet50", help="one that torchvision has as well")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    torch.manual_seed(0)
    print(machine(device))
    found = rows(
        images=args.images,
        loader_batch=args.loader_batch,
        batch=args.batch_size,
        arch=args.arch,
        rounds=args.rounds,
        device=device,
        workers=args.workers,
    )
    print(table(found))
    with tempfile.TemporaryDirectory() as folder:
        measure_lists(Path(folder))


if __name__ == "__main__":
    main()
