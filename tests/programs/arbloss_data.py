"""Small made data for the ARB-Loss programs."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.programs import tools

PROGRAMS = tools.ROOT / "arbloss"
CONFIG = PROGRAMS / "config"
COUNTS = [24, 16, 9, 6, 3]
GROUPS = ["head_class_idx", "[0,2]", "med_class_idx", "[2,4]", "tail_class_idx", "[4,5]"]
# Enough to let any of the shipped configurations run on an image folder of five classes.
SMALL = ["dataset", "imagefolder", "num_classes", "5", "imb_factor", "null", "image_size", "8",
         "backbone", "resnet20_fe", "batch_size", "16", "workers", "0", "num_epochs", "2",
         "print_freq", "1", *GROUPS]  # fmt: skip


def make_folder(root: Path) -> Path:
    """An image folder of five classes, naturally long-tailed, 8x8 pixels."""
    return tools.make_image_folder(root, COUNTS, size=8, test_per_class=5)


def make_lists(root: Path, train: str, test: str, counts: list[int]) -> Path:
    """Images of a few classes and the two list files that name them."""
    rng = np.random.RandomState(1)
    for name, numbers in ((train, counts), (test, [2] * len(counts))):
        lines = []
        for label, count in enumerate(numbers):
            for i in range(count):
                path = Path("images", name.removesuffix(".txt"), f"{label}_{i}.jpg")
                (root / path.parent).mkdir(parents=True, exist_ok=True)
                pixels = rng.randint(40 * label, 40 * label + 60, (48, 64, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / path)
                lines.append(f"{path.as_posix()} {label}")
        (root / name).write_text("\n".join(lines) + "\n")
    return root
