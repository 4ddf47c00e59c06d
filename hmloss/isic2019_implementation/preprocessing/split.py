"""Split the preprocessed images into train, val and test and save the split for the trainer.

    python preprocessing/split.py --dataset_dir dataset --seed 0 \\
        --metadata ISIC_2019_Training_Metadata.csv

writes dataset/split.csv, which train_isic.py reads. With --metadata all images of a lesion go to
the same part; without it images of one lesion fall on both sides, as in the paper, which flatters
the figures. Replaces train_valid_split_task.py: the same shuffle and cuts for the same seed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the repository
from common.training import interrupt

interrupt.during_imports(__name__)

import numpy as np
import pandas as pd

from common.training.errors import UsageError, writing
from common.training.flags import Parser
from common.training.launch import run
from common.training.logs import prepare_folders
from common.training.seeds import choose_seed
from datasets.folder import Skipped
from hmloss.isic2019_implementation.data import (
    PARTS,
    TASKS,
    TREE,
    check_parts,
    find_images,
    read_lesions,
    save_split,
    split_images,
)


def get_parser() -> Parser:
    """The parser of the program."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_dir", default="dataset", help="folder with BEN/ and MAL/ (default: dataset)"
    )
    parser.add_argument(
        "--task",
        default="melanoma",
        choices=[*TASKS],
        help="melanoma, or all eight classes in MEL/, NV/, … (default: melanoma)",
    )
    parser.add_argument("--output", help="csv to write (default: DATASET_DIR/split.csv)")
    parser.add_argument(
        "--seed", type=int, help="of the shuffle (default: a random one, printed and saved)"
    )
    parser.add_argument("--train_ratio", type=float, default=0.8, help="(default: 0.8)")
    parser.add_argument(
        "--val_ratio", type=float, default=0.1, help="the rest is for the test (default: 0.1)"
    )
    parser.add_argument("--metadata", help="official metadata csv: keeps lesions together")
    parser.add_argument(
        "--tree",
        metavar="DIR",
        help="also copy the images to DIR/{TRAIN,VALID,TEST}/<class>, as the original did",
    )
    return parser


def copy_tree(table: pd.DataFrame, folder: Path) -> None:
    """Copy the images into a folder per part and class."""
    classes = table["label"].unique()
    prepare_folders(*(folder / TREE[part] / name for part in PARTS for name in classes))
    for row in table.itertuples():
        copy = folder / TREE[row.part] / row.label / row.image_id
        with writing(copy):
            shutil.copy2(row.path, copy)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = get_parser()
    args = parser.parse_args(argv)
    parser.check_numbers(args, seed=(0, 2**32 - 1))  # what NumPy's legacy generator takes
    if not (args.train_ratio > 0 and args.val_ratio > 0 and args.train_ratio + args.val_ratio < 1):
        raise UsageError(
            f"--train_ratio {args.train_ratio} --val_ratio {args.val_ratio}: "
            "both above 0, their sum below 1"
        )
    output = Path(args.output or Path(args.dataset_dir) / "split.csv")
    if output.exists():
        raise UsageError(f"{output}: exists and is not overwritten; move it away or give --output")
    tree = Path(args.tree) if args.tree else None
    if tree and any((tree / name).exists() for name in TREE.values()):
        raise UsageError(f"--tree {tree}: holds a split already; choose another folder")

    skipped = Skipped()
    classes = list(TASKS[args.task])
    table = find_images(args.dataset_dir, classes, skipped)
    for note in skipped.notes(args.dataset_dir):
        print(note)
    lesion_of = read_lesions(args.metadata) if args.metadata else None
    seed = choose_seed(args.seed)
    ids = {name: table.loc[table["label"] == name, "image_id"].tolist() for name in classes}
    ratios = (args.train_ratio, args.val_ratio)
    part_of = split_images(ids, np.random.RandomState(seed), ratios=ratios, lesion_of=lesion_of)
    table["part"] = table["image_id"].map(part_of)
    for note in check_parts(table, args.dataset_dir, classes):
        print(note)
    grouping = f"lesions of {Path(args.metadata).name} kept together" if args.metadata else "images"
    note = f"seed {seed}, train {ratios[0]}, val {ratios[1]}, {grouping}"
    save_split(output, table, note)
    if tree:
        copy_tree(table, tree)

    for name in classes:
        parts = table.loc[table["label"] == name, "part"]
        print(name)
        print(f"Total images:  {len(parts)}")
        for title, part in (("Training", "train"), ("Validation", "val"), ("Testing", "test")):
            print(f"{title}:  {(parts == part).sum()}")
    print(f"{output}: {note}")


if __name__ == "__main__":
    run(main, trains=False)
