"""Runs side by side, each a program in a process of its own; what was interrupted goes on."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch

from common.training import lock
from common.training.errors import writing
from tools.programs import PROGRAMS, ROOT, code_sha256, fill

MAX_WORKERS = 16  # that read the images of a run, as in the papers


@dataclass
class Job:
    """One run: its command lines, its folder, and its process while it is alive.

    Attributes:
        commands: words from the repository root, {root} and {out} still in; one after the other.
        folder: {out}; also holds the programs' output.
        result: the file that says that the run is over.
        epochs: of each command.
        store: ``store(job, report)`` writes ``result`` from the last command's report.json.
        code: ``code_sha256`` when its first process was started; the code may be edited later.
    """

    seed: int
    commands: list[list[str]]
    folder: Path
    result: Path
    epochs: int
    store: Callable[[Job, Path], None]
    code: str = ""
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


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cores(jobs: int) -> int:
    """Of one of so many processes side by side."""
    return max(1, usable_cores() // jobs)


def environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment of the ``slot``-th of ``jobs`` processes: its share of cores (unless the
    user's OMP_NUM_THREADS says otherwise), and its GPU."""
    env = dict(os.environ)
    env.setdefault("OMP_NUM_THREADS", str(share_of_cores(jobs)))
    if gpus and jobs > 1:
        env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return env


def start(job: Job, slot: int, jobs: int, root: Path | str, gpus: Sequence[str]) -> bool:
    """Start or go on with a job; False while another process trains it.

    Raises:
        RunError: its folder cannot be written.
    """
    words = job.commands[job.step]
    program, workers = PROGRAMS[words[1]], min(share_of_cores(jobs), MAX_WORKERS)
    words = [*words, *shlex.split(program.resume), *shlex.split(program.workers)]
    words = [sys.executable, "-u", *fill(words[1:], root=root, out=job.folder, workers=workers)]
    with writing(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
        job.lock = job.lock or _lock(job.folder)
        if job.lock is None:
            return False
        job.code = job.code or code_sha256()
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
                pass_fds=[job.lock.fileno()] if lock.fcntl else [],  # Windows passes none
            )
    job.slot = slot
    return True


def _lock(folder: Path) -> TextIO | None:
    """Lock the folder of a run; None while another process holds it.

    The child inherits the lock: a run whose runner was killed stays locked until it ends.
    """
    file = open(folder / "lock", "w")  # noqa: SIM115
    if not lock.lock_file(file, folder, inherited=True):
        file.close()
        return None
    return file


def advance(job: Job) -> bool:
    """Look after a started job; True when it is over, well or not."""
    code = job.process.poll()
    if code is None:
        return False
    job.process = None
    if code == 0 and job.step + 1 < len(job.commands):
        job.step += 1
        return False
    if code == 0:
        reports = list(job.folder.rglob("report.json"))
        job.store(job, max(reports, key=lambda path: path.stat().st_mtime_ns))  # the last one's
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
        """Print the line, not too often; ``running``: how many jobs are."""
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


def train(jobs: Sequence[Job], *, root: Path | str, parallel: int | None) -> None:
    """Train all jobs that have no result yet, ``parallel`` of them side by side."""
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
                if advance(job):
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
