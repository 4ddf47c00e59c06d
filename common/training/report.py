"""What a finished run leaves: report.json, metrics.csv, tables of its predictions, pictures."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.evaluation import Tally, class_groups
from common.training import drawings, pictures
from common.training.logs import write_csv, write_json, write_text
from common.training.selection import SCORES, Selection, full

UNIT = "percent: accuracies, precision, recall, F1, AUC, calibration errors"


class Outcome(NamedTuple):
    """What a run came to, on the set that is reported.

    Attributes:
        final, best: figures of the last epoch and of the best one.
        tally: evaluation of the best one if a set of its own chose it, else of the last: on the set
            that it is chosen on, the best one looks better than it is.
        validation: the same two on that other set, {"final": …, "best": …}; None if there is none.
    """

    final: dict
    best: dict
    tally: Tally
    validation: dict[str, dict] | None = None

    @property
    def which(self) -> str:
        """The epoch that tables and pictures are about, "final" or "best"."""
        return "final" if self.validation is None else "best"

    @property
    def epoch(self) -> int:
        """Its number, from 0."""
        return getattr(self, self.which)["epoch"]


def fingerprint(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order (indices as little-endian int64, pixels as uint8)."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


def names_fingerprint(files: Iterable[str], root: str | Path) -> str:
    """SHA-256 of the names of files below ``root``, wherever that is, in this order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(file.removeprefix(str(root)).lstrip(os.sep)) + b"\n")
    return digest.hexdigest()


def write_metrics(folder: str | Path, history: Sequence[dict]) -> None:
    """``metrics.csv``: one row an epoch, one column a scalar; rewritten atomically."""
    rows = [
        {key: value for key, value in row.items() if not isinstance(value, (list, dict))}
        for row in history
    ]
    write_csv(Path(folder) / "metrics.csv", rows)


def write_report(
    folder: str | Path,
    history: Sequence[dict],
    outcome: Outcome,
    about: Mapping[str, object],
    selection: Selection,
    *,
    files: Sequence[str] | None = None,
    settings: dict | None = None,
    device: torch.device | str = "cpu",
    commit: str = "unknown",
    **facts: object,
) -> None:
    """Write ``report.json``, ``metrics.csv``, and tables and pictures of the reported epoch.

    Args:
        history: a dictionary per epoch ("epoch", "lr", "train_loss", "train_top1", and the keys of
            ``Tally.result``), evaluated on the set ``selection.chosen_on``.
        about: what was trained, see ``Record``.
        files: the images of ``selection.split``, if they are files.
        settings: the parsed flags. device: what it was trained on. commit: with which code.
        facts: anything else worth keeping, as JSON-able values.
    """
    folder = Path(folder)
    note = selection.note()
    if (evaluated := sum(selection.score in row for row in history)) < len(history):
        note += f"; {evaluated} of {len(history)} epochs were evaluated"
    validation = {name: in_percent(row) for name, row in (outcome.validation or {}).items()}
    table = class_table(outcome.tally, about["cls_num_list"], about["classes"])
    write_metrics(folder, history)
    write_json(
        folder / "report.json",
        {
            "final": in_percent(outcome.final),
            "best": in_percent(outcome.best),
            "note": note,
            "unit": UNIT,
            "evaluated": selection.split,
            "reported": {
                "epoch": outcome.epoch, "which": outcome.which, "split": selection.split,
            },
            **({"validation": validation} if validation else {}),
            "per_class": table,
            "epochs": len(history),
            "wall_time_s": sum(row.get("epoch_s", 0.0) for row in history),
            "command": shlex.join(["python", *sys.argv]),
            "settings": settings or {},
            "versions": versions(device) | {"commit": commit},
            **about,
            **facts,
        },
    )  # fmt: skip
    write_tables(folder, outcome.tally, table, files)
    _draw(folder, history, outcome, about, selection)


def summary(outcome: Outcome, selection: Selection, folder: Path) -> str:
    """A line for the screen: scores of the last and of the best epoch."""
    scores, where = [selection.score], ""
    if selection.validated:
        scores = dict.fromkeys(["top1", selection.score])
        where = f"both on the {full(selection.split)} set; "
    final, best = (
        f"{row['epoch']}: {', '.join(f'{SCORES[score]} {row[score]:.3f}' for score in scores)}"
        for row in (outcome.final, outcome.best)
    )
    return (
        f"last epoch {final}; best on the {full(selection.chosen_on)} set, epoch {best}; "
        f"{where}report in {folder}"
    )


