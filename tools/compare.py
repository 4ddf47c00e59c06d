#!/usr/bin/env python
"""Train methods of the four papers on the same images, each by its paper's recipe, and compare.

    python tools/compare.py --root DIR --methods CE IB DBM-BS HML+CS ARB --epochs 30 --seeds 0 1 2
    python tools/compare.py --runs RUN RUN …

DIR/train/<class>/* and DIR/val/<class>/* or DIR/test/<class>/* or both, or FILE.npz. Every method
is trained by its paper's own program. Interrupted, the same command goes on. It ends with a table,
and with compare.txt, compare.png (accuracy per class) and compare.csv in --out. --runs makes the
same of the folders of finished runs, of any program.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

import numpy as np
import torch

from common.models import pretrained
from common.models.archs import IMAGENET_RESNETS, constructor
from common.training import launch
from common.training.errors import RunError, UsageError, writing
from common.training.flags import Parser, fraction
from common.training.logs import write_csv, write_json, write_text
from common.training.pictures import picture
from common.training.report import names_fingerprint
from datasets.folder import HELD_OUT, read_folder
from datasets.long_tail import choose_images
from datasets.sources import held_out, open_source, place
from datasets.validation import refuse_second, require_part, stratified_part
from tools import comparison
from tools.comparison import Run, find_reports, read_runs
from tools.programs import PROGRAMS, fill, settings
from tools.runner import Job, command_line, train, usable_cores, visible_gpus
from tools.table import PAPERS, Row, read_table

ALIASES = {"arb": "arb-loss"}
SMALL = ("cifar10", "cifar100")  # whose recipes are for small images, the first before the others
LARGE = ("imagenet_lt", "inaturalist2018")
# HML as in the commands of hmloss/README: for small images with class weights, else without.
METHODS = ("CE", "IB", "DBM-BS", "HML+CS", "ARB")
LARGE_METHODS = ("CE", "DBM-BCL", "HML", "ARB")
DONE = "done.json"  # in the folder of a run that is over: where its report is
MAX_JOBS = 8  # side by side on a CPU, unless --jobs says more: each holds the images in memory


def get_parser() -> argparse.ArgumentParser:
    """The parser of the program."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what is trained").add_argument
    add("--root", metavar="DIR", help="folder of the images, or FILE.npz")
    add(
        "--digits",
        action="store_true",
        help="the handwritten digits of scikit-learn instead of --root",
    )
    add(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="as in the papers' tables, blanks left out or not (--methods '?' lists them); "
        "PAPER/NAME, as dbm_loss/CE, where several papers have it, else the first one's (default: "
        f"{' '.join(METHODS)}; with --large {' '.join(LARGE_METHODS)})",
    )
    add("--epochs", type=int, metavar="N", help="schedules are stretched (default: the papers')")
    add("--seeds", nargs="+", type=int, default=[0], metavar="S", help="seeds (default: 0)")
    add(
        "--imb_factor",
        type=float,
        metavar="F",
        help="cut a long tail out of the training images, smallest class / largest class "
        "(default: the images as they are)",
    )
    add(
        "--val_fraction",
        type=fraction,
        default=0.0,
        metavar="F",
        help="this part of the training images of each class chooses the best epoch",
    )
    add(
        "--image_size",
        type=int,
        default=32,
        metavar="PX",
        help="side to which small images are brought (default: 32)",
    )
    add("--large", action="store_true", help="large images: the recipes for ImageNet-LT, 224x224")
    add(
        "--arch",
        choices=IMAGENET_RESNETS,
        help="with --large, the network of all methods (default: each paper's, ResNet-50 and up)",
    )
    add("--pretrained", action="store_true",
        help="with --large, all methods start from torchvision's ImageNet weights")  # fmt: skip
    add("--weights", metavar="FILE", help="from those in this file instead")
    add("--batch_size", type=int, metavar="N", help="for all methods (default: each paper's)")
    add = parser.add_argument_group("how").add_argument
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="runs side by side (default: one per GPU; without, one per core, "
        f"{MAX_JOBS} at most, and with --large one)",
    )
    add("--amp", default="none", choices=["none", "bf16", "fp16"], help="precision (default: none)")
    add("--out", type=Path, default=Path("runs/compare"), metavar="DIR",
        help="folder of all that is written (default: runs/compare)")  # fmt: skip
    add("--list", action="store_true", help="show the commands and stop")
    add = parser.add_argument_group("what is shown").add_argument
    add("--runs", nargs="+", default=[], metavar="RUN", help="train nothing, compare these folders")
    add(
        "--epoch",
        choices=["best", "last"],
        default="",
        help="the epoch that is shown (default: the best one if validation images chose it in all "
        "runs, else the last)",
    )
    return parser


