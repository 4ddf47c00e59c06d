"""What the pictures of a report show; each function draws on an empty Matplotlib figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from common.evaluation import GROUPS, class_groups, finite_mean
from common.training.pictures import literal

# Colours that colour-blind people tell apart (Okabe and Ito).
COLOURS = {"many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}
EVALUATED = "#CC79A7"
BOUNDS = {"many": "> 100 images", "medium": "20 to 100", "few": "< 20"}
MAX_NAMES = 40  # classes that are named on an axis
MAX_NUMBERS = 20  # classes whose numbers are written into the picture
MAX_BARS = 400  # beyond it the accuracy is smoothed over neighbours: one bar is no pixel wide


def per_class(
    figure,
    cls_acc: Sequence[float],
    cls_num_list: Sequence[int],
    classes: Sequence[str],
    what: str,
    title: str,
) -> None:
    """Accuracy of each class above its number of training images, largest class first.

    Args:
        cls_acc: fractions (C,), NaN without test images.
        what: the set that the accuracy is of.
    """
    order = np.argsort(-np.asarray(cls_num_list), kind="stable")
    accuracy = np.asarray(cls_acc, dtype=float)[order] * 100
    counts = np.asarray(cls_num_list)[order]
    group = class_groups(counts)
    number = len(order)
    upper, lower = above_class_sizes(figure, counts, [classes[c] for c in order])

    # Bars of one group stand side by side, since the classes are sorted by size.
    place = np.arange(number)
    for name in GROUPS:
        mine = group == name
        if not mine.any():
            continue
        label = f"{name} ({BOUNDS[name]}): {finite_mean(accuracy[mine]):.1f} %"
        if number <= MAX_BARS:
            upper.bar(place[mine], accuracy[mine], _width(number), color=COLOURS[name], label=label)
        else:
            _smoothed(upper, place, accuracy, mine, COLOURS[name], label)
    upper.set(ylabel=f"{what} accuracy (%)", ylim=(0, 108), yticks=range(0, 101, 20))
    if number <= MAX_NUMBERS:
        for x, value in zip(place, accuracy, strict=True):
            text = "no image" if np.isnan(value) else f"{value:.0f}"
            above = 0 if np.isnan(value) else value
            upper.annotate(text, (x, above), (0, 2), textcoords="offset points", ha="center")
    if number > MAX_BARS:
        smoothed = f"; accuracy: mean of {_window(place)} neighbours"
        lower.set_xlabel(lower.get_xlabel() + smoothed)
    heading(figure, title)
    upper.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9,
        columnspacing=1.2, handlelength=1.2,
    )  # fmt: skip


def above_class_sizes(
    figure,
    counts: Sequence[int],
    classes: Sequence[str],
    colours: Mapping[str, str] = COLOURS,
) -> tuple:
    """Two panels over the classes: an empty one, above that of their training images.

    Args:
        counts: training images, (C,), most first. classes: their names.
        colours: of the bars of each group.
    Returns: the axes of both.
    """
    counts = np.asarray(counts)
    number = len(counts)
    place, group = np.arange(number), class_groups(counts)
    figure.set_size_inches(np.clip(3 + 0.3 * number, 8, 13), 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for name in GROUPS:
        mine = group == name
        if number <= MAX_BARS:
            lower.bar(place[mine], counts[mine], _width(number), color=colours[name])
        else:
            lower.fill_between(place[mine], counts[mine], color=colours[name], step="mid", lw=0)
    lower.set(ylabel="training images")
    positive = counts[counts > 0]
    if len(positive) and positive[0] > 10 * positive[-1]:
        lower.set_yscale("log")
        lower.yaxis.set_major_formatter("{x:,.0f}")
        lower.set_ylim(0.7 * positive[-1], 2 * positive[0])
    else:
        lower.set_ylim(0, 1.15 * max(counts[0], 1))
    if number <= MAX_NUMBERS:
        for x, count in zip(place, counts, strict=True):
            lower.annotate(
                f"{count:,}", (x, max(count, lower.get_ylim()[0])), (0, 2),
                textcoords="offset points", ha="center",
            )  # fmt: skip
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    missing = max(5 - number, 0) / 2  # else two bars would fill the picture
    lower.set_xlim(-0.6 - missing, number - 0.4 + missing)
    if number <= MAX_NAMES:
        lower.set_xticks(place, [_short(name) for name in classes], **_slanted(classes))
        lower.set_xlabel("class, most training images first")
    else:
        lower.set_xlabel("rank of the class, most training images first")
    return upper, lower


def _width(number: int) -> float:
    """Of the bars of so many classes."""
    return 0.8 if number <= MAX_NAMES else 1.0


def _smoothed(axes, place, accuracy, mine, colour: str, label: str) -> None:
    """Accuracy of each class as the mean over ``_window`` neighbours of its group."""
    mean = running_mean(accuracy[mine], _window(place))
    axes.fill_between(place[mine], mean, color=colour, alpha=0.25, lw=0)
    axes.plot(place[mine], mean, color=colour, label=label)


def _window(place: np.ndarray) -> int:
    return len(place) // 100


def confusion(
    figure, counts: np.ndarray, cls_num_list: Sequence[int], classes: Sequence[str], title: str
) -> None:
    """Share of each true class that is taken for each class; most training images first."""
    order = np.argsort(-np.asarray(cls_num_list), kind="stable")
    counts = np.asarray(counts)[np.ix_(order, order)]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 100
    number = len(share)
    side = np.clip(4 + 0.3 * number, 6, 13)
    figure.set_size_inches(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    axes.set(xlabel="predicted class, most training images first", ylabel="true class")
    if number <= MAX_NAMES:
        names = [_short(classes[c]) for c in order]
        axes.set_xticks(np.arange(number), names, **_slanted(classes))
        axes.set_yticks(np.arange(number), names)
    if number <= MAX_NUMBERS:
        for row, column in np.ndindex(*share.shape):
            if share[row, column] >= 0.5:
                axes.text(
                    column, row, f"{share[row, column]:.0f}", ha="center", va="center",
                    color="white" if share[row, column] > 50 else "black",
                )  # fmt: skip
    heading(figure, title)


def curves(figure, history: Sequence[dict], what: str, title: str) -> None:
    """Loss and accuracies of training and of ``what`` over the epochs."""
    figure.set_size_inches(10, 5)
    left, right = figure.subplots(1, 2)
    marker = "o" if len(history) == 1 else ""
    losses = []
    for column, label, colour in (("train_loss", "training", "black"), ("loss", what, EVALUATED)):
        epochs, values = _series(history, column)
        left.plot(epochs, values, marker=marker, color=colour, label=label)
        losses += values
    # Only a log scale shows both phases of losses that are far apart.
    far = min(losses) > 0 and max(losses) > 50 * min(losses)
    left.set(xlabel="epoch", ylabel="loss", yscale="log" if far else "linear")
    lines = [("train_top1", "training", "black"), ("top1", what, EVALUATED)]
    lines += [(name, f"{what}, {name}", COLOURS[name]) for name in GROUPS]
    for column, label, colour in lines:
        epochs, values = _series(history, column)
        if values:
            right.plot(epochs, values, marker=marker, color=colour, label=label)
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 103), yticks=range(0, 101, 20))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(history) == 1:
            axes.set_xlim(history[0]["epoch"] - 1, history[0]["epoch"] + 1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    heading(figure, title)


def _series(history: Sequence[dict], column: str) -> tuple[list[int], list[float]]:
    """The epochs that have a figure, and the figure."""
    rows = [row for row in history if not math.isnan(row.get(column, math.nan))]
    return [row["epoch"] for row in rows], [row[column] for row in rows]


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the numbers among each value's ``window`` neighbours, fewer at the ends."""
    known = ~np.isnan(values)
    kernel = np.ones(min(window, len(values)))
    sums, count = (
        np.convolve(part, kernel, mode="same") for part in (np.where(known, values, 0), known)
    )
    return np.where(count > 0.5, sums / np.maximum(count, 1), np.nan)


def _short(name: str, most: int = 28) -> str:
    """Long names keep both ends: many differ in the last word alone."""
    half = most // 2
    return literal(name if len(name) <= most else f"{name[:half]}…{name[1 - half :]}")


def _slanted(classes: Sequence[str]) -> dict[str, object]:
    """How names stand below an axis: upright as long as they have room."""
    longest = max(map(len, classes), default=0)
    if longest * len(classes) <= 60:
        return {}
    return {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}


def heading(figure, title: str) -> None:
    """Put ``title`` over the picture, in as many lines as it takes."""
    width = int(figure.get_size_inches()[0] * 10)
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, width)]
    figure.suptitle(literal("\n".join(lines)))
