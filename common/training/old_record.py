"""The record of a run: folders, logs, history, checkpoints, report. Process 0 writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from common.training import checkpoint, logs, report
from common.training.errors import UsageError
from common.training.launch import Process, barrier

# Settings that may change between a run and its continuation without changing what it computes.
FREE_TO_CHANGE = {
    "resume", "workers", "gpu", "local_rank", "print_freq", "evaluate", "start_epoch", "seed",
    "root_log", "root_model", "out", "root_path", "root", "data", "data_dir", "save_every",
}  # fmt: skip


class Record:
    """What a run has done so far, in memory and on disk.

    Args:
        log_dir: logs, metrics.csv, report.json, pictures, tensorboard events.
        model_dir: checkpoints.
        process: only ``process.is_main`` writes.
        settings: the parsed flags, stored with the checkpoint and compared on resume.
        latest, best: checkpoint file names.
        text_logs: names of the original's text logs, written by ``log[name].write``.
        events: folder of the tensorboard events within ``log_dir``.
        split, score: what the history is evaluated on, and the figure that chooses the best.

    Attributes:
        history: one dictionary per finished epoch. best_row: the best of them, or None.
        log: {name: TextLog}. writer: tensorboard writer (None in other processes).
    """

    def __init__(
        self,
        log_dir: str | Path,
        model_dir: str | Path,
        process: Process,
        settings: Mapping[str, object],
        *,
        latest: str = "ckpt.pth.tar",
        best: str = "ckpt.best.pth.tar",
        text_logs: Sequence[str] = (),
        events: str = "",
        split: str = "test",
        score: str = "top1",
    ) -> None:
        self.log_dir, self.model_dir = Path(log_dir), Path(model_dir)
        self.latest, self.best = self.model_dir / latest, self.model_dir / best
        self.process = process
        self.settings = {key: _plain(value) for key, value in settings.items()}
        self.history: list[dict] = []
        self.best_row: dict | None = None
        self.seed: int | None = None
        self.split, self.score = split, score
        self._text_logs = text_logs
        self._events = self.log_dir / events
        self._offsets: dict[str, int] = {}
        if process.is_main:
            logs.prepare_folders(self.log_dir, self.model_dir)
            in_logs = (*text_logs, "metrics.csv", "report.json")
            logs.prepare_files(self.latest, self.best, *(self.log_dir / name for name in in_logs))
        barrier()

    def resume(self, flag: str, weights: str = "state_dict") -> dict | None:
        """The checkpoint that ``--resume`` names, with this record set to its state; None without.

        Files of the original programs, which know nothing of history and seed, are accepted.
        ``weights`` is the key without which a file is no checkpoint of this program.
        """
        path = checkpoint.find(flag, self.latest)
        if path is None:
            return None
        state = checkpoint.load(path)
        for key in ("epoch", weights):
            if key not in state:
                raise UsageError(
                    f"--resume {path}: has no {key!r}, not a checkpoint of this program"
                )
        if self.process.is_main:
            print(f"=> loaded checkpoint '{path}' (epoch {state['epoch']})", flush=True)
        run = state.get("run", {})
        self.history = run.get("history", [])
        self.best_row = run.get("best_row")
        self.seed = run.get("seed")
        if path.resolve() == self.latest.resolve():  # another run's logs are not this one's
            self._offsets = run.get("offsets", {})
        self._note_changes(run.get("settings", {}))
        return state

    def _note_changes(self, before: Mapping[str, object]) -> None:
        changed = [
            f"{key} {before[key]} -> {value}"
            for key, value in self.settings.items()
            if key in before and before[key] != value and key not in FREE_TO_CHANGE
        ]
        if changed and self.process.is_main:
            print(f"note: resuming with changed settings: {', '.join(changed)}", flush=True)

    def open(self, seed: int) -> None:
        """Open the logs: anew, or cut back to where the checkpoint was taken."""
        self.seed = seed
        writes = self.process.is_main
        self.log = {
            name: logs.TextLog(self.log_dir / name if writes else None, self._offsets.get(name))
            for name in self._text_logs
        }
        self.writer = None
        if writes:
            self.writer = logs.Events(self._events, start_epoch=len(self.history))

    @property
    def best_score(self) -> float:
        """Best score so far, 0 before the first epoch."""
        return self.best_row[self.score] if self.best_row else 0.0

    def end_epoch(self, row: dict, *, is_best: bool) -> None:
        """Append a finished epoch to the history and rewrite metrics.csv."""
        self.history.append(row)
        if is_best or self.best_row is None:
            self.best_row = row
        if self.process.is_main:
            report.write_metrics(self.log_dir, self.history)

    def save(self, state: Mapping[str, object], *, is_best: bool = False) -> None:
        """Write the checkpoint, the best one first: a kill between the two repeats the epoch."""
        if self.process.is_main:
            if self.writer is not None:
                self.writer.flush()
            run = {
                "seed": self.seed,
                "history": self.history,
                "best_row": self.best_row,
                "offsets": {name: log.offset for name, log in self.log.items()},
                "settings": self.settings,
            }
            paths = [self.best, self.latest] if is_best else [self.latest]
            checkpoint.save({**state, "run": run}, *paths)
        barrier()

    def finish(self, cls_num_list: Sequence[int], **facts: object) -> None:
        """Write the report of a run that reached its last epoch, and close the logs."""
        if self.process.is_main and self.history:
            report.write_report(
                self.log_dir,
                history=self.history,
                best=self.best_row,
                cls_num_list=cls_num_list,
                settings=self.settings,
                seed=self.seed,
                split=self.split,
                device=self.process.device,
                **facts,
            )
            final, best = self.history[-1], self.best_row
            name = "top-1" if self.score == "top1" else self.score
            print(
                f"last epoch {final['epoch']}: {name} {final[self.score]:.3f}; "
                f"best on the {self.split} set, epoch {best['epoch']}: {best[self.score]:.3f}; "
                f"report in {self.log_dir}",
                flush=True,
            )
        self.close()

    def close(self) -> None:
        """Close logs and event file."""
        for log in self.log.values():
            log.close()
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _plain(value: object) -> object:
    """A setting as a checkpoint and JSON can hold it."""
    if isinstance(value, (torch.Tensor,)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
