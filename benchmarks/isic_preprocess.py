"""Preprocessing of ISIC images against reading and writing the same JPEGs, on one core, in turns.

    python benchmarks/isic_preprocess.py

The images are made up (smooth, with some noise) in the two sizes most common in ISIC 2019. Reading
and writing alone means: decode the whole image, encode its central crop, which is what
preprocessing writes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder

from benchmarks.timing import Row, in_turn, rates, table
from hmloss.isic2019_implementation.preprocessing.color_constancy import center_crop
from hmloss.isic2019_implementation.preprocessing.preprocess import convert

SETTINGS = {"algorithm": "gray world", "s": 2, "p": 6, "crop": True, "quality": 75}


def make_image(path: Path, width: int, height: int, seed: int) -> None:
    """A reddish gradient with a dark spot and sensor noise, as JPEG of quality 95."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    spot = np.exp(-(((x - width / 2) ** 2 + (y - height / 2) ** 2) / (width / 5) ** 2))
    grey = 190 + 20 * x / width - 110 * spot + rng.normal(0, 4, (height, width))
    pixels = np.clip(grey[..., None] * [1, 0.75, 0.7], 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def read_and_write(source: Path, destination: Path) -> None:
    with Image.open(source) as file:
        image = file.convert("RGB")
    center_crop(image).save(destination, format="JPEG", quality=SETTINGS["quality"])


def rows(count: int, repeats: int) -> list[Row]:
    found = []
    for width, height in ((600, 450), (1024, 1024)):
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "in"), Path(folder, "out")
            source.mkdir()
            out.mkdir()
            images = [source / f"{i}.jpg" for i in range(count)]
            for i, path in enumerate(images):
                make_image(path, width, height, seed=i)

            def alone(images: list[Path] = images, out: Path = out) -> None:
                for path in images:
                    read_and_write(path, out / path.name)

            def ours(images: list[Path] = images, out: Path = out) -> None:
                for path in images:
                    convert((str(path), str(out / path.name)), SETTINGS)

            times = in_turn({"alone": alone, "ours": ours}, repeats, torch.device("cpu"))
        what = f"ISIC preprocessing, {width}x{height}, beside reading and writing alone, images/s"
        found.append(rates(what, count / times["alone"], count / times["ours"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20, help="of each size (default: 20)")
    parser.add_argument("--repeats", type=int, default=5, help="passes over them (default: 5)")
    args = parser.parse_args()
    print(table(rows(args.images, args.repeats)))


if __name__ == "__main__":
    main()
