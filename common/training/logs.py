"""What a run says: folders, text logs that survive a kill, meters, a progress bar."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from progress.bar import Bar
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from common.training.checkpoint import atomic_file
from common.training.errors import UsageError, writing
from common.training.launch import all_reduce_sum


def prepare_folders(*folders: str | Path) -> None:
    """Create folders with their parents, saying so, and make sure that they can be written."""
    for folder in map(Path, folders):
        if not folder.is_dir():
            print(f"creating folder {folder}", flush=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}.part"  # of a killed run: removed by the next one
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot write there ({error.strerror}); choose another folder"
            ) from None


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # names of files may be no UTF-8


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as a csv file atomically; what a row lacks, and NaN, is empty.

    The columns are the keys of all rows, in the order in which they come up.
    """
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: "" if value != value else value for key, value in row.items()})
    write_text(path, text.getvalue())


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON file atomically; NaN becomes null, as JSON has no NaN."""
    value = json.loads(json.dumps(plain(value)), parse_constant=lambda _: None)
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def plain(value: object) -> object:
    """A value as JSON and checkpoints can hold it: arrays as lists, what else there is as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return plain(value.tolist())
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


class TextLog:
    """A text file that grows line by line and can be cut back to where a checkpoint was taken.

    Args:
        path: the file; None writes nothing (all processes but the first).
        offset: go on after this many bytes, dropping what a killed run wrote later; None: empty.
    """

    def __init__(self, path: str | Path | None, offset: int | None = None) -> None:
        self._file = None
        if path is None:
            return
        resumed = offset is not None and Path(path).is_file()
        self._path = path
        with writing(path):
            self._file = open(path, "r+b" if resumed else "wb")  # noqa: SIM115 (closed by close)
            if resumed:
                length = self._file.seek(0, os.SEEK_END)  # less after a power failure
                self._file.truncate(min(offset, length))
                self._file.seek(0, os.SEEK_END)

    @property
    def offset(self) -> int:
        """Bytes written so far; goes into the checkpoint."""
        return self._file.tell() if self._file else 0

    def write(self, text: str) -> None:
        """Append text as it is and flush it."""
        if self._file:
            with writing(self._path):
                self._file.write(text.encode(errors="surrogateescape"))
                self._file.flush()

    def close(self) -> None:
        """Close the file; what was written is there."""
        if self._file:
            with writing(self._path):
                self._file.close()


class Events:
    """Scalars for tensorboard, in an event file; NaN and infinite ones are left out.

    Written at once and by this thread: tensorboardX's own writer has another one, and a full disk
    ends that one with a traceback, after which the program blocks.

    Args:
        folder: where the file goes.
        start_epoch: on resume, events of other files from this step on no longer count.
    """

    def __init__(self, folder: str | Path, start_epoch: int = 0) -> None:
        self._folder = folder
        with writing(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = EventsWriter(str(Path(folder, "events")))
        if start_epoch:
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=start_epoch, session_log=restart))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a value of step (epoch) ``step``."""
        if np.isfinite(value):
            self._write(event_pb2.Event(step=step, summary=scalar(tag, value)))

    def flush(self) -> None:
        """Bring what was written to the disk."""
        with writing(self._folder):
            self._file.flush()

    def close(self) -> None:
        """Bring what was written to the disk and close the file."""
        with writing(self._folder):
            self._file.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        with writing(self._folder):
            self._file.write_event(event)


class AverageMeter:
    """Last value and running mean of a quantity; tensors stay on their device until read."""

    def __init__(self) -> None:
        self._last: float | torch.Tensor = 0.0
        self._sum: float | torch.Tensor = 0.0
        self._count = 0

    def update(self, value: float | torch.Tensor, n: int = 1) -> None:
        """Count a value that stands for ``n`` samples."""
        if isinstance(value, torch.Tensor):
            value = value.detach().double()
        self._last = value
        self._sum = self._sum + value * n
        self._count += n

    def reduce(self, device: torch.device | str = "cpu") -> None:
        """Make the mean that of all processes (once, after the last update)."""
        both = torch.tensor([float(self._sum), self._count], dtype=torch.float64, device=device)
        all_reduce_sum(both)
        self._sum, self._count = float(both[0]), int(both[1])

    @property
    def val(self) -> float:
        """The last value."""
        return float(self._last)

    @property
    def avg(self) -> float:
        """The mean over all samples; 0 without any."""
        return float(self._sum) / max(self._count, 1)


class Progress:
    """A bar with rate and ETA on a terminal; nothing elsewhere (log files get plain lines).

    ``line`` prints a log line without tearing the bar.
    """

    def __init__(self, title: str, total: int, enabled: bool = True) -> None:
        self._start = time.monotonic()
        self._bar = None
        if enabled and sys.stderr.isatty() and total:
            suffix = "%(index)d/%(max)d  %(rate).1f/s  ETA %(eta_td)s"
            self._bar = _RateBar(title, max=total, suffix=suffix, file=sys.stderr)

    def step(self, n: int = 1) -> None:
        """Move the bar on by ``n`` of ``total``."""
        if self._bar:
            self._bar.next(n)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._clear()
        print(text, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        self._clear()
        if self._bar:
            self._bar.finish()

    def _clear(self) -> None:
        if self._bar:
            self._bar.file.write("\r\x1b[K")
            self._bar.file.flush()


class _RateBar(Bar):
    @property
    def rate(self) -> float:
        return 1 / self.avg if self.avg else 0.0
