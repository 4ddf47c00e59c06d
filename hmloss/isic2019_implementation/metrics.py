"""Figures and pictures of melanoma against nevi, or of more classes, from all images at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report, roc_auc_score, roc_curve

from common.training.drawings import heading
from common.training.pictures import literal

FIGURES = ("bacc", "auc", "sensitivity", "specificity", "accuracy")
MAX_NAMED = 10  # ROC curves
EDGES = (0, 0.05, *(round(0.1 * k, 1) for k in range(1, 11)))


def figures(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """``binary_metrics`` of two classes, ``one_against_rest`` of more."""
    of = binary_metrics if np.shape(scores)[1] == 2 else one_against_rest
    return of(np.asarray(labels), np.asarray(scores))


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
    _require_two(labels)
    hit = scores.argmax(1) == labels
    sensitivity, specificity = float(hit[labels == 1].mean()), float(hit[labels == 0].mean())
    return {
        "bacc": (sensitivity + specificity) / 2,
        "auc": float(roc_auc_score(labels, scores[:, 1])),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": float(hit.mean()),
    }


def one_against_rest(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Figures of many classes: means over those that have images, each against all others.

    Args:
        labels: (N,), of two classes or more. scores: softmax probabilities, (N, C).
    Returns: bacc and sensitivity (both the mean recall), auc (of the class's probability),
        specificity (share of the other images that are not taken for the class), accuracy; all in
        [0, 1].
    Raises:
        ValueError: only one class is present.
    """
    _require_two(labels)
    predicted = scores.argmax(1)
    rows = [
        (
            np.mean(predicted[labels == c] == c),
            np.mean(predicted[labels != c] != c),
            roc_auc_score(labels == c, scores[:, c]),
        )
        for c in np.unique(labels)
    ]
    recall, specificity, auc = (float(mean) for mean in np.mean(rows, axis=0))
    return {
        "bacc": recall,
        "auc": auc,
        "sensitivity": recall,
        "specificity": specificity,
        "accuracy": float(np.mean(predicted == labels)),
    }


def _require_two(labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        raise ValueError("two classes must be present: without them there is no recall and no AUC")


def percentages(row: Mapping[str, object]) -> dict:
    """A row with its ``FIGURES`` in percent, as they stand beside those of the other programs."""
    return dict(row) | {name: 100 * row[name] for name in FIGURES}


def report_text(labels: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> str:
    """Precision, recall and F1 of all classes as the original prints them."""
    predicted = np.asarray(scores).argmax(1)
    return classification_report(
        labels, predicted, labels=range(len(classes)), target_names=classes, zero_division=0
    )


def distributions(
    labels: np.ndarray, scores: np.ndarray, epoch: int, melanoma: bool
) -> dict[str, pd.DataFrame]:
    """How probabilities are spread, a table of one row each: "mel", "nev" and "all", or "all"."""
    if melanoma:
        tables = eval_distribution(labels, scores, epoch)
        return dict(zip(("mel", "nev", "all"), tables, strict=True))
    labels = np.asarray(labels, dtype=np.int64)
    of_truth = np.asarray(scores)[np.arange(len(labels)), labels]
    return {"all": _spread(of_truth[of_truth != 0], "Total images", len(labels), epoch)}


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
    return (
        _spread(of_melanomas, "Total mel", int((labels == 1).sum()), epoch),
        _spread(of_nevi, "Total nev", int((labels == 0).sum()), epoch),
        _spread(np.concatenate([1 - of_nevi, of_melanomas]), "Total images", len(labels), epoch),
    )


def _spread(values: np.ndarray, total_name: str, total: int, epoch: int) -> pd.DataFrame:
    inside = values[(values >= 0) & (values < 1)]
    counts = np.bincount(np.searchsorted(EDGES, inside, side="right") - 1, minlength=len(EDGES) - 1)
    columns = ["0.0-0.05", "0.05-0.1"]
    columns += [f"0.{k}-0.{k + 1}" if k < 9 else "0.9-1" for k in range(1, 10)]
    return pd.DataFrame([[epoch, *counts, total]], columns=["Epoch", *columns, total_name])


def draw_roc(
    figure, labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], title: str
) -> None:
    """ROC curve of the second of two classes, with the point where the program decides.

    Of more classes one curve each against the rest, named as far as there is room.
    """
    figure.set_size_inches(6.5, 6.5)
    labels, scores = np.asarray(labels), np.asarray(scores)
    result = percentages(figures(labels, scores))
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="grey", linestyle=":")
    here = [1] if len(classes) == 2 else np.unique(labels).tolist()
    for c in here:
        false_alarms, found, _ = roc_curve(labels == c, scores[:, c])
        auc = 100 * roc_auc_score(labels == c, scores[:, c])
        label = f"{literal(classes[c])}: AUC {auc:.1f} %" if len(here) <= MAX_NAMED else None
        axes.plot(100 * false_alarms, 100 * found, linewidth=1.5 if label else 0.7, label=label)
    ylabel = "sensitivity (%): images of the class that are found"
    if len(classes) == 2:
        ylabel = f"sensitivity (%): images of {literal(classes[1])} that are found"
        label = f"balanced accuracy {result['bacc']:.1f} %"
        axes.plot(100 - result["specificity"], result["sensitivity"], "o", label=label)
    else:
        axes.plot([], [], " ", label=f"mean AUC {result['auc']:.1f} %")
        axes.plot([], [], " ", label=f"balanced accuracy {result['bacc']:.1f} %")
    axes.set(xlabel="100 − specificity (%)", ylabel=ylabel, aspect="equal")
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
        if len(frame) == 1:
            axes.set_xlim(frame["epoch"][0] - 1, frame["epoch"][0] + 1)
        axes.set(title=name, xlabel="epoch", ylabel=unit)
        axes.legend()
