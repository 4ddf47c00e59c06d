"""From the official ISIC 2019 download to the folders BEN (nevi) and MAL (melanoma): crop, colours.

    python preprocessing/preprocess.py --images ISIC_2019_Training_Input \\
        --ground_truth ISIC_2019_Training_GroundTruth.csv --output dataset

--task all sorts all eight diagnoses into folders of their names, MEL, NV, BCC, …. 17,397 images
on all cores; what is done to an image takes a fraction of the time of reading and writing it
(benchmarks/isic_preprocess.py). The same command again goes on where it stopped. Replaces
preprocessImageConstancy.m.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the repository
from common.training import interrupt

interrupt.during_imports(__name__)

from PIL import Image

from common.training.errors import UsageError, writing
from common.training.flags import Parser
from common.training.launch import run
from common.training.logs import Progress, prepare_folders, write_json, write_text
from datasets.images import read_rgb
from hmloss.isic2019_implementation.data import TASKS, images_below, read_ground_truth
from hmloss.isic2019_implementation.preprocessing.color_constancy import (
    ALGORITHMS,
    center_crop,
    color_constancy,
)

RECORD = "preprocess.json"  # the settings with which a folder was made
UNREADABLE = "unreadable.txt"


def get_parser() -> Parser:
    """The parser of the program."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder with the official JPEGs")
    parser.add_argument("--ground_truth", required=True, help="official ground-truth csv")
    parser.add_argument("--output", default="dataset", help="folder to make (default: dataset)")
    parser.add_argument(
        "--task",
        default="melanoma",
        choices=[*TASKS],
        help="melanoma: nevi in BEN, melanomas in MAL; all: eight folders (default: melanoma)",
    )
    parser.add_argument(
        "--algorithm",
        default="gray world",
        choices=[*ALGORITHMS, "none"],
        help="colour constancy (default: gray world; the authors' call, 'gray world seg' with "
        "--s 2, gives the same pixels)",
    )
    parser.add_argument("--s", type=int, default=2, help="grid of the 'seg' variants (default: 2)")
    parser.add_argument("--p", type=int, default=6, help="power of shades of gray (default: 6)")
    parser.add_argument(
        "--no_crop",
        action="store_true",
        help="keep the whole image, as the authors' driver did by mistake",
    )
    parser.add_argument("--quality", type=int, default=75, help="of the JPEGs (default: 75)")
    parser.add_argument(
        "-j", "--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)"
    )
    return parser


def process_image(image: Image.Image, settings: dict) -> Image.Image:
    """Crop and correct one RGB image."""
    if settings["crop"]:
        image = center_crop(image)
    if settings["algorithm"] == "none":
        return image
    return color_constancy(image, settings["algorithm"], settings["s"], settings["p"])


def convert(task: tuple[str, str], settings: dict) -> str | None:
    """Read, process and write one file; returns None, or what was wrong with it.

    The file appears under its name when it is complete.
    """
    source, destination = task
    try:
        image = read_rgb(source)
    except UsageError as error:
        return str(error)
    image = process_image(image, settings)
    unfinished = f"{destination}.part"
    with writing(destination):
        image.save(unfinished, format="JPEG", quality=settings["quality"])
        os.replace(unfinished, destination)
    return None


def convert_all(tasks: list[tuple[str, str]], settings: dict, workers: int) -> Iterator[str | None]:
    """``convert`` for all tasks, in ``workers`` processes; Ctrl-C is left to the parent."""
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=ignore_interrupt) as pool:
        yield from pool.map(partial(convert, settings=settings), tasks, chunksize=8)


def settings_from(args: argparse.Namespace) -> dict:
    """What the pixels depend on; recorded, so that a folder is never mixed from two settings."""
    settings = {"algorithm": args.algorithm, "s": args.s, "p": args.p}
    settings |= {"crop": not args.no_crop, "quality": args.quality}
    if not 1 <= args.quality <= 95:
        raise UsageError(f"--quality {args.quality}: choose 1 to 95")
    try:  # a pixel tells whether s and p fit the algorithm
        process_image(Image.new("RGB", (8, 8)), settings)
    except ValueError as error:
        raise UsageError(f"--algorithm {args.algorithm}: {error}") from None
    return settings


def prepare_output(output: Path, settings: dict, task: str) -> None:
    """Make the class folders; refuse a folder that holds other images than this run would make."""
    record = output / RECORD
    if record.is_file():
        try:
            made_with = dict(json.loads(record.read_text()))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{record}: not readable ({error}); choose another --output") from None
        for key, value in settings.items():
            if made_with.get(key) != value:
                raise UsageError(
                    f"--output {output}: made with {key} = {made_with.get(key)!r}, not {value!r}; "
                    "nothing is overwritten: choose another folder"
                )
    elif any((output / name).is_dir() and any((output / name).iterdir()) for name in TASKS[task]):
        raise UsageError(
            f"--output {output}: holds images that this program did not make; "
            "nothing is overwritten: choose another folder"
        )
    prepare_folders(*(output / name for name in TASKS[task]))
    write_json(record, settings)


def plan(
    images: Path, ground_truth: Path, output: Path, task: str
) -> tuple[list[tuple[str, str]], list[str], int]:
    """Files still to convert, complaints about absent ones, and how many are done already."""
    if not images.is_dir():
        raise UsageError(f"--images {images}: no such folder")
    available = images_below(images)
    todo, absent, done = [], [], 0
    for label, names in read_ground_truth(ground_truth, task).items():
        for name in names:
            if name not in available:
                absent.append(f"{images / name}.jpg: not there")
                continue
            destination = output / label / f"{name}.jpg"
            if destination.is_file():
                done += 1
            else:
                todo.append((str(available[name]), str(destination)))
    if not todo and not done:
        raise UsageError(
            f"--images {images}: none of the {len(absent)} images of {ground_truth} is there; "
            "give the folder that holds the JPEGs themselves"
        )
    return todo, absent, done


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = get_parser()
    args = parser.parse_args(argv)
    parser.check_numbers(args, workers=(1, 1024))
    output = Path(args.output)
    settings = settings_from(args)
    todo, complaints, done = plan(Path(args.images), Path(args.ground_truth), output, args.task)
    prepare_output(output, settings, args.task)

    print(f"{len(todo)} images to convert, {done} done already", flush=True)
    progress = Progress("preprocess", len(todo))
    for complaint in complaints:
        progress.line(f"unreadable: {complaint}")
    try:
        for complaint in convert_all(todo, settings, args.workers):
            if complaint:
                complaints.append(complaint)
                progress.line(f"unreadable: {complaint}")
            progress.step()
    except BrokenProcessPool:
        raise UsageError(
            f"--workers {args.workers}: a worker process died, out of memory? "
            "Use fewer; the same command goes on where this one stopped"
        ) from None
    progress.close()

    write_text(output / UNREADABLE, "".join(f"{line}\n" for line in sorted(complaints)))
    for name in TASKS[args.task]:
        print(f"{name}: {len(images_below(output / name))} images")
    if complaints:
        print(f"{len(complaints)} unreadable or absent, listed in {output / UNREADABLE}")


if __name__ == "__main__":
    run(main, trains=False)
