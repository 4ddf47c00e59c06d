"""Figures and pictures of melanoma against nevi, from all images of a part at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report, roc_auc_score, roc_curve

from common.training.drawings import heading

FIGURES = ("bacc", "auc", "sensitivity", "specificity", "accuracy")
NAMES = ["nv", "mel"]  # labels 0 and 1 in reports
EDGES = (0, 0.05, *(round(0.1 * k, 1) for k in range(1, 11)))


def binary_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Figures of a two-class problem.

    Args:
        labels: 0 (nevus) or 1 (melanoma), (N,), both present.
        scores: softmax probabilities, (N, 2).
    Returns: bacc (balanced accuracy: mean of sensitivity and specificity), auc (area under the
        ROC curve of the melanoma probability), sensitivity (recall of melanomas), specificity
        (recall of nevi), accuracy; all in [0, 1].
    Raises:
        ValueError: only one class is present.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if len(np.unique(labels)) != 2:
        raise ValueError("both classes must be present: without one there is no recall and no AUC")
    hit = scores.argmax(1) == labels
    sensitivity, specificity = float(hit[labels == 1].mean()), float(hit[labels == 0].mean())
    return {
        "bacc": (sensitivity + specificity) / 2,
        "auc": float(roc_auc_score(labels, scores[:, 1])),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": float(hit.mean()),
    }


def percentages(row: Mapping[str, object]) -> dict:
    """A row with its ``FIGURES`` in percent, as they stand beside those of the other programs."""
    return dict(row) | {name: 100 * row[name] for name in FIGURES}


def report_text(labels: np.ndarray, scores: np.ndarray) -> str:
    """Precision, recall and F1 of both classes as the original prints them."""
    predicted = np.asarray(scores).argmax(1)
    return classification_report(labels, predicted, target_names=NAMES, zero_division=0)


def eval_distribution(
    labels: np.ndarray, scores: np.ndarray, epoch: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """How the melanoma probabilities are spread: one row for melanomas, one for nevi, one for all.

    Counts in [0, 0.05), [0.05, 0.1), [0.1, 0.2), … [0.9, 1); for all images the probability of
    the true class. As in the original exact zeros are dropped and ones are in no bin, while the
    totals count every image.
    """
    labels, melanoma = np.asarray(labels), np.asarray(scores)[:, 1]
    of_melanomas, of_nevi = melanoma[labels == 1], melanoma[labels == 0]
    of_melanomas, of_nevi = of_melanomas[of_melanomas != 0], of_nevi[of_nevi != 0]
    rows = []
    for values, total_name, total in (
        (of_melanomas, "Total mel", int((labels == 1).sum())),
        (of_nevi, "Total nev", int((labels == 0).sum())),
        (np.concatenate([1 - of_nevi, of_melanomas]), "Total images", len(labels)),
    ):
        inside = values[(values >= 0) & (values < 1)]
        counts = np.bincount(
            np.searchsorted(EDGES, inside, side="right") - 1, minlength=len(EDGES) - 1
        )
        columns = ["0.0-0.05", "0.05-0.1"]
        columns += [f"0.{k}-0.{k + 1}" if k < 9 else "0.9-1" for k in range(1, 10)]
        rows.append(
            pd.DataFrame([[epoch, *counts, total]], columns=["Epoch", *columns, total_name])
        )
    return tuple(rows)


def draw_roc(figure, labels: np.ndarray, scores: np.ndarray, title: str) -> None:
    """ROC curve of the melanoma probability; the point is where the program decides."""
    figure.set_size_inches(6.5, 6.5)
    false_alarms, found, _ = roc_curve(labels, np.asarray(scores)[:, 1])
    result = percentages(binary_metrics(labels, scores))
    axes = figure.subplots()
    axes.plot(100 * false_alarms, 100 * found, label=f"AUC {result['auc']:.1f} %")
    axes.plot([0, 100], [0, 100], color="grey", linestyle=":")
    axes.plot(
        100 - result["specificity"],
        result["sensitivity"],
        "o",
        label=f"balanced accuracy {result['bacc']:.1f} %",
    )
    axes.set(
        xlabel="100 − specificity (%)", ylabel="sensitivity (%), melanomas found", aspect="equal"
    )
    axes.legend(loc="lower right")
    heading(figure, title)


def draw_learning_curve(figure, history: Sequence[dict], title: str) -> None:
    """Accuracy and loss of training and validation over the epochs."""
    frame = pd.DataFrame(history)
    heading(figure, title)
    for axes, name, unit, train, validation in zip(
        figure.subplots(1, 2),
        ("Model accuracy ", "Model loss "),
        ("accuracy (%)", "loss"),
        ("train_top1", "train_loss"),
        ("top1", "loss"),
        strict=True,
    ):
        for column, label in ((train, "training"), (validation, "validation")):
            rows = frame.dropna(subset=column)  # not every epoch is evaluated, with --eval_every
            axes.plot(rows["epoch"], rows[column], "o-" if len(rows) == 1 else "-", label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(title=name, xlabel="epoch", ylabel=unit)
        axes.legend()