def in_percent(row: Mapping[str, object]) -> dict:
    """A row of the history with its class accuracies in percent, as the other figures are."""
    percent = [100 * accuracy for accuracy in row.get("cls_acc", ())]
    return dict(row) | ({"cls_acc": percent} if percent else {})


def class_table(
    tally: Tally, cls_num_list: Sequence[int], classes: Sequence[str]
) -> dict[str, list]:
    """For each class its name, group and images, and precision, recall, F1 in percent; columns."""
    precision, recall, f1 = (100 * share for share in tally.precision_recall_f1())
    return {
        "class": list(classes),
        "group": class_groups(cls_num_list).tolist(),
        "train_images": list(cls_num_list),
        "test_images": tally.total.tolist(),
        "correct": tally.correct.tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
    }


def write_tables(
    folder: Path, tally: Tally, table: Mapping[str, list], files: Sequence[str] | None
) -> None:
    """``write_class_tables``, and ``predictions.csv``, a row an image."""
    classes = table["class"]
    write_class_tables(folder, tally, table)
    samples = tally.samples.tolist()
    rows = (
        (image, classes[int(true)], classes[int(predicted)], f"{probability:.6f}")
        for image, (true, predicted, probability) in zip(
            range(len(samples)) if files is None else files, samples, strict=True
        )
    )
    write_rows(folder / "predictions.csv", ["image", "true", "predicted", "probability"], rows)


def write_class_tables(folder: Path, tally: Tally, table: Mapping[str, list]) -> None:
    """``per_class.csv`` and, if it was counted, ``confusion.csv``, rows true."""
    classes = table["class"]
    write_rows(folder / "per_class.csv", table, zip(*table.values(), strict=True))
    if tally.confusion is not None:
        counts = zip(classes, tally.confusion.tolist(), strict=True)
        rows = ([name, *of_class] for name, of_class in counts)
        write_rows(folder / "confusion.csv", ["true class", *classes], rows)


def write_rows(path: Path, header: Iterable[str], rows: Iterable[Sequence]) -> None:
    """A csv file; fractions of a percent to two digits, NaN empty. Names may occur twice."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    for row in rows:
        table.writerow(("" if x != x else f"{x:.2f}") if isinstance(x, float) else x for x in row)
    write_text(path, text.getvalue())


def _draw(
    folder: Path,
    history: Sequence[dict],
    outcome: Outcome,
    about: Mapping[str, object],
    selection: Selection,
) -> None:
    """``curves.png`` of all epochs, ``per_class.png`` and ``confusion.png`` of the reported one."""
    classes, cls_num_list = about["classes"], about["cls_num_list"]
    split, chosen_on = full(selection.split), full(selection.chosen_on)
    title, epoch = title_of(about), epoch_title(about, selection, outcome.epoch)
    recall = outcome.tally.precision_recall_f1()[1].tolist()
    pictures.picture(folder / "curves.png", drawings.curves, history, chosen_on, title)
    pictures.picture(
        folder / "per_class.png", drawings.per_class, recall, cls_num_list, classes, split, epoch
    )
    if outcome.tally.confusion is not None:
        counts = outcome.tally.confusion.cpu().numpy()
        pictures.picture(
            folder / "confusion.png", drawings.confusion, counts, cls_num_list, classes, epoch
        )


def title_of(about: Mapping[str, object]) -> str:
    """Method, network and data, for the head of a picture."""
    return f"{about['method']}, {about['network']['arch']}, on {about['data']}"


def epoch_title(about: Mapping[str, object], selection: Selection, epoch: int) -> str:
    """``title_of``, and below it the set, the epoch and why that one."""
    title = f"{title_of(about)}\n{full(selection.split)} set, epoch {epoch}"
    if not selection.validated:
        return title
    return f"{title}, the best on the {full(selection.chosen_on)} set"


def versions(device: torch.device | str = "cpu") -> dict[str, str]:
    """Versions and hardware that a number depends on."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def commit() -> str:
    """The commit of the code, with ``-dirty`` if files were changed; "unknown" if it is none."""
    root = Path(__file__).resolve().parents[2]
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
