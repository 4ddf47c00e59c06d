"""What a finished run leaves: metrics.csv, report.json and three pictures."""

from __future__ import annotations

import hashlib
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from common.training import pictures
from common.training.logs import write_csv, write_json


def fingerprint(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order (indices as little-endian int64, pixels as uint8)."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def write_metrics(folder: str | Path, history: Sequence[dict]) -> None:
    """``metrics.csv``: one row an epoch, one column a scalar; rewritten atomically."""
    rows = [
        {key: value for key, value in row.items() if not isinstance(value, (list, dict))}
        for row in history
    ]
    write_csv(Path(folder) / "metrics.csv", rows)


def write_report(
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
    write_metrics(folder, history)
    write_json(
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
            "versions": versions(device),
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


def versions(device: torch.device | str = "cpu") -> dict[str, str]:
    """Versions and hardware that a number depends on, and the commit if the code is a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    on_gpu = torch.device(device).type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "commit": commit,
    }


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
