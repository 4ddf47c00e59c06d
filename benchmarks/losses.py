#!/usr/bin/env python
"""What each paper's loss adds to a training step with cross-entropy, measured in turn.

    python benchmarks/losses.py [--rounds 5]

For 10, 100, 1000 and 8142 classes: a whole step (ResNet-32 with batch 128; from 1000 classes on
ResNet-50 with batch 8 at 224 pixels), and each loss alone, value and gradient, minus cross-entropy.
Then the balanced contrastive loss against a loop over its anchors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder

from arbloss.losses import ARBLoss, batch_class_counts
from benchmarks.timing import Row, in_turn, machine, table
from common.models import archs
from common.training import launch
from dbm_loss.losses import BalancedSoftmax, BalSCL
from dbm_loss.margin import DBMargin
from hmloss.losses import CELoss, HMLoss
from ib_loss.losses import IBLoss

SETTINGS = {  # classes: network, batch, image size
    10: ("resnet32", 128, 32),
    100: ("resnet32", 128, 32),
    1000: ("resnet50", 8, 224),
    8142: ("resnet50", 8, 224),
}


def losses(classes: int, device: torch.device) -> dict[str, tuple[Callable, Callable]]:
    """Each paper's loss and what it is compared with, both of (logits, target, features)."""
    counts = np.geomspace(1000, 5, classes).astype(int).tolist()
    weight = torch.rand(classes, device=device) + 0.5
    cosine, margin = (
        BalancedSoftmax(counts, margin=DBMargin(counts, use_dbm=use)).to(device)
        for use in (False, True)
    )
    hml, weighted, ib = HMLoss(weight, 1e4), CELoss(weight), IBLoss(weight, 1000.0)
    arb = ARBLoss(validate=False)
    return {
        "IB": (lambda z, y, h: weighted(z, y), ib.to(device)),
        "the margin of DBM": (lambda z, y, h: cosine(z, y), lambda z, y, h: margin(z, y)),
        "HML": (lambda z, y, h: weighted(z, y), lambda z, y, h: hml(z, y)),
        "ARB, with counting": (
            lambda z, y, h: F.cross_entropy(z, y),
            lambda z, y, h: arb(z, y, batch_class_counts(y, classes)),
        ),
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor) -> None:
    """A training step with cross-entropy."""
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), target).backward()
    optimizer.step()


def alone(loss: Callable, logits: Tensor, target: Tensor, features: Tensor) -> None:
    """Value and gradient of a loss."""
    torch.autograd.grad(loss(logits, target, features), logits)


def shares(classes: int, rounds: int, device: torch.device) -> list[Row]:
    """What the losses add to a step, in percent of it."""
    arch, batch, size = SETTINGS[classes]
    model = archs.constructor(arch)(classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x = torch.randn(batch, 3, size, size, device=device)
    target = torch.randint(classes, (batch,), device=device)
    whole = in_turn({"step": partial(step, model, optimizer, x, target)}, rounds, device)["step"]
    logits = torch.empty(batch, classes, device=device).uniform_(-1, 1).requires_grad_()
    features = torch.rand(batch, 64, device=device)
    found = []
    for name, pair in losses(classes, device).items():
        runs = {
            which: partial(alone, loss, logits, target, features)
            for which, loss in zip(("plain", "ours"), pair, strict=True)
        }
        times = in_turn(runs, 40 * rounds, device)
        added = times["ours"] - times["plain"]
        found.append(
            Row(
                f"loss alone, {name}, C = {classes:,}: share of a step",
                f"{times['plain'] * 1e3:.3f} ms",
                f"{times['ours'] * 1e3:.3f} ms",
                f"{added / whole:+.3%} of {whole * 1e3:,.0f} ms",
            )
        )
    return found


def loop_over_anchors(features: Tensor, centers: Tensor, target: Tensor) -> Tensor:
    """The balanced contrastive loss, temperature 0.1, as one writes it down: anchor by anchor."""
    entries = torch.cat([features[:, 0], features[:, 1], centers])
    labels = torch.cat([target, target, torch.arange(len(centers), device=target.device)])
    size = torch.bincount(labels)[labels].float()
    anchors = 2 * len(target)
    total = features.new_zeros(())
    for i in range(anchors):
        others = torch.arange(len(entries), device=target.device) != i
        score = entries[others] @ entries[i] / 0.1
        positive = labels[others] == labels[i]
        weight = size[others] - positive.float()
        log_prob = score - (score.exp() / weight).sum().log()
        total = total - log_prob[positive].mean()
    return total / anchors


def contrastive(rounds: int, device: torch.device) -> Row:
    """Batch 256, 1000 classes, 128 features."""
    features = F.normalize(torch.randn(256, 2, 128, device=device), dim=-1)
    centers = F.normalize(torch.randn(1000, 128, device=device), dim=-1)
    target = torch.randint(1000, (256,), device=device)
    features.requires_grad_()
    runs = {
        name: lambda loss=loss: torch.autograd.grad(loss(features, centers, target), features)
        for name, loss in (("plain", loop_over_anchors), ("ours", BalSCL()))
    }
    times = in_turn(runs, rounds, device)
    return Row(
        "balanced contrastive loss, batch 256, C = 1,000, against a loop over the anchors",
        f"{times['plain'] * 1e3:.0f} ms",
        f"{times['ours'] * 1e3:.0f} ms",
        f"{times['plain'] / times['ours']:.0f}×",
    )


def rows(rounds: int, device: torch.device) -> list[Row]:
    found = [row for classes in SETTINGS for row in shares(classes, rounds, device)]
    return [*found, contrastive(rounds, device)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="steps that count (default: 5)")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    device = launch.start().device
    print(machine(device))
    print(table(rows(args.rounds, device)))


if __name__ == "__main__":
    main()
