"""Calibration of a classifier by bins of its confidence, and the reliability diagram of it.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

from pathlib import Path

import numpy as np
import torch

from common.training import drawings, pictures


def calibration(bins: torch.Tensor) -> dict[str, np.ndarray | float]:
    """Figures of each bin and of all, as fractions, under the names of MiSLAS.

    Args:
        bins: (3, num_bins) of ``common.evaluation.calibration_bins``: count, sum of correct, sum of
            confidence. Samples of confidence 0 or above 1 are in no bin.

    Returns:
        ``accuracies``, ``confidences``, ``counts`` (int64) per bin, 0 in empty bins; the edges
        ``bins``; the averages over samples ``avg_accuracy`` and ``avg_confidence``; the mean and
        the largest gap, ``expected_calibration_error`` and ``max_calibration_error``. Without
        samples the averages and the mean gap are NaN.
    """
    count, correct, confidence = bins.double().cpu().numpy()
    filled = np.maximum(count, 1)
    accuracies, confidences = correct / filled, confidence / filled
    gaps = np.abs(accuracies - confidences)
    total = count.sum()
    with np.errstate(invalid="ignore"):
        return {
            "accuracies": accuracies,
            "confidences": confidences,
            "counts": count.astype(np.int64),
            "bins": np.linspace(0, 1, len(count) + 1),
            "avg_accuracy": float(correct.sum() / total),
            "avg_confidence": float(confidence.sum() / total),
            "expected_calibration_error": float((gaps * count).sum() / total),
            "max_calibration_error": float(gaps.max()),
        }


def draw_reliability_diagram(bins: torch.Tensor, path: str | Path, title: str) -> None:
    """Accuracy against confidence as a PNG; a calibrated classifier's bars end on the diagonal.

    Args:
        bins: as for ``calibration``.
        path: file to write.
        title: heading of the picture.
    """
    pictures.picture(Path(path), _draw, calibration(bins), title)


def _draw(figure, figures: dict[str, np.ndarray | float], title: str) -> None:
    figure.set_size_inches(5.5, 5.5)
    edges = figures["bins"]
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    filled = figures["counts"] > 0
    accuracies = figures["accuracies"][filled]
    confidences = figures["confidences"][filled]

    axes = figure.add_subplot()
    gap = axes.bar(
        centres[filled],
        np.abs(accuracies - confidences),
        bottom=np.minimum(accuracies, confidences),
        width=width,
        color="darkblue",
        alpha=0.5,
        zorder=2,
    )
    accuracy = axes.bar(
        centres[filled], accuracies, width=width, color="tab:blue", alpha=0.6, edgecolor="black"
    )
    axes.plot([0, 1], [0, 1], linestyle="--", color="gray")
    axes.text(
        0.97,
        0.03,
        f"ACC={figures['avg_accuracy'] * 100:.3f}\n"
        f"ECE={figures['expected_calibration_error'] * 100:.3f}",
        ha="right",
        va="bottom",
        bbox={"facecolor": "white", "edgecolor": "gray"},
        zorder=3,
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
        xlabel="Confidence",
        ylabel="Accuracy",
    )
    axes.legend([gap, accuracy], ["Gap", "Accuracy"], loc="upper left")
    drawings.heading(figure, title)
