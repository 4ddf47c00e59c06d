#!/usr/bin/env python
"""One training epoch: a plain per-image loop against this repository's programs, in turn.

    python benchmarks/cifar_epoch.py [--images 2560] [--rounds 3] [--arch resnet32]

(i) PIL transforms in four worker processes and an eager step, as the papers' programs do;
(ii) ib_loss/cifar_train.py's default: device-resident images, augmented by the batch;
(iii) the same with --channels_last, and with --amp bf16 where the hardware computes it. Same random
images, same model seed. Prints the median images/s of each, the ratios to (i), the share of (ii)'s
epoch spent on data, and the peak memory of a run of cifar_train.py beside that of a process that
does nothing but train the model on one batch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.models import resnet_cifar
from common.training import launch, precision, seeds
from datasets.augment import batch
from datasets.augment.colours import CIFAR_MEAN, CIFAR_STD
from datasets.loaders import DeviceLoader

BATCH = 128


class PerImage(Dataset):
    def __init__(self, images: np.ndarray, targets: np.ndarray) -> None:
        self.images, self.targets = images, targets
        self.transform = T.Compose(
            [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(),
             T.Normalize(CIFAR_MEAN, CIFAR_STD)]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.targets[index])


def build(
    arch: str, device: torch.device, channels_last: bool
) -> tuple[nn.Module, torch.optim.SGD]:
    seeds.seed_everything(0)
    model = getattr(resnet_cifar, arch)(num_classes=10).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def per_image(images: np.ndarray, targets: np.ndarray, arch: str, device: torch.device) -> Callable:
    loader = DataLoader(PerImage(images, targets), BATCH, shuffle=True, num_workers=4,
                        pin_memory=device.type == "cuda")  # fmt: skip
    model, optimizer = build(arch, device, channels_last=False)

    def epoch() -> tuple[float, float]:
        start = wait(device)
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.item()  # the originals read the loss in every step
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return wait(device) - start, 0.0

    return epoch


def whole_batch(
    images: np.ndarray,
    targets: np.ndarray,
    arch: str,
    device: torch.device,
    amp: str = "none",
    channels_last: bool = False,
) -> Callable:
    loader = DeviceLoader(images, targets, BATCH, batch.cifar_train, seed=0,
                          process=launch.Process(device))  # fmt: skip
    model, optimizer = build(arch, device, channels_last)
    guard = precision.FiniteGuard(model, optimizer)

    def epoch() -> tuple[float, float]:
        start = end = wait(device)
        data = 0.0
        for step, (x, y, _) in enumerate(loader):
            data += time.perf_counter() - end
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            with precision.autocast(device, amp):
                loss = nn.functional.cross_entropy(model(x).float(), y)
            guard.check(loss, epoch=0, step=step, lr=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            end = time.perf_counter()
        return wait(device) - start, data

    return epoch


def bare_training(arch: str) -> None:
    """The least that training needs: the libraries, the model, and steps on one batch."""
    model, optimizer = build(arch, torch.device("cpu"), channels_last=False)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    for _ in range(5):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def peak_memory(words: list[str]) -> float:
    """Peak resident memory in MB of ``python words…``, as Linux counts it since the exec.

    (``getrusage`` would count what this process held when it forked.)
    """
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) / 1024


def compare_memory(arch: str) -> None:
    """Print what a whole run on embedded digits, 7 MB of pixels, needs beyond the bare training."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(__file__).resolve().parents[1] / "ib_loss" / "cifar_train.py")
        run = peak_memory(
            [program, "--dataset", "digits", "--arch", arch, "--epochs", "1", "--seed", "0",
             "--root_log", folder, "--root_model", folder]
        )  # fmt: skip
    bare = peak_memory([__file__, "--arch", arch, "--bare"])
    print(f"peak memory: a run {run:.0f} MB, bare training {bare:.0f} MB: {run - bare:+.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", default="resnet32")
    parser.add_argument("--bare", action="store_true", help="only train on one batch, for memory")
    args = parser.parse_args()
    if args.bare:
        bare_training(args.arch)
        return
    device = launch.start().device
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (args.images, 32, 32, 3)).astype(np.uint8)
    targets = rng.randint(0, 10, args.images)
    has_bf16 = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    amp = "bf16" if has_bf16 else "none"

    loops = {
        "(i) per image, 4 workers": per_image(images, targets, args.arch, device),
        "(ii) default": whole_batch(images, targets, args.arch, device),
        f"(iii) {amp}, channels last": whole_batch(
            images, targets, args.arch, device, amp, channels_last=True
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    shares = []
    for round_ in range(args.rounds + 1):  # the first warms up
        for name, epoch in loops.items():
            elapsed, data = epoch()
            if round_:
                seconds[name].append(elapsed)
                if name == "(ii) default":
                    shares.append(data / elapsed)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{args.arch}, batch {BATCH}, {where}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")  # fmt: skip
    reference = statistics.median(seconds["(i) per image, 4 workers"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:28} {args.images / median:9.0f} images/s   {reference / median:5.2f} x (i)")
    if not has_bf16:
        print("bf16 was not measured: this CPU has no bfloat16 instructions and imitates them")
    print(f"data share of (ii)'s epoch: {statistics.median(shares) * 100:.2f} %")
    if device.type == "cpu":
        compare_memory(args.arch)


if __name__ == "__main__":
    main()