def takes(row: Row, large: bool) -> bool:
    """Whether the programs of a row's command can be told to train on a folder of such images."""
    programs = [PROGRAMS[shlex.split(command)[1]] for command in row.command.split(" && ")]
    return all(program.large if large else program.data for program in programs)


def all_methods(large: bool) -> dict[tuple[str, str], Row]:
    """(paper, method in lower case without blanks) -> the row whose command is the method's recipe.

    It is the one of the first data set that the method has, at ratio 100 if there is one.
    """
    sets = LARGE if large else SMALL

    def rank(row: Row) -> tuple:
        return sets.index(row.dataset), row.imb_type != "exp", row.imb_ratio != "100"

    found: dict[tuple[str, str], Row] = {}
    for row in read_table():
        key = row.paper, row.method.lower().replace(" ", "")
        if row.dataset in sets and takes(row, large):
            found[key] = min(found.get(key, row), row, key=rank)
    return found


def list_methods(large: bool) -> str:
    """The methods of each paper, a line a paper."""
    known = all_methods(large).values()
    of_paper = {paper: [row.method for row in known if row.paper == paper] for paper in PAPERS}
    return "\n".join(f"  {p}: {'; '.join(names)}" for p, names in of_paper.items() if names)


def find_methods(names: Sequence[str] | None, large: bool) -> list[Row]:
    """The recipes of the methods, each once; None: one of each paper, and cross entropy.

    Raises:
        UsageError: there is no such method; lists those that there are.
    """
    known = all_methods(large)
    found = []
    for name in names or (LARGE_METHODS if large else METHODS):
        paper, _, method = name.lower().rpartition("/")
        method = ALIASES.get(method, method).replace(" ", "")
        fitting = [row for (p, m), row in known.items() if m == method and paper in ("", p)]
        if not fitting:
            kind = "large" if large else "small"
            raise UsageError(
                f"--methods {name}: no method for {kind} images; there are\n{list_methods(large)}"
            )
        found.append(fitting[0])
    return list(dict.fromkeys(found))


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or cannot mean anything.

    Raises:
        UsageError: names the flag.
    """
    if args.runs and (args.root or args.digits):
        raise UsageError("--runs: shows runs that exist; leave --root and --digits out")
    if not args.runs and args.digits == bool(args.root):
        raise UsageError("give --root DIR or FILE.npz with your images, or --digits to try without")
    if args.large and (args.digits or args.imb_factor or args.image_size != 32):
        raise UsageError(
            "--large: takes the images of a folder as they are, at 224x224 pixels; leave out "
            "--digits, --imb_factor and --image_size"
        )
    for flag in ("arch", "pretrained", "weights"):
        if getattr(args, flag) and not args.large:
            raise UsageError(f"--{flag}: says with what network --large starts; add --large")
    if args.imb_factor is not None and not 0 < args.imb_factor <= 1:
        raise UsageError(f"--imb_factor {args.imb_factor}: smallest / largest class, 0 < f <= 1")


@dataclass(frozen=True)
class Images:
    """What is trained on.

    Attributes:
        dataset: as the programs for small images call it. root: absolute; unused by the digits.
        num_classes: of it. lists: folder of the list files, for programs that take large images
            from such. splits: what there is beside the training images: the first is evaluated,
            the second, if it is there, chooses the best epoch.
    """

    dataset: str
    root: str
    num_classes: int
    lists: str = ""
    splits: Sequence[str] = ("test",)

    def name(self, imb_factor: float | None) -> str:
        """In words, with the long tail that is cut out of it."""
        name = {"digits": "digits", "npz": Path(self.root).stem}.get(self.dataset)
        name = name or Path(self.root).name
        return name if imb_factor is None else f"{name}, long tail {1 / imb_factor:g}"


def find_images(args: argparse.Namespace) -> Images:
    """Look what is there; no pixel is decoded.

    Raises:
        UsageError: no images, or in another layout.
    """
    if args.digits:
        return Images("digits", str(args.out.resolve()), 10)
    root = Path(args.root).resolve()
    if root.suffix == ".npz" and args.large:
        raise UsageError(f"--root {args.root}: --large takes a folder of images")
    dataset = "npz" if root.suffix == ".npz" else "imagefolder"
    classes = open_source(dataset, root, "train").classes
    lists = str(args.out.resolve() / "lists") if dataset == "imagefolder" else ""
    return Images(dataset, str(root), len(classes), lists, held_out(dataset, root))


def check_images(images: Images, args: argparse.Namespace) -> int:
    """Refuse what the programs would refuse of these images, before any is started.

    Returns: how many are trained on.

    Raises:
        UsageError: the long tail cannot be cut out of them, or images for validation are there
            already or cannot be held out.
    """
    if len(images.splits) == 2:
        refuse_second(args.val_fraction, place(images.dataset, images.root, images.splits[1]))
    train = open_source(images.dataset, images.root, "train")
    targets = train.targets
    if args.imb_factor is not None:
        targets = targets[choose_images(train, "exp", args.imb_factor, 0, "no --imb_factor")]
    if not args.val_fraction:
        return len(targets)
    part = stratified_part(targets, args.val_fraction)
    require_part(part, args.val_fraction)
    return len(targets) - len(part)


def write_lists(images: Images) -> None:
    """List files of the image folder, under the names of ImageNet-LT."""
    root = Path(images.root)
    for split in set(HELD_OUT) - set(images.splits):  # of an earlier start, when others were there
        (Path(images.lists) / f"ImageNet_LT_{split}.txt").unlink(missing_ok=True)
    for split in ("train", *images.splits):
        part = read_folder(root, split)
        lines = [
            f"{Path(file).relative_to(root).as_posix()}\t{label}\t{part.classes[label]}\n"
            for file, label in zip(part.files, part.targets.tolist(), strict=True)
        ]
        Path(images.lists).mkdir(parents=True, exist_ok=True)
        write_text(Path(images.lists) / f"ImageNet_LT_{split}.txt", "".join(lines))


def commands(row: Row, images: Images, args: argparse.Namespace) -> list[list[str]]:
    """The command lines of a recipe on these images, {seed} and {out} still in."""
    third = images.num_classes // 3
    values = {
        "dataset": images.dataset,
        "root": images.root,
        "lists": images.lists,
        "classes": images.num_classes,
        "third": third,
        "two_thirds": images.num_classes - third,
        "imb_factor": args.imb_factor,
        "imb_ratio": args.imb_factor and f"{1 / args.imb_factor:g}",
        "size": args.image_size,
        "arch": args.arch,
        "features": args.arch and feature_dim(args.arch),
        "weights": args.weights and str(Path(args.weights).resolve()),
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "val_fraction": args.val_fraction,
        "amp": args.amp,
    }
    found = []
    for command in row.command.split(" && "):
        words = shlex.split(command)
        program = PROGRAMS[words[1]]
        choices = [  # words for the program, and whether it is told so
            (program.data, not args.large),
            (program.large, args.large),
            (program.whole, not args.large and args.imb_factor is None),
            (program.tail, not args.large and args.imb_factor is not None),
            (program.classes, True),
            (program.teacher, args.large and "--path_t" in words),
            (program.size, args.image_size != 32),
            (program.arch, args.arch is not None),
            (program.weights, args.weights is not None),
            (program.pretrained, args.weights is None and args.pretrained),
            (program.epochs, args.epochs is not None),
            (program.batch, args.batch_size is not None),
            (program.val, args.val_fraction > 0),
            (program.val_list, args.large and not args.val_fraction and len(images.splits) == 2),
            (program.amp, args.amp != "none"),
        ]
        words += [word for text, told in choices if told for word in shlex.split(text)]
        found.append(fill(words, **values))
    return found


def feature_dim(arch: str) -> int:
    """Width of a network before its classifier."""
    with torch.device("meta"):  # without memory
        return constructor(arch)(num_classes=None).feature_dim


def make_jobs(
    rows: Sequence[Row], images: Images, args: argparse.Namespace
) -> list[tuple[Row, Job]]:
    """A job for each seed of each method; seed by seed, so that every method has one early."""
    jobs = []
    for seed in dict.fromkeys(args.seeds):
        for row in rows:
            epochs = args.epochs or row.epochs
            name = re.sub(r"\W+", "_", f"{row.paper}_{row.method.lower()}").strip("_")
            folder = args.out.resolve() / f"{name}_e{epochs}_s{seed}"
            lines = [fill(words, seed=seed) for words in commands(row, images, args)]
            jobs.append((row, Job(seed, lines, folder, folder / DONE, epochs, store)))
    return jobs


def check_commands(of_row: Sequence[tuple[Row, Job]]) -> None:
    """Let the programs read their command lines, before any is started.

    Raises:
        UsageError: a program refuses its own; names the method.
    """
    for row, job in of_row:
        for words in job.commands:
            try:
                settings(words)
            except UsageError as error:
                raise UsageError(f"{row.paper}/{row.method}: {error}") from None


def check_batches(of_row: Sequence[tuple[Row, Job]], number: int) -> None:
    """Refuse batches of more images than are trained on, where the last one has to be full.

    Raises:
        UsageError: names the method.
    """
    for row, job in of_row:
        for words in job.commands:
            told = settings(words)
            full_only = "/GML/" in words[1] or told.get("loss_fn") == "ncl"
            if full_only and told["batch_size"] > number:
                raise UsageError(
                    f"{row.paper}/{row.method}: --batch_size {told['batch_size']}: there are "
                    f"{number} training images, and it takes full batches only; give a smaller one"
                )


def check_weights(of_row: Sequence[tuple[Row, Job]]) -> None:
    """Read the weights that the runs start from, once and before any is started.

    Raises:
        UsageError: they cannot be had, or are of another network; names the method.
    """
    seen = set()
    for row, job in of_row:
        for words in job.commands:
            told = settings(words)
            arch = str(told.get("arch") or told["backbone"]).removesuffix("_fe")
            if arch in seen:
                continue
            seen.add(arch)
            network = constructor(arch)(num_classes=None)
            try:
                pretrained.load(network, arch, told["weights"] or None)
            except UsageError as error:
                raise UsageError(f"{row.paper}/{row.method}: {error}") from None


def store(job: Job, report: Path) -> None:
    """Note that a job is over, and where its report is."""
    write_json(job.result, {"report": str(report.relative_to(job.folder))})


def fingerprint_of(images: Images) -> str:
    """SHA-256 of an npz file, or of names and sizes of a folder's images; of digits always one."""
    root, files = Path(images.root), []
    if images.dataset == "npz":
        return hashlib.sha256(np.memmap(root, mode="r")).hexdigest()
    if images.dataset == "imagefolder":
        files = [file for s in ("train", *images.splits) for file in read_folder(root, s).files]
    sizes = (os.path.exists(file) and os.path.getsize(file) for file in files)  # a link to nothing
    return names_fingerprint((f"{f} {n}" for f, n in zip(files, sizes, strict=True)), root)


