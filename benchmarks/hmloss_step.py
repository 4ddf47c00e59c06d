"""Cost of the hard mining loss: a whole training step with it and with cross-entropy, in turns.

    python benchmarks/hmloss_step.py

Prints milliseconds per step of both, the ratio of the medians, and what the losses alone cost
(value and gradient), for 10, 100 and 8142 classes.
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
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder

from common.models import resnet, resnet_cifar
from common.training import launch
from hmloss.losses import CELoss, HMLoss

SETTINGS = {  # classes: network, batch, image size
    10: (resnet_cifar.resnet32, 128, 32),
    100: (resnet_cifar.resnet32, 128, 32),
    8142: (resnet.resnet50, 32, 224),
}


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1000


def compare(steps: dict[str, Callable], repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each step; they take turns, so that both see the same machine."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(timed(step, device))
    return {name: statistics.median(values) for name, values in times.items()}


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    images: torch.Tensor,
    target: torch.Tensor,
) -> None:
    loss = criterion(model(images), target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def loss_step(criterion: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> None:
    torch.autograd.grad(criterion(logits, target), logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="steps of each kind (default: 20)")
    parser.add_argument("--classes", type=int, nargs="+", default=list(SETTINGS))
    parser.add_argument("--batch", type=int, help="(default: 128, and 32 with 8142 classes)")
    args = parser.parse_args()
    device = launch.start().device
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for num_classes in args.classes:
        build, batch, size = SETTINGS[num_classes]
        batch = args.batch or batch
        torch.manual_seed(0)
        images = torch.randn(batch, 3, size, size, device=device)
        target = torch.randint(num_classes, (batch,), device=device)
        weight = torch.rand(num_classes) + 0.5
        criteria = {"CE": CELoss(weight).to(device), "HML": HMLoss(weight, 1e4).to(device)}
        model = build(num_classes=num_classes).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        run = partial(training_step, model, optimizer, images=images, target=target)
        whole = compare(
            {name: partial(run, criterion=loss) for name, loss in criteria.items()},
            args.repeats,
            device,
        )
        logits = torch.randn(batch, num_classes, device=device, requires_grad=True)
        alone = compare(
            {name: partial(loss_step, loss, logits, target) for name, loss in criteria.items()},
            args.repeats * 10,
            device,
        )
        added = (alone["HML"] - alone["CE"]) / whole["CE"] * 100
        print(
            f"C = {num_classes}, batch {batch}: step {whole['CE']:.1f} ms with CE, "
            f"{whole['HML']:.1f} ms with HML ({(whole['HML'] / whole['CE'] - 1) * 100:+.2f} %); "
            f"loss alone {alone['CE']:.3f} and {alone['HML']:.3f} ms, "
            f"the difference is {added:.3f} % of a step",
            flush=True,
        )


if __name__ == "__main__":
    launch.run(lambda _: main())
