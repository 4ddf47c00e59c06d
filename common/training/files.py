"""The folders of a run: the names in them, whose they are, and what an earlier run left there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from common.training.checkpoint import remove_parts
from common.training.errors import UsageError, writing
from common.training.lock import lock_folders
from common.training.logs import prepare_folders

REPORTS = (
    "metrics.csv", "report.json", "curves.png", "per_class.png", "confusion.png", "per_class.csv",
    "confusion.csv", "predictions.csv",
)  # fmt: skip


@dataclass
class Files:
    """Where a run writes, and the names that its original gave to the files.

    Attributes:
        log_dir: logs, metrics.csv, report.json, pictures, tensorboard events.
        model_dir: checkpoints.
        latest, best: checkpoints, given by their names in ``model_dir``.
        numbered: name of those that are kept, ``{}`` for the epoch.
        copy: where else the program itself writes weights.
        text_logs: names of the text logs, written by ``record.log[name].write``.
        events: tensorboard's, given by the name of their folder in ``log_dir``.
        others: patterns of what else the program leaves in ``log_dir``.
    """

    log_dir: str | Path
    model_dir: str | Path
    latest: str | Path = "ckpt.pth.tar"
    best: str | Path = "ckpt.best.pth.tar"
    numbered: str = ""
    copy: Path | None = None
    text_logs: Sequence[str] = ()
    events: str | Path = ""
    others: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.log_dir, self.model_dir = Path(self.log_dir), Path(self.model_dir)
        self.latest, self.best = self.model_dir / self.latest, self.model_dir / self.best
        self.events = self.log_dir / self.events

    def lock(self) -> list[TextIO]:
        """Create the folders and lock them until the returned files are closed.

        Raises:
            UsageError: they cannot be written, a folder is where a file goes, or another process
                writes there.
        """
        prepare_folders(self.log_dir, self.model_dir)
        names = [*self.text_logs, *REPORTS]
        for file in (self.latest, self.best, *(self.log_dir / name for name in names)):
            if file.is_dir():
                raise UsageError(f"{file}: a folder is where this file goes; move it away")
        locks = lock_folders([self.log_dir, self.model_dir])
        remove_parts(self.log_dir, self.model_dir)
        return locks

    def has(self, path: Path) -> bool:
        """Whether a checkpoint lies in this run's folder."""
        return path.resolve().parent == self.model_dir.resolve()

    def log_sizes(self) -> dict[str, int]:
        """Bytes of each text log that is there."""
        paths = {name: self.log_dir / name for name in self.text_logs}
        return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}

    def hold_a_run(self) -> bool:
        """Whether there are checkpoints, metrics or a report of an earlier run."""
        return self.are_of_this_program() or any(file.exists() for file in self.weights())

    def are_of_this_program(self) -> bool:
        """Whether there are metrics or a report, which the originals do not write."""
        return any((self.log_dir / name).exists() for name in REPORTS[:2])

    def hold_more_than_an_epoch(self) -> bool:
        """Whether there is more than a run leaves that is killed in its first epoch.

        Of that one there may be a row of metrics, and only beside it weights: the latest ones are
        written last.
        """
        metrics, epochs = self.log_dir / "metrics.csv", 0
        if metrics.is_file():
            epochs = len(metrics.read_text().splitlines()) - 1
        weights = any(file.exists() for file in self.weights() if file != self.copy)
        return (self.log_dir / "report.json").exists() or epochs > 1 or (weights and not epochs)

    def clear(self, keep: Path | None) -> None:
        """Remove what an earlier run, or one killed in its first epoch, left; all but ``keep``."""
        stale = [*self.weights(), *(self.log_dir / name for name in REPORTS)]
        stale += [file for pattern in self.others for file in self.log_dir.glob(pattern)]
        for file in [*stale, *self.events.glob("events.out.tfevents.*")]:
            if keep is None or file.resolve() != keep.resolve():
                with writing(file):
                    file.unlink(missing_ok=True)

    def weights(self) -> list[Path]:
        """All files of weights that the run may write, and the numbered ones that are there."""
        found = [self.latest, self.best]
        if self.numbered:
            found += self.model_dir.glob(re.sub(r"{.*?}", "*", self.numbered))
        return [*found, self.copy] if self.copy else found