def _has_run(job: Job) -> bool:
    """Whether there is anything to lose in a job's folder: a program may have refused its flags."""
    return job.done() > 0 or any(job.folder.rglob("*.pth*"))


def claim(jobs: Sequence[Job], images: Images) -> None:
    """Write down what each folder is of; say which finished runs are of images that changed since.

    Raises:
        UsageError: a folder holds a run of another command.
        RunError: it cannot be written.
    """
    for job in jobs:
        path, command = job.folder / "command.txt", command_line(job) + "\n"
        if path.is_file() and path.read_text() != command and _has_run(job):
            raise UsageError(
                f"{job.folder}: holds a run of other flags or images, see {path.name} there; "
                "delete it, or give another --out"
            )
    now, changed = fingerprint_of(images) + "\n", []
    for job in jobs:
        with writing(job.folder):
            job.folder.mkdir(parents=True, exist_ok=True)
        write_text(job.folder / "command.txt", command_line(job) + "\n")
        path = job.folder / "images.sha256"
        if not job.result.is_file():
            write_text(path, now)
        elif path.is_file() and path.read_text() != now:
            changed.append(job.folder)
    if changed:
        print(
            f"note: {images.root} changed since these runs were trained: "
            f"{', '.join(folder.name for folder in changed)}; to train them again, delete their "
            f"folders in {changed[0].parent}, or give another --out",
            flush=True,
        )


