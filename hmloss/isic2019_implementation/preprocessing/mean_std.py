"""Mean and standard deviation of the channels of a folder of images, as the trainer normalises by.

    python preprocessing/mean_std.py dataset

The constants in data.py are the authors'; this shows how far other images are from them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the repository
from common.training import interrupt

interrupt.during_imports(__name__)

import numpy as np
import torch
from PIL import Image

from common.training.flags import Parser
from common.training.launch import run
from common.training.logs import Progress
from datasets.images import read_rgb
from hmloss.isic2019_implementation.data import FOLDER, MEAN, STD, TASKS, open_task


def channel_mean_std(images: Iterable[Image.Image], size: int = 300) -> tuple[np.ndarray, ...]:
    """Mean and population standard deviation, each (3,), over all pixels of all images.

    RGB images are resized to ``size`` x ``size`` (bilinear, no antialiasing: OpenCV's), scaled to
    [0, 1]. One image is in memory at a time.
    """
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for image in images:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        pixels = torch.nn.functional.interpolate(
            pixels, (size, size), mode="bilinear", align_corners=False
        )
        values = pixels.round().double().div(255).flatten(1).view(3, -1).numpy()
        count += values.shape[1]
        total += values.sum(1)
        squares += (values**2).sum(1)
    mean = total / count
    return mean, np.sqrt(squares / count - mean**2)


def main(argv: Sequence[str] | None = None) -> None:
    """Print both for the images of a task."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", help="folder of the images, as train_isic.py takes it")
    parser.add_argument(
        "--task", default="melanoma", choices=[*TASKS, FOLDER], help="(default: melanoma)"
    )
    parser.add_argument("--image_size", type=int, default=300, help="(default: 300)")
    args = parser.parse_args(argv)
    parser.check_numbers(args, image_size=(1, 8192))
    found = open_task(args.task, args.dataset_dir)
    paths = found.table["path"]
    for note in found.notes:
        print(note)
    progress = Progress("mean and std", len(paths))

    def images() -> Iterable[Image.Image]:
        for path in paths:
            yield read_rgb(path)
            progress.step()

    mean, std = channel_mean_std(images(), args.image_size)
    progress.close()
    print("mean", np.round(mean, 5).tolist(), "the authors':", list(MEAN))
    print("std ", np.round(std, 5).tolist(), "the authors':", list(STD))


if __name__ == "__main__":
    run(main, trains=False)
