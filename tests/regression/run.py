#!/usr/bin/env python
"""Train rows of the table of reported accuracies and compare.

    python tests/regression/run.py --paper ib_loss --dataset cifar10 --ratio 100 --seeds 0 1 2 \
        --data-root DIR --jobs 4

Published data lie in DIR/cifar10, DIR/cifar100, DIR/tinyimagenet, DIR/imagenet_lt and so on; with
--data npz DIR holds cifar10.npz and cifar100.npz, with
--data imagefolder DIR is the folder itself (DIR/train/<class>/*, DIR/test/<class>/*). Finished runs
are kept in tests/regression/results/, unfinished ones go on where they were when started again.
What is kept of other code than is here now is named: it says nothing about this code.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder

from common.training.errors import RunError, UsageError
from common.training.flags import Parser
from tests.regression.results import (
    RESULTS,
    Comparison,
    compare,
    from_report,
    key,
    other_code,
    read_result,
    text_table,
    write_result,
)
from tools.programs import ROOT, code_sha256, fill, settings
from tools.runner import Job, command_line, train
from tools.table import NPZ, PAPERS, STAND_INS, Row, commands, read_table, select

SCRATCH = ROOT / "runs" / "regression"
SEE = "run.py --list without conditions shows all rows"
DATA = ("cifar10", "cifar100", NPZ, *STAND_INS)


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--paper", nargs="+", default=[], choices=PAPERS, metavar="PAPER", help="of these papers")
    add("--dataset", nargs="+", default=[], metavar="NAME", help="rows of these data sets")
    add("--ratio", nargs="+", type=float, default=[], metavar="R", help="of these ratios, 100 …")
    add("--method", nargs="+", default=[], metavar="NAME", help="of these methods: CE, IB+CB …")
    add("-k", default="", metavar="WORDS", help="rows whose id contains every word")
    add("--seeds", nargs="+", type=int, default=[0], metavar="S", help="seeds (default: 0)")
    add("--data-root", default="data", metavar="DIR", help="folder of the data (default: data)")
    add(
        "--data",
        default="",
        choices=DATA,
        help="train on this; npz: CIFAR from DIR/cifar10.npz and DIR/cifar100.npz (arrays x_train, "
        "y_train, x_test, y_test); digits, imagefolder and imagefolder16 (its images shrunk to "
        "16x16) stand in for CIFAR-10 (another data set, and labelled so; default: each row's own)",
    )
    add(
        "--epochs",
        type=int,
        metavar="N",
        help="shortened runs, their schedules stretched to N epochs, and labelled so",
    )
    add("--channels_last", action="store_true", help="channels-last memory: the same, faster")
    add("--amp", default="none", choices=["none", "bf16", "fp16"], help="precision (default: none)")
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="runs side by side; GPUs are dealt out in turn, several runs may share one (default: "
        "one per GPU, or 1). With 1 a run gets all GPUs",
    )
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    add("--scratch", type=Path, default=SCRATCH, metavar="DIR", help="logs and checkpoints")
    add("--list", action="store_true", help="show the commands and stop")
    return parser


def check(args: argparse.Namespace) -> None:
    """UsageError for a number that cannot be, or a condition that no row of the table meets."""
    numbers = (("epochs", args.epochs, 1), ("jobs", args.jobs, 1), ("seeds", min(args.seeds), 0))
    for flag, value, least in numbers:
        if value is not None and value < least:
            raise UsageError(f"--{flag} {value}: must be at least {least}")
    table = read_table()
    for flag in ("dataset", "ratio", "method"):
        for value in getattr(args, flag):
            if not select(table, **{f"{flag}s": [value]}):
                shown = f"{value:g}" if flag == "ratio" else value
                raise UsageError(f"--{flag} {shown}: no row of reported.csv is of it; {SEE}")


def select_rows(args: argparse.Namespace) -> list[Row]:
    """The rows that the flags ask for and that can be trained on the chosen data."""
    datasets = args.dataset
    if args.data == NPZ:
        datasets = [name for name in ("cifar10", "cifar100") if not datasets or name in datasets]
        if not datasets:
            return []
    elif args.data:
        native = "cifar10" if args.data in STAND_INS else args.data
        if datasets and native not in datasets:
            return []
        datasets = [native]
    return select(
        read_table(),
        papers=args.paper,
        datasets=datasets,
        ratios=args.ratio,
        methods=args.method,
        words=args.k,
    )


def make_jobs(args: argparse.Namespace, rows: Sequence[Row]) -> list[Job]:
    """A job for each seed of each command; seed by seed, so that every row has a result early."""
    jobs = {}
    for seed in args.seeds:
        for row in rows:
            name = key(row, args.data, args.epochs, seed, args.amp)
            command = commands(row, args.data, args.epochs, args.channels_last, args.amp)
            jobs.setdefault(
                name,
                Job(
                    seed,
                    [fill(words, seed=seed) for words in command],
                    args.scratch.resolve() / name,
                    args.results / f"{name}.json",
                    args.epochs or row.epochs,
                    partial(store, row=row, data=args.data),
                ),
            )
    return list(jobs.values())


def store(job: Job, report: Path, row: Row, data: str) -> None:
    """Store the result of a job whose commands all ended well."""
    write_result(
        job.result,
        from_report(
            report,
            row,
            data=data,
            epochs=job.epochs,
            seed=job.seed,
            command=command_line(job),
            settings=[settings(words) for words in job.commands],
            code=job.code,
        ),
    )


def missing_data(rows: Sequence[Row], data: str, root: Path) -> str | None:
    """What is not there, in a sentence; None if all is."""
    if data == "digits":
        return None
    if data == NPZ:
        needed = {root / f"{row.dataset}.npz" for row in rows}
    else:
        needed = {root} if data in STAND_INS else {root / row.dataset for row in rows}
    lacking = sorted(str(path) for path in needed if not path.exists())
    return f"no data in {', '.join(lacking)}" if lacking else None


def run(args: argparse.Namespace, rows: Sequence[Row]) -> tuple[list[Comparison], list[Job]]:
    """Train the rows as the flags say; returns the comparison with the reported numbers."""
    jobs = make_jobs(args, rows)
    kept = [job.result for job in jobs if job.result.is_file()]
    for path in kept:
        read_result(path)  # a broken one is told before anything is trained
    if kept:
        print(
            f"note: {len(kept)} of {len(jobs)} runs are kept as they are; their images are not "
            "read again"
        )
    train(jobs, root=Path(args.data_root).resolve(), parallel=args.jobs)
    results = [read_result(job.result) for job in jobs if job.result.is_file()]
    return compare(rows, results, read_table()), jobs


def of_other_code(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """Row id and a sentence for each result that is kept and was trained with other code."""
    results = [(job.result, read_result(job.result)) for job in jobs if job.result.is_file()]
    code = code_sha256()
    return [
        (result["id"], f"{path}: {words}; remove the file to train again")
        for path, result in results
        if (words := other_code(result, code))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    try:
        return train_and_compare(argv)
    except (UsageError, RunError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def train_and_compare(argv: Sequence[str] | None) -> int:
    """What ``main`` does; UsageError where the flags ask for the impossible."""
    parser = get_parser()
    args = parser.parse_args(argv)
    check(args)
    rows = select_rows(args)
    if not rows:
        parser.error(f"no row of reported.csv matches all conditions; {SEE}")
    if args.list:
        for job in make_jobs(args, rows):
            print(f"{job.result.stem}\n    {command_line(job)}")
        return 0
    if lacking := missing_data(rows, args.data, Path(args.data_root)):
        parser.error(f"{lacking}; give --data-root DIR, or --data digits to try without")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        comparisons, jobs = run(args, rows)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", flush=True)
        return 130
    print(text_table(comparisons))
    for _, note in of_other_code(jobs):
        print(f"note: {note}")
    failed = [job.folder.name for job in jobs if job.failed]
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}; see output.txt in {args.scratch}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