def train_all(jobs: Sequence[Job], images: Images, args: argparse.Namespace) -> None:
    """Train what is not finished yet; what fails is said and marked."""
    claim(jobs, images)
    if args.large:
        write_lists(images)
    parallel = args.jobs or len(visible_gpus())
    parallel = parallel or (1 if args.large else min(usable_cores(), MAX_JOBS, len(jobs)))
    print(f"{len(jobs)} runs in {args.out}, {parallel} side by side", flush=True)
    train(jobs, root=images.root, parallel=parallel)


def show(runs: Sequence[Run], data: str, out: Path) -> None:
    """Write the table, the picture and the CSV file, then print the table.

    ``data``: what it is, in words.
    """
    groups = comparison.group(comparison.in_one_order(runs))
    table = comparison.text_table(groups)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / "compare.txt", table + "\n")
    write_csv(out / "compare.csv", comparison.csv_rows(groups))
    title = f"{data}, {comparison.epochs(groups)}"
    picture(out / "compare.png", comparison.draw, groups, title)
    # After the files: a reader may go away.
    print(f"\n{table}\n\n{out / 'compare.png'}\n{out / 'compare.csv'}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program.

    Raises:
        UsageError: flags or data that cannot be. RunError: a training failed.
    """
    parser = get_parser()
    args = parser.parse_args(argv)
    parser.check_numbers(args, jobs=(1, 1024))
    if args.methods == ["?"]:
        print(list_methods(args.large))
        return
    check(args)
    if args.runs:
        runs = read_runs([(path, "", "") for path in find_reports(args.runs)], args.epoch)
        show(runs, " and ".join(dict.fromkeys(run.data for run in runs)), args.out)
        return
    rows, images = find_methods(args.methods, args.large), find_images(args)
    number = check_images(images, args)
    of_row = make_jobs(rows, images, args)
    check_commands(of_row)
    check_batches(of_row, number)
    jobs = [job for _, job in of_row]
    if args.list:
        print("\n".join(f"{job.folder.name}\n    {command_line(job)}" for job in jobs))
        return
    if args.pretrained or args.weights:
        check_weights([(row, job) for row, job in of_row if not job.result.is_file()])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        train_all(jobs, images, args)
    except KeyboardInterrupt:
        raise RunError("interrupted; the same command goes on from here") from None
    reports = [
        (job.folder / json.loads(job.result.read_text())["report"], row.method, row.paper)
        for row, job in of_row
        if job.result.is_file()
    ]
    if reports:
        runs = read_runs(reports, args.epoch)
        show(runs, images.name(args.imb_factor), args.out)
    if failed := [job.folder.name for job in jobs if job.failed]:
        raise RunError(
            f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}; what they said is in "
            f"output.txt in their folders in {args.out}"
        )


if __name__ == "__main__":
    launch.run(main, trains=False)
