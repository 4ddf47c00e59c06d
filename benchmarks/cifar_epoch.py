#!/usr/bin/env python
"""One training epoch of ResNet-32: a plain per-image loop against this repository's, in turn.

    python benchmarks/cifar_epoch.py [--images 2560] [--rounds 3] [--arch resnet32] [--compile]

The plain loop: Pillow transforms in four worker processes and an eager step, as in the papers'
programs. Beside it the default of ib_loss/cifar_train.py (device-resident images, augmented by the
batch, channels-last where that is faster), the same without channels-last, with --amp bf16 where
the hardware computes it, and with --compile if asked for. Same random images, same model seed.
Prints images/s, the share of the default's epoch that is spent on data, and on a CPU the peak
memory of a run of cifar_train.py beside that of a process that only trains the model on one batch.
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the repository, from any folder

from benchmarks.timing import Row, in_turn, machine, rates, table
from common.models import resnet_cifar
from common.training import launch, precision, seeds, speed
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


def per_image(
    images: np.ndarray, targets: np.ndarray, arch: str, device: torch.device
) -> Callable[[], None]:
    loader = DataLoader(
        PerImage(images, targets),
        BATCH,
        shuffle=True,
        num_workers=4,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    model, optimizer = build(arch, device, channels_last=False)

    def epoch() -> None:
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.item()  # the originals read the loss in every step
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def forward_pass(
    model: nn.Module, criterion: nn.Module, images: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return (criterion(model(images).float(), target),)


class WholeBatch:
    """An epoch as this repository's programs train it; ``data`` sums the seconds spent on data."""

    def __init__(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        arch: str,
        device: torch.device,
        amp: str = "none",
        channels_last: bool | None = None,
        compiled: bool = False,
    ) -> None:
        process = launch.Process(device)
        channels_last = speed.use_channels_last(channels_last, device, amp)
        self.loader = DeviceLoader(
            images, targets, BATCH, batch.cifar_train, seed=0, process=process,
            memory_format=speed.memory_format(channels_last),
        )  # fmt: skip
        self.model, self.optimizer = build(arch, device, channels_last)
        self.guard = precision.FiniteGuard(self.model, self.optimizer)
        self.forward = speed.compiled(forward_pass, compiled, process, self.loader.full_batch)
        self.criterion, self.device, self.amp, self.data = nn.CrossEntropyLoss(), device, amp, 0.0

    def __call__(self) -> None:
        end = time.perf_counter()
        for step, (x, y, _) in enumerate(self.loader):
            self.data += time.perf_counter() - end
            self.optimizer.zero_grad(set_to_none=True)
            with precision.autocast(self.device, self.amp):
                (loss,) = self.forward(self.model, self.criterion, x, y)
            self.guard.check(loss, epoch=0, step=step, lr=0.1)
            loss.backward()
            self.optimizer.step()
            end = time.perf_counter()


def rows(
    count: int, rounds: int, arch: str, device: torch.device, compiled: bool = False
) -> list[Row]:
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    targets = rng.randint(0, 10, count)
    has_bf16 = precision.has_bfloat16(device)
    made = (images, targets, arch, device)
    default = WholeBatch(*made)
    ours = {"default": default, "--no-channels_last": WholeBatch(*made, channels_last=False)}
    if has_bf16:
        ours["--amp bf16"] = WholeBatch(*made, amp="bf16")
    if compiled:
        ours["--compile"] = WholeBatch(*made, compiled=True)
    if has_bf16 and compiled:
        ours["--amp bf16 --compile"] = WholeBatch(*made, amp="bf16", compiled=True)
    times = in_turn({"plain": per_image(*made), **ours}, rounds, device)
    plain = count / times.pop("plain")
    found = [
        rates(f"epoch of {arch}, {name}, images/s", plain, count / spent)
        for name, spent in times.items()
    ]
    share = default.data / (rounds + 1) / times["default"]
    return [*found, Row(f"epoch of {arch}: share spent on data", "", f"{share:.2%}", "")]


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


def memory_row(arch: str) -> Row:
    """What a whole run on embedded digits, 7 MB of pixels, needs beyond the bare training."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(ROOT / "ib_loss" / "cifar_train.py")
        run = peak_memory(
            [program, "--dataset", "digits", "--arch", arch, "--epochs", "1", "--seed", "0",
             "--root_log", folder, "--root_model", folder]
        )  # fmt: skip
    bare = peak_memory([__file__, "--arch", arch, "--bare"])
    what = f"peak memory of a run of {arch} beside bare training"
    return Row(what, f"{bare:,.0f} MB", f"{run:,.0f} MB", f"{run - bare:+,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", default="resnet32")
    parser.add_argument("--compile", action="store_true", help="measure --compile, too: minutes")
    parser.add_argument("--bare", action="store_true", help="only train on one batch, for memory")
    args = parser.parse_args()
    if args.bare:
        bare_training(args.arch)
        return
    device = launch.start().device
    found = rows(args.images, args.rounds, args.arch, device, args.compile)
    if device.type == "cpu":
        found.append(memory_row(args.arch))
    print(machine(device))
    print(table(found))


if __name__ == "__main__":
    main()
