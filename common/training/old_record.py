"""The record of a run: folders, logs, history, checkpoints, report. Process 0 writes it."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from common.training import checkpoint, logs, pictures, report
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
            _write_report(
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


def _write_report(
    folder: str | Path,
    *,
    history: Sequence[dict],
    best: dict,
    cls_num_list: Sequence[int],
    confusion: torch.Tensor | None = None,
    class_names: Sequence[str] | None = None,
    settings: dict | None = None,
    split: str = "test",
    device: torch.device | str = "cpu",
    **facts: object,
) -> None:
    """Write ``report.json``, ``metrics.csv``, ``per_class.png``, ``confusion.png``, ``curves.png``.

    Args:
        history: a dictionary per epoch ("epoch", "lr", "train_loss", "train_top1", and the keys of
            ``Tally.result``); the last one is the final result.
        best: the history entry of the best epoch on the test set.
        cls_num_list: training images per class.
        confusion: (C, C) counts of the last epoch, rows true.
        settings: the parsed flags. ``facts``: anything else worth keeping, as JSON-able values.
        split: what the history was evaluated on. device: what it was trained on.
    """
    folder = Path(folder)
    final = history[-1]
    report.write_metrics(folder, history)
    logs.write_json(
        folder / "report.json",
        {
            "final": final,
            "best": best,
            "note": f"best is chosen on the {split} set, as in the papers; final is the last epoch",
            "evaluated": split,
            "epochs": len(history),
            "wall_time_s": sum(row.get("epoch_s", 0.0) for row in history),
            "cls_num_list": list(cls_num_list),
            "command": shlex.join(["python", *sys.argv]),
            "settings": settings or {},
            "versions": report.versions(device),
            **facts,
        },
    )
    if class_names is not None:
        class_names = [pictures.literal(name) for name in class_names]
    pictures.picture(folder / "curves.png", _draw_curves, history, split)
    pictures.picture(
        folder / "per_class.png",
        _draw_per_class,
        final["cls_acc"],
        cls_num_list,
        class_names,
        split,
    )
    if confusion is not None:
        pictures.picture(
            folder / "confusion.png", _draw_confusion, confusion.cpu().numpy(), class_names
        )


def _draw_curves(figure, history: Sequence[dict], split: str) -> None:
    left, right = figure.subplots(1, 2)
    losses = []
    for column, label in (("train_loss", "train"), ("loss", split)):
        epochs, values = _series(history, column)
        left.plot(epochs, values, label=label)
        losses += values
    # Only a log scale shows both phases of losses that are far apart.
    far = min(losses) > 0 and max(losses) > 50 * min(losses)
    left.set(xlabel="epoch", ylabel="loss", yscale="log" if far else "linear")
    left.legend()
    for column, label in (
        ("train_top1", "train"), ("top1", split), ("many", f"{split}, many"),
        ("medium", f"{split}, medium"), ("few", f"{split}, few"),
    ):  # fmt: skip
        epochs, values = _series(history, column)
        if values:
            right.plot(epochs, values, label=label)
    right.set(xlabel="epoch", ylabel="top-1 accuracy (%)", ylim=(0, 100))
    right.legend()


def _series(history: Sequence[dict], column: str) -> tuple[list[int], list[float]]:
    """The epochs that have a figure, and the figure."""
    rows = [row for row in history if not math.isnan(row.get(column, math.nan))]
    return [row["epoch"] for row in rows], [row[column] for row in rows]


def _draw_per_class(
    figure,
    cls_acc: Sequence[float],
    cls_num_list: Sequence[int],
    names: Sequence[str] | None,
    split: str,
) -> None:
    order = np.argsort(-np.asarray(cls_num_list), kind="stable")
    accuracy = np.asarray(cls_acc, dtype=float)[order] * 100
    counts = np.asarray(cls_num_list)[order]
    axes = figure.subplots()
    if len(order) <= 30:
        axes.bar(np.arange(len(order)), accuracy)
    else:  # one shape: thousands of bars take longer than an evaluation
        axes.fill_between(np.arange(len(order)), accuracy, step="mid")
    axes.set(ylabel=f"{split} accuracy of the class (%)", ylim=(0, 100))
    axes.set_xlabel("class, most training images first")
    if len(order) <= 30 and names is not None:
        axes.set_xticks(np.arange(len(order)), [names[i] for i in order], rotation=45, ha="right")
    size = axes.twinx()
    size.plot(np.arange(len(order)), counts, color="black", marker="." if len(order) <= 30 else "")
    size.set(ylabel="training images (line)", yscale="log" if counts.min() > 0 else "linear")


def _draw_confusion(figure, confusion: np.ndarray, names: Sequence[str] | None) -> None:
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(share) <= 20:
        labels = names if names is not None else list(range(len(share)))
        axes.set_xticks(np.arange(len(share)), labels, rotation=45, ha="right")
        axes.set_yticks(np.arange(len(share)), labels)
        for row, column in np.ndindex(*share.shape):
            if share[row, column] >= 0.005:
                color = "white" if share[row, column] > 0.5 else "black"
                text = f"{share[row, column] * 100:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
