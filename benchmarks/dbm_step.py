#!/usr/bin/env python
"""What the margin, the contrastive loss and the augmentation cost, side by side in one run.

    python benchmarks/dbm_step.py [--device cuda] [--threads 1]

1. DBM in a training step of ResNet-32: the same loss with and without the margin.
2. The balanced contrastive loss against a loop over its anchors, and its memory.
3. AutoAugment and Cutout of a whole batch against one PIL image after the other, on one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder

from common.models.resnet_cifar import resnet32
from dbm_loss.augment import batch, recipes
from dbm_loss.losses import BalancedSoftmax, BalSCL
from dbm_loss.margin import DBMargin


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(runs: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict:
    """Median time of each function; they take turns, so that a busy machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for function in runs.values():
        function()
    for _ in range(rounds):
        for name, function in runs.items():
            wait(device)
            start = time.perf_counter()
            function()
            wait(device)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def backward(loss: Callable[..., Tensor], inputs: Tensor, *rest: Tensor) -> None:
    inputs.grad = None
    loss(inputs, *rest).backward()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: nn.Module, *data) -> None:
    images, target = data
    optimizer.zero_grad(set_to_none=True)
    loss(model(images), target).backward()
    optimizer.step()


def margin(device: torch.device, batch_size: int, rounds: int) -> None:
    print(f"\nDBM in a step: ResNet-32, balanced softmax, batch {batch_size}")
    print("     C   step without   step with   loss without   loss with   DBM / step")
    for classes in (10, 100, 1000, 8142):
        counts = np.geomspace(1000, 5, classes).astype(int).tolist()
        losses = {
            name: BalancedSoftmax(counts, margin=DBMargin(counts, use_dbm=use)).to(device)
            for name, use in (("without", False), ("with", True))
        }
        model = resnet32(classes, use_norm=True).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        images = torch.randn(batch_size, 3, 32, 32, device=device)
        target = torch.randint(classes, (batch_size,), device=device)
        cosine = torch.empty(batch_size, classes, device=device).uniform_(-1, 1).requires_grad_()
        steps = {n: partial(step, model, optimizer, f, images, target) for n, f in losses.items()}
        alone = {n: partial(backward, f, cosine, target) for n, f in losses.items()}
        whole = seconds(steps, device, rounds)
        part = seconds(alone, device, 20 * rounds)
        share = (part["with"] - part["without"]) / whole["without"]
        print(
            f"{classes:6d}   {whole['without'] * 1e3:9.2f} ms {whole['with'] * 1e3:8.2f} ms "
            f"{part['without'] * 1e3:11.3f} ms {part['with'] * 1e3:8.3f} ms   {share:9.2%}"
        )


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


def contrastive(device: torch.device, rounds: int) -> None:
    print("\nBalanced contrastive loss, forward and backward, 128 features")
    print("    B      C     vectorised   loop over anchors   factor   saved / similarities")
    vectorised = BalSCL()
    for batch_size, classes in ((64, 100), (256, 1000), (256, 8142)):
        features = F.normalize(torch.randn(batch_size, 2, 128, device=device), dim=-1)
        centers = F.normalize(torch.randn(classes, 128, device=device), dim=-1)
        target = torch.randint(classes, (batch_size,), device=device)
        features.requires_grad_()
        saved: dict[int, int] = {}

        def keep(x: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            value = vectorised(features, centers, target)
        torch.testing.assert_close(value, loop_over_anchors(features, centers, target))
        similarities = 4 * 2 * batch_size * (2 * batch_size + classes)
        data = (features, centers, target)
        runs = {
            "vectorised": partial(backward, vectorised, *data),
            "loop": partial(backward, loop_over_anchors, *data),
        }
        taken = seconds(runs, device, rounds)
        print(
            f"{batch_size:5d} {classes:6d} {taken['vectorised'] * 1e3:11.2f} ms "
            f"{taken['loop'] * 1e3:16.2f} ms {taken['loop'] / taken['vectorised']:8.1f}"
            f" {sum(saved.values()) / similarities:14.2f}"
        )


def augmentation(device: torch.device, batch_size: int, rounds: int) -> None:
    images = np.random.RandomState(0).randint(0, 256, (batch_size, 32, 32, 3), dtype=np.uint8)
    on_device = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
    generator = torch.Generator().manual_seed(0)
    per_image = recipes.view_a(aug_type="autoaug_cifar", cutout=True)
    whole = partial(batch.view_a, aug_type="autoaug_cifar", cutout=True)
    taken = seconds(
        {
            "batch": lambda: whole(on_device, generator),
            "images": lambda: [per_image(Image.fromarray(image)) for image in images],
        },
        device,
        rounds,
    )
    model = resnet32(100, use_norm=True).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x = torch.randn(batch_size, 3, 32, 32, device=device)
    y = torch.randint(100, (batch_size,), device=device)
    one_step = partial(step, model, optimizer, nn.CrossEntropyLoss(), x, y)
    train = seconds({"step": one_step}, device, rounds)["step"]
    print(f"\nCrop, flip, AutoAugment, Cutout of {batch_size} images of 32 pixels")
    for name, what in (("batch", f"whole batch on {device}"), ("images", "PIL, one by one")):
        print(f"{what:24s} {batch_size / taken[name]:9.0f} images/s")
    print(
        f"factor {taken['images'] / taken['batch']:.1f}; "
        f"whole batch / step of ResNet-32: {taken['batch'] / train:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"(default: {default})")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; the median counts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{args.threads} CPU thread(s)"
    )
    print(f"torch {torch.__version__}, {name}")
    margin(device, args.batch_size, args.rounds)
    contrastive(device, args.rounds)
    augmentation(device, args.batch_size, args.rounds)


if __name__ == "__main__":
    main()
