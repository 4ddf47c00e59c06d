#!/usr/bin/env python
"""Read every image of a data set, on all cores, and list what is broken.

    python -m datasets.check DIR
    python -m datasets.check ImageNet_LT_train.txt ImageNet_LT_test.txt --root DIR
    python -m datasets.check FILE.npz

from the repository's root; from anywhere with its path, python PATH/datasets/check.py DIR.

DIR/train/<class>/* with val/ or test/ is checked as the programs take it; of any other folder all
images below it are read. Exit code 1 if an image is broken, 2 if the data have another layout.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from common.training.errors import UsageError
from common.training.flags import Parser
from common.training.launch import run
from common.training.logs import Progress
from datasets import npz
from datasets.folder import ENDINGS, Skipped, held_out, image_files, read_folder
from datasets.images import read_rgb, remarks
from datasets.listfile import ListFile, check_names, require_some


@dataclass
class Found:
    """What a folder, list or file holds.

    Attributes:
        lines: what to say of it. images: (file, where it is named) of what is still to be read.
    """

    lines: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: object, files: Sequence[str], classes: Sequence, notes: Sequence[str]):
        """Count the images of ``what``, to be read, and say the notes about it."""
        self.lines += [f"{what}: {len(files)} images of {len(classes)} classes", *notes]
        self.images += [(file, "") for file in files]


def get_parser() -> Parser:
    """The parser of the program."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="+", help="folder, npz file or list files, training list first"
    )
    parser.add_argument(
        "--root", help="folder that the paths in lists start from (default: the list's folder)"
    )
    parser.add_argument(
        "-j", "--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)"
    )
    return parser


def look(data: Sequence[str], root: str | None) -> Found:
    """List the images; those of npz files are read on the way.

    ``root``: what paths in lists start from; None: the list's folder.

    Raises:
        UsageError: no such data, or of another layout than the programs take.
    """
    found = Found()
    train = None
    for name in data:
        path = Path(name)
        if path.is_dir() and (path / "train").is_dir():
            for split in ("train", *held_out(path)):
                part = read_folder(path, split)
                found.add(path / split, part.files, part.classes, part.notes)
        elif path.is_dir():
            skipped = Skipped()
            files = image_files(path, skipped)
            if not files:
                raise UsageError(f"{path}: no images in it, {ENDINGS}")
            found.lines += [f"{path}: {len(files)} images", *skipped.notes(path)]
            found.images += [(file, "") for file in files]
        elif path.suffix == ".npz":
            for split in ("train", *npz.held_out(path)):
                part = npz.open_split("npz", path, split, size=32)
                counts = f"{len(part.targets)} images of {len(part.classes)} classes"
                found.lines += [f"{path}, {split}: {counts}", *part.notes]
        elif not path.exists():
            raise UsageError(f"{path}: no such folder, list or npz file")
        else:
            start = root or path.parent
            num_classes = None if train is None else train.num_classes
            part = ListFile(path, start, num_classes=num_classes, must_exist=False)
            train = train or part
            check_names(train, part)
            require_some(path, part.files, start)
            counts = f"{len(part)} images of {part.num_classes} classes"
            found.lines += [f"{path}: {counts}", *part.notes]
            found.images += [(part.path(i), part.place(i)) for i in range(len(part))]
    return found


def read(image: tuple[str, str]) -> tuple[str | None, list[str]]:
    """What is wrong with an image, or None; what is done to it beyond decoding."""
    try:
        read_rgb(*image)
        return None, remarks(image[0])
    except UsageError as error:
        return str(error), []


def read_all(
    images: Sequence[tuple[str, str]], workers: int
) -> Iterator[tuple[str | None, list[str]]]:
    """``read`` of each image, in so many processes; Ctrl-C is left to the parent."""
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=ignore_interrupt) as pool:
        yield from pool.map(read, images, chunksize=16)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program; ends with exit code 1 if images are broken."""
    parser = get_parser()
    args = parser.parse_args(argv)
    parser.check_numbers(args, workers=(1, 1024))
    found = look(args.data, args.root)
    print("\n".join(found.lines), flush=True)
    progress = Progress("check", len(found.images))
    broken = 0
    done: dict[str, list[str]] = {}
    try:
        results = read_all(found.images, args.workers)
        for (file, _), (complaint, its_remarks) in zip(found.images, results, strict=True):
            if complaint:
                broken += 1
                progress.line(complaint)
            for remark in its_remarks:
                done.setdefault(remark, []).append(file)
            progress.step()
    except BrokenProcessPool:
        raise UsageError(
            f"--workers {args.workers}: a worker process died, out of memory? Use fewer"
        ) from None
    progress.close()
    for remark, files in sorted(done.items()):
        print(f"note: {len(files)} images {remark} (such as {files[0]})")
    if found.images:
        print(f"{len(found.images)} images read, {broken} of them broken")
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    run(main, trains=False)
