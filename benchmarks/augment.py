#!/usr/bin/env python
"""Images per second and core: transforms image by image against the same for a whole batch.

    python benchmarks/augment.py [--device cuda] [--batch-size 128]

The per-image side is what a loader worker does with one sample: PIL image, transforms,
normalised float32 tensor, then the stacking into a batch. Both sides run one after the other,
``--rounds`` times, in one process with one thread; the table shows medians. On a GPU the per-image
side still runs on one CPU core. About a minute.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder

import torch
from PIL import Image

from benchmarks.timing import Row, in_turn, machine, rates, table
from datasets.augment import batch as shared
from datasets.augment import recipes as shared_recipes
from dbm_loss.augment import batch, recipes

# name: (image size, per-image transform, whole-batch recipe)
CASES: dict[str, tuple[int, Callable, Callable]] = {
    "crop + flip": (32, shared_recipes.cifar_train(), shared.cifar_train),
    "AutoAugment + Cutout": (
        32,
        recipes.view_a(aug_type="autoaug_cifar", cutout=True),
        partial(batch.view_a, aug_type="autoaug_cifar", cutout=True),
    ),
    "SimCLR view": (32, recipes.view_s(), batch.view_s),
    "resized crop 64 to 224": (
        64,
        shared_recipes.imagenet_train(),
        shared.random_resized_crop_flip,
    ),
}


def smooth_images(count: int, size: int) -> torch.Tensor:
    """uint8 (N, 3, S, S) with the structure of photographs rather than of noise."""
    coarse = torch.rand(count, 3, size // 4, size // 4) * 255
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (images + torch.randn_like(images) * 8).clamp(0, 255).byte()


def compare(case: str, batch_size: int, rounds: int, device: torch.device) -> tuple[float, float]:
    """Images per second of the per-image transform and of the whole-batch recipe."""
    size, of_image, of_batch = CASES[case]
    images = smooth_images(batch_size, size)
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    on_device = images.to(device)
    generator = torch.Generator().manual_seed(0)

    def one_by_one() -> torch.Tensor:
        return torch.stack([of_image(Image.fromarray(array)) for array in arrays])

    def at_once() -> torch.Tensor:
        return of_batch(on_device, generator)

    times = in_turn({"each": one_by_one, "whole": at_once}, rounds, device)
    return batch_size / times["each"], batch_size / times["whole"]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Of one core both sides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(batch_size: int, rounds: int, device: torch.device) -> list[Row]:
    with one_thread():
        return [
            rates(f"augmentation, {case}, images/s", *compare(case, batch_size, rounds, device))
            for case in CASES
        ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128, help="images per batch")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions; the median counts")
    parser.add_argument("--device", default="cpu", help="where the whole-batch side runs")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    print(machine(device))
    print(table(rows(args.batch_size, args.rounds, device)))


if __name__ == "__main__":
    main()
