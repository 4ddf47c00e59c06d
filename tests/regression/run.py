#!/usr/bin/env python
"""Train rows of the table of reported accuracies and compare.

    python tests/regression/run.py --paper ib_loss --dataset cifar10 --ratio 100 --seeds 0 1 2 \
        --data-root DIR --jobs 4

Published data lie in DIR/cifar10, DIR/cifar100, DIR/tinyimagenet, DIR/imagenet_lt and so on; with
--data npz DIR holds cifar10.npz and cifar100.npz, with
--data imagefolder DIR is the folder itself (DIR/train/<class>/*, DIR/test/<class>/*). Finished runs
are kept in tests/regression/results/, unfinished ones go on where they were when started again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder

import torch

from common.training.errors import UsageError
from common.training.flags import Parser
from tests.regression.results import (
    RESULTS,
    Comparison,
    compare,
    from_report,
    key,
    text_table,
    write_result,
)
from tests.regression.table import (
    NPZ,
    PAPERS,
    PROGRAMS,
    ROOT,
    STAND_INS,
    Row,
    commands,
    fill,
    read_table,
    select,
    settings,
)

SCRATCH = ROOT / "runs" / "regression"
DATA = ("cifar10", "cifar100", NPZ, *STAND_INS)


@dataclass
class Job:
    """One run: a row's command with a seed, its folder, and its process while it is alive."""

    row: Row
    seed: int
    commands: list[list[str]]
    folder: Path
    result: Path
    epochs: int
    step: int = 0
    process: subprocess.Popen | None = None
    lock: TextIO | None = None
    failed: bool = False
    slot: int = field(default=-1)

    @property
    def total(self) -> int:
        """Epochs of all its commands."""
        return self.epochs * len(self.commands)

    def done(self) -> int:
        """Epochs finished, read from the run's own metrics."""
        if self.result.is_file():
            return self.total
        return sum(
            max(path.read_bytes().count(b"\n") - 1, 0) for path in self.folder.rglob("metrics.csv")
        )


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
                    row,
                    seed,
                    [fill(words, seed=seed) for words in command],
                    args.scratch.resolve() / name,
                    args.results / f"{name}.json",
                    args.epochs or row.epochs,
                ),
            )
    return list(jobs.values())


def command_line(job: Job) -> str:
    """The job's commands as one line, {root} and {out} still in."""
    return " && ".join(
        " ".join(word if word[:1] == "{" else shlex.quote(word) for word in words)
        for words in job.commands
    )


def visible_gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(i) for i in range(count)]


def environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment of the ``slot``-th of ``jobs`` processes: its share of cores (unless the
    user's OMP_NUM_THREADS says otherwise), and its GPU."""
    env = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    if gpus and jobs > 1:
        env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return env


def start(job: Job, slot: int, jobs: int, root: Path, gpus: Sequence[str]) -> bool:
    """Start or go on with a job; False while another process trains it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    if job.lock is None:
        # The child inherits the lock: a run whose runner was killed stays locked until it ends.
        lock = open(job.folder / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        job.lock = lock
    words = job.commands[job.step]
    program = PROGRAMS[words[1]]
    words = [*words, *shlex.split(program.resume)]
    words = [sys.executable, "-u", *fill(words[1:], root=root, out=job.folder)]
    with open(job.folder / "output.txt", "a") as output:
        output.write(f"$ {shlex.join(words)}\n")
        output.flush()
        job.process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment(slot, jobs, gpus),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[job.lock.fileno()],
        )
    job.slot = slot
    return True


def collect(job: Job, data: str) -> None:
    """Store the result of a job whose commands all ended well."""
    reports = list(job.folder.rglob("report.json"))
    report = max(reports, key=lambda path: path.stat().st_mtime_ns)  # the last command's
    write_result(
        job.result,
        from_report(
            report,
            job.row,
            data=data,
            epochs=job.epochs,
            seed=job.seed,
            command=command_line(job),
            settings=[settings(words) for words in job.commands],
        ),
    )


def advance(job: Job, data: str) -> bool:
    """Look after a started job; True when it is over, well or not."""
    code = job.process.poll()
    if code is None:
        return False
    job.process = None
    if code == 0 and job.step + 1 < len(job.commands):
        job.step += 1
        return False
    if code == 0:
        collect(job, data)
    else:
        job.failed = True
        tail = (job.folder / "output.txt").read_text(errors="replace").splitlines()[-5:]
        print(f"\n{job.folder.name}: exit code {code}\n  " + "\n  ".join(tail), flush=True)
    job.lock.close()
    job.lock = None
    return True


class Progress:
    """A line with the share of epochs done and the time left: in place on a terminal."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.total = sum(job.total for job in jobs)
        self.begin, self.start = time.monotonic(), sum(job.done() for job in jobs)
        self.terminal = sys.stdout.isatty()
        self.next = 0.0

    def show(self, running: int) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (2 if self.terminal else 30)
        epochs = sum(job.done() for job in self.jobs)
        finished = sum(job.result.is_file() for job in self.jobs)
        left = "?"
        if epochs > self.start:
            seconds = (now - self.begin) * (self.total - epochs) / (epochs - self.start)
            left = f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"
        line = (
            f"{finished}/{len(self.jobs)} runs done, {running} running, "
            f"epoch {epochs}/{self.total}, {left} left"
        )
        print(f"\r{line:<78}" if self.terminal else line, end="" if self.terminal else "\n")
        sys.stdout.flush()


def train(jobs: Sequence[Job], *, data: str, root: Path, parallel: int | None) -> None:
    """Train all jobs that have no result yet, some side by side."""
    gpus = visible_gpus()
    parallel = parallel or max(1, len(gpus))
    waiting = [job for job in jobs if not job.result.is_file()]
    running: list[Job] = []
    progress = Progress(jobs)
    try:
        while waiting or running:
            free = sorted(set(range(parallel)) - {job.slot for job in running})
            for job in list(waiting):
                if job.result.is_file():  # by another runner, meanwhile
                    waiting.remove(job)
                elif free and start(job, free[0], parallel, root, gpus):
                    free.pop(0)
                    waiting.remove(job)
                    running.append(job)
            for job in list(running):
                if advance(job, data):
                    running.remove(job)
                elif job.process is None:  # its next command
                    start(job, job.slot, parallel, root, gpus)
            progress.show(len(running))
            time.sleep(0.2)
        progress.next = 0.0  # the last state, whenever the line before was
        progress.show(0)
    finally:
        for job in running:
            if job.process is not None:
                job.process.terminate()
        for job in running:
            if job.process is not None:
                job.process.wait()
    if progress.terminal:
        print()


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
    train(jobs, data=args.data, root=Path(args.data_root).resolve(), parallel=args.jobs)
    results = [json.loads(job.result.read_text()) for job in jobs if job.result.is_file()]
    return compare(rows, results, read_table()), jobs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    try:
        return train_and_compare(argv)
    except UsageError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2


def train_and_compare(argv: Sequence[str] | None) -> int:
    """What ``main`` does; UsageError where the flags ask for the impossible."""
    parser = get_parser()
    args = parser.parse_args(argv)
    rows = select_rows(args)
    if not rows:
        parser.error("no row of reported.csv matches; --list without conditions shows all")
    if args.list:
        for job in make_jobs(args, rows):
            print(f"{job.result.stem}\n    {command_line(job)}")
        return 0
    if lacking := missing_data(rows, args.data, Path(args.data_root)):
        parser.error(f"{lacking}; give --data-root DIR, or --data digits to try without")
    for flag, value in (("--epochs", args.epochs), ("--jobs", args.jobs)):
        if value is not None and value < 1:
            parser.error(f"{flag} {value}: must be at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        comparisons, jobs = run(args, rows)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", flush=True)
        return 130
    print(text_table(comparisons))
    failed = [job.folder.name for job in jobs if job.failed]
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}; see output.txt in {args.scratch}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
