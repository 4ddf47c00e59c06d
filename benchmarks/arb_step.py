#!/usr/bin/env python
"""Cost of ARB-Loss: a training step with it and with cross-entropy, in turns, in one run.

    python benchmarks/arb_step.py

For 10, 100, 1000 and 8142 classes, with the classes of each batch counted in the step: milliseconds
of a whole step of both, and of the losses alone (counting, value, gradient). The last column is
what counting and ARB-Loss add to the loss, in percent of a cross-entropy step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder

from arbloss.losses import ARBLoss, batch_class_counts
from arbloss.models import Network
from common.training import launch

SETTINGS = {  # classes: backbone, batch, image size
    10: ("resnet32_fe", 128, 32),
    100: ("resnet32_fe", 128, 32),
    1000: ("resnet50_fe", 32, 224),
    8142: ("resnet50_fe", 32, 224),
}
ARB = ARBLoss(validate=False)


def arb_loss(logits: Tensor, target: Tensor) -> Tensor:
    """As the programs call it: counts of this batch, then the loss."""
    return ARB(logits, target, batch_class_counts(target, logits.shape[1]))


def medians(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict:
    """Median milliseconds of each function; they take turns, so both see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, function in runs.items():
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="steps of each kind (default: 20)")
    parser.add_argument("--batch-size", type=int, help="(default: 128; 32 from 1000 classes on)")
    parser.add_argument("--image-size", type=int, help="(default: 32; 224 from 1000 classes on)")
    args = parser.parse_args()
    device = launch.start().device
    losses = {"CE": F.cross_entropy, "ARB": arb_loss}
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("     C  step CE ms  step ARB ms   ratio  loss CE ms  loss ARB ms  added %")
    for classes, (backbone, batch, size) in SETTINGS.items():
        batch, size = args.batch_size or batch, args.image_size or size
        torch.manual_seed(0)
        network = Network(backbone, classes).to(device)
        optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
        images = torch.randn(batch, 3, size, size, device=device)
        target = torch.randint(classes, (batch,), device=device)

        def step(
            loss: Callable[[Tensor, Tensor], Tensor],
            network: Network = network,
            optimizer: torch.optim.Optimizer = optimizer,
            images: Tensor = images,
            target: Tensor = target,
        ) -> None:
            value = loss(network(images)[0], target)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()

        def alone(
            loss: Callable[[Tensor, Tensor], Tensor],
            logits: Tensor = torch.randn(batch, classes, device=device, requires_grad=True),
            target: Tensor = target,
        ) -> None:
            torch.autograd.grad(loss(logits, target), logits)

        whole = medians({n: partial(step, loss) for n, loss in losses.items()}, args.rounds, device)
        part = medians(
            {n: partial(alone, loss) for n, loss in losses.items()}, 20 * args.rounds, device
        )
        added = (part["ARB"] - part["CE"]) / whole["CE"] * 100
        print(
            f"{classes:6d} {whole['CE']:11.2f} {whole['ARB']:12.2f} "
            f"{whole['ARB'] / whole['CE']:7.3f} {part['CE']:11.3f} {part['ARB']:12.3f} "
            f"{added:8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
