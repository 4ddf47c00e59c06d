#!/usr/bin/env python
"""Large-scale DBM: loader, memory of the lists, share of the loss in a step, speed of a step.

    python benchmarks/large_scale_step.py [--workers 2] [--batch_size 8]

Four tables, each pair measured in turn in this one run; medians of ``--rounds``.
(a) images/s of this repository's loader against torchvision's reference pipeline (ImageFolder,
    DataLoader, ToTensor and Normalize in the workers) with the same transforms and workers, up to
    normalised batches on the training device;
(b) time and memory to open lists of the size of iNaturalist 2018 (437,513 images, 8142 classes);
(c) share of the loss (DBM, logit adjustment, balanced contrastive term; forward and backward) in a
    training step of BCL, at 1000 and 8142 classes, and peak memory;
(d) images/s of this program's step, float32 and, where the machine has bfloat16, bfloat16 +
    channels-last, against a plain torchvision training step.
On a GPU (``--device cuda``) take ``--batch_size 256``; on two CPU cores it takes some ten minutes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets as tv
from torchvision import models as tv_models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder

from common.training.launch import Process
from common.training.precision import autocast
from datasets.listfile import ListFile
from datasets.loaders import WorkersLoader
from dbm_loss.large_scale import data
from dbm_loss.large_scale.engine import bcl_step, build_criterion
from dbm_loss.large_scale.models import BCLModel, build_model

INAT_IMAGES, INAT_CLASSES = 437_513, 8142
LOSS = Namespace(
    loss_fn="bcl", use_norm=True, use_dbm=True, max_margin=0.1, tau=1.0, cos_scale=30.0,
    lambda_inst=1.0, margin_norm="last",
)  # fmt: skip


def seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(
    runs: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each, after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run, device)
            if turn:
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mb(device: torch.device) -> float:
    """Of the GPU's memory, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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


def loaders(root: Path, loss_fn: str, args: Namespace, device: torch.device) -> dict[str, Iterable]:
    """The reference pipeline and ours; both yield all views of a batch as one tensor."""
    recipes = data.train_recipes(loss_fn)
    reference = DataLoader(
        tv.ImageFolder(str(root / "train"), data.Views(recipes)),
        batch_size=args.loader_batch,
        shuffle=True,
        num_workers=args.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=args.workers > 0,
    )
    views = data.Views([data.to_bytes(recipe) for recipe in recipes])
    ours = WorkersLoader(
        ListFile(root / "list.txt", root, views),
        args.loader_batch,
        workers=args.workers,
        seed=0,
        process=Process(device),
    )
    return {"reference": reference, "ours": ours}


def measure_loader(root: Path, args: Namespace, device: torch.device) -> None:
    print(f"(a) loader, images/s, {args.workers} workers, {args.images} JPEG files of 500x375")
    print(f"{'':<26}{'reference':>11}{'ours':>9}{'ratio':>8}")
    flags = Namespace(dataset="imgnet", channels_last=False)
    for loss_fn, name in (("bcl", "three views (bcl)"), ("ce", "one view (other losses)")):
        both = loaders(root, loss_fn, args, device)

        def reference(both: dict = both) -> None:
            for views, target in both["reference"]:
                torch.cat([view.to(device, non_blocking=True) for view in views])
                target.to(device, non_blocking=True)

        def ours(both: dict = both) -> None:
            for _ in data.on_device(both["ours"], flags, device):
                pass

        times = in_turn({"reference": reference, "ours": ours}, args.rounds, device)
        speed = {name: args.images / spent for name, spent in times.items()}
        ratio = speed["ours"] / speed["reference"]
        print(f"{name:<26}{speed['reference']:>11.1f}{speed['ours']:>9.1f}{ratio:>8.2f}")


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
        f"(b) a list of {len(opened):,} images of {opened.num_classes} classes opens in "
        f"{spent:.1f} s and holds {(opened.paths.nbytes + opened.targets.nbytes) / 2**20:.0f} MB "
        f"(process: {before:.0f} -> {resident_mb():.0f} MB)"
    )


def measure_loss(args: Namespace, device: torch.device) -> None:
    print(f"(c) a step of DBM-BCL, {args.arch}, batch {args.batch_size} (three views), float32")
    print(f"{'classes':<10}{'step ms':>10}{'loss ms':>10}{'share':>9}{'peak MB':>10}")
    for num_classes in (1000, 8142):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model = BCLModel(args.arch, num_classes, use_norm=True).to(device)
        counts = np.geomspace(1280, 5, num_classes).astype(int).tolist()
        criterion = build_criterion(LOSS, counts, drw_epoch=160).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
        x = torch.randn(3 * args.batch_size, 3, 224, 224, device=device)
        target = torch.arange(args.batch_size, device=device) % num_classes
        with torch.no_grad():
            features, logits, centers = model(x)
        pairs = features[args.batch_size :].unflatten(0, (2, -1)).transpose(0, 1)
        leaves = [
            tensor.detach().clone().requires_grad_()
            for tensor in (logits[: args.batch_size], pairs, centers)
        ]

        def step(model=model, criterion=criterion, optimizer=optimizer, x=x, target=target):
            loss, _ = bcl_step(model, criterion, x, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        def loss_alone(criterion=criterion, leaves=leaves, target=target):
            criterion(*leaves, target).backward()

        times = in_turn({"step": step, "loss": loss_alone}, args.rounds, device)
        share = times["loss"] / times["step"]
        print(
            f"{num_classes:<10}{times['step'] * 1e3:>10.1f}{times['loss'] * 1e3:>10.2f}"
            f"{share:>9.2%}{peak_mb(device):>10.0f}"
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


def measure_step(args: Namespace, device: torch.device) -> None:
    x = torch.randn(args.batch_size, 3, 224, 224, device=device)
    target = torch.arange(args.batch_size, device=device)
    plain = getattr(tv_models, args.arch)(num_classes=1000).to(device)
    ours = build_model("ce", args.arch, 1000, use_norm=False).to(device)
    runs = {
        "torchvision, float32": training_step(plain, x, target, "none"),
        "ours, float32": training_step(ours, x, target, "none"),
    }
    if device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        fast = build_model("ce", args.arch, 1000, use_norm=False)
        fast = fast.to(device, memory_format=torch.channels_last)
        last = x.contiguous(memory_format=torch.channels_last)
        runs["ours, bf16 + channels_last"] = training_step(fast, last, target, "bf16")
    times = in_turn(runs, args.rounds, device)
    print(f"(d) training step of {args.arch}, batch {args.batch_size}, images/s")
    base = times["torchvision, float32"]
    for name, spent in times.items():
        print(f"{name:<28}{args.batch_size / spent:>9.1f}{base / spent:>8.2f} x")


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
    sys.stdout.reconfigure(line_buffering=True)
    device = torch.device(args.device)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), args.images)
        measure_loader(Path(folder), args, device)
        measure_lists(Path(folder))
    measure_loss(args, device)
    measure_step(args, device)


if __name__ == "__main__":
    main()
