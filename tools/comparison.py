"""Finished runs side by side: read from their reports, as a table, a CSV file and a picture."""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.evaluation import GROUPS, class_groups
from common.training import drawings
from common.training.changes import FREE_TO_CHANGE
from common.training.errors import UsageError
from common.training.selection import full
from datasets.classes import some
from tools.table import PAPERS

FIGURES = {
    "balanced_acc": "balanced",
    "top1": "top-1",
    "many": "many",
    "medium": "medium",
    "few": "few",
    "macro_f1": "macro F1",
    "worst_class": "worst class",
}
# Settings of which a comparison says nothing: seed, folders, the place of data and teacher.
PLACES = FREE_TO_CHANGE | {
    "seed", "store_name", "val_list", "path_t", "num_runs", "run_list",
}  # fmt: skip
# Colours that colour-blind people tell apart (Okabe and Ito), and a marker each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
MARKERS = "osD^vP*X"
LINES = ("-", "--", ":", "-.")
SIZES = {"many": "#555555", "medium": "#999999", "few": "#CCCCCC"}  # no line has their colours


@dataclass(frozen=True)
class Run:
    """What a report says of the epoch that counts.

    Attributes:
        method, paper, program: what was trained, and by which program's path; paper and program
            are empty if the report does not tell.
        epoch: which one, in words. split: the set that the figures are of.
        figures: of ``FIGURES``, in percent, NaN where the report lacks them.
        cls_acc: percent (C,), NaN without test images. cls_num_list: training images (C,).
        classes: their names (C,); empty if an older report does not tell them.
        settings: the flags. data: what it was trained on, in words.
        fingerprints: SHA-256 of the images trained and evaluated on, by their keys in the report.
        trained: for how many epochs; None if an older report does not tell.
    """

    method: str
    paper: str
    seed: int | None
    epoch: str
    split: str
    figures: dict[str, float]
    cls_acc: np.ndarray
    cls_num_list: list[int]
    classes: list[str]
    settings: dict[str, object]
    data: str
    fingerprints: dict[str, str]
    folder: Path
    program: str = ""
    trained: int | None = None


def read_run(path: Path, method: str = "", paper: str = "", epoch: str = "") -> Run:
    """Read a program's report.json.

    Args:
        method, paper: how the run is called; else as the report says.
        epoch: ``best`` or ``last``; else the one that the report reports: the best if validation
            images chose it, else the last.
    Raises:
        UsageError: not a report.
    """
    try:
        report = json.loads(path.read_text())
        split = report.get("evaluated", "test")
        which = report.get("reported", {}).get("which", "final")
        chosen_on = "val" if "validation" in report else split
        if epoch:
            which = "final" if epoch == "last" else "best"
        row = report[which]
        unit = 1 if "unit" in report else 100  # older reports have fractions of classes
        cls_acc = unit * np.array([math.nan if x is None else x for x in row["cls_acc"]])
        cls_num_list = report["cls_num_list"]
        settings = report.get("settings", {})
        program = report.get("program", report.get("command", ""))
        return Run(
            method or report.get("method") or path.parent.name,
            paper or next((name for name in PAPERS if name in re.split(r"[/\s]", program)), ""),
            report.get("seed", settings.get("seed")),
            "last epoch" if which == "final" else f"best epoch on the {full(chosen_on)} set",
            split,
            _figures(row, cls_acc, cls_num_list),
            cls_acc,
            cls_num_list,
            [str(name) for name in report.get("classes", [])],
            settings,
            report.get("data") or str(settings.get("dataset", "")),
            _fingerprints(report),
            path.parent,
            report.get("program", ""),
            report.get("epochs"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{path}: not the report of a run ({reason})") from None


def _fingerprints(report: Mapping[str, object]) -> dict[str, str]:
    """Those of labels under the order of the classes, too, which gives the labels their meaning."""
    order = " ".join(map(str, report.get("classes", [])))
    return {
        f"{key} {order}" if key.endswith("labels_sha256") else key: value
        for key, value in report.items()
        if key == "pixels_sha256" or re.fullmatch(r"(train|test)_\w*sha256", key)
    }


def read_runs(reports: Sequence[tuple[Path, str, str]], epoch: str = "") -> list[Run]:
    """Read each (report, method, paper) as ``read_run`` does, all of the same kind of epoch.

    Args:
        epoch: ``best`` or ``last``; else the best one if validation images chose it in all runs.
    """
    runs = [read_run(*report, epoch) for report in reports]
    if not epoch and len({run.epoch for run in runs}) > 1:
        runs = [read_run(*report, "last") for report in reports]
    return runs


def _figures(
    row: Mapping[str, object], cls_acc: np.ndarray, cls_num_list: Sequence[int]
) -> dict[str, float]:
    """Of one epoch; the groups anew, as papers count them in different ways."""
    tested = cls_acc[~np.isnan(cls_acc)]
    figures = {name: row.get(name) for name in ("top1", "macro_f1")}
    figures = {name: math.nan if value is None else value for name, value in figures.items()}
    figures["balanced_acc"] = float(tested.mean()) if len(tested) else math.nan
    figures["worst_class"] = float(tested.min()) if len(tested) else math.nan
    groups = class_groups(cls_num_list)
    known = ~np.isnan(cls_acc)
    for name in GROUPS:
        mine = known & (groups == name)
        figures[name] = float(cls_acc[mine].mean()) if mine.any() else math.nan
    return {name: figures[name] for name in FIGURES}


def find_reports(folders: Sequence[str]) -> list[Path]:
    """Every report.json in the folders and below.

    Raises:
        UsageError: a folder has none.
    """
    found = []
    for folder in map(Path, folders):
        reports = sorted(folder.rglob("report.json"))
        if not reports:
            raise UsageError(
                f"--runs {folder}: no report.json in it or below; give folders of finished runs"
            )
        found += reports
    return list({report.resolve(): report for report in found}.values())


def in_one_order(runs: Sequence[Run]) -> list[Run]:
    """The runs with their classes in the order of the first one that names them.

    Numbers, as list files have them, stand for the names in this order.

    Raises:
        UsageError: they are of other classes, training images or splits: no figure compares.
    """
    first = next((run for run in runs if run.classes and not _numbered(run.classes)), runs[0])
    names = first.classes or [str(c) for c in range(len(first.cls_num_list))]
    ordered = []
    for run in runs:
        own = run.classes or names
        if _numbered(own) and not _numbered(names) and len(own) == len(names):
            own = [names[int(c)] for c in own]
        if sorted(own) != sorted(names) or len(own) != len(run.cls_num_list):
            odd = sorted(set(own) ^ set(names)) or [f"{len(run.cls_num_list)} classes"]
            raise UsageError(
                f"{run.folder}: other classes than in {first.folder} (differs in {odd[0]!r}); "
                "compare runs on the same data"
            )
        place = {name: i for i, name in enumerate(own)}
        order = [place[name] for name in names]
        counts = [run.cls_num_list[i] for i in order]
        if counts != first.cls_num_list:
            raise UsageError(
                f"{run.folder}: trained on {sum(counts)} images, other than the "
                f"{sum(first.cls_num_list)} of {first.folder}; compare runs on the same data"
            )
        if run.split != first.split:
            raise UsageError(
                f"{run.folder}: evaluated on the {full(run.split)} set, {first.folder} on the "
                f"{full(first.split)} set; compare runs on the same data"
            )
        fields = {"cls_acc": run.cls_acc[order], "cls_num_list": counts, "classes": names}
        ordered.append(replace(run, **fields))
    return ordered


def _numbered(classes: Sequence[str]) -> bool:
    """Whether the classes are called 0…C-1, in any order."""
    return sorted(classes) == sorted(str(c) for c in range(len(classes)))


@dataclass(frozen=True)
class Group:
    """Runs of one method that differ in the seed alone."""

    label: str
    runs: list[Run]

    def values(self, figure: str) -> list[float]:
        """A figure of each run."""
        return [run.figures[figure] for run in self.runs]

    def text(self, figure: str) -> str:
        """Mean, and the standard deviation of the sample if there are several seeds."""
        values = self.values(figure)
        if any(map(math.isnan, values)):
            return "-"
        mean = f"{statistics.fmean(values):.1f}"
        return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def group(runs: Sequence[Run]) -> list[Group]:
    """Put together what differs in the seed alone; the labels tell the others apart."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = (run.paper, run.program, run.method, run.data, run.split, run.epoch, _settings(run))
        found.setdefault(repr(key), []).append(run)
    groups = list(found.values())
    return [Group(_label(members[0], [g[0] for g in groups]), members) for members in groups]


def _settings(run: Run) -> dict[str, object]:
    """What the run was told, but for its seed, its folders and where its data lie."""
    return {key: run.settings[key] for key in sorted(run.settings) if key not in PLACES}


def _label(run: Run, all_: Sequence[Run]) -> str:
    """The method, with paper, program and then whatever settings it takes to tell it apart."""
    same = [other for other in all_ if other.method == run.method]
    if len(same) == 1:
        return run.method
    label = run.method
    if len({other.paper for other in same}) > 1:
        label += f" ({run.paper})"
    same = [other for other in same if other.paper == run.paper]
    if len({other.program for other in same}) > 1:
        label += f" ({run.program.removeprefix(run.paper + '/').removesuffix('.py')})"
    same = [other for other in same if other.program == run.program]
    mine = _settings(run)
    differing = [
        key for key in mine if len({repr(_settings(other).get(key)) for other in same}) > 1
    ]
    return ", ".join([label, *(f"{key} {mine[key]}" for key in differing[:3])])


def text_table(groups: Sequence[Group]) -> str:
    """The comparison for the terminal: a line a method, what the figures are of below."""
    lines = [["method", "paper", "seeds", *FIGURES.values()]]
    for one in groups:
        figures = [one.text(figure) for figure in FIGURES]
        lines.append([one.label, one.runs[0].paper, str(len(one.runs)), *figures])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*table, "", *_footnotes(groups)])


def _footnotes(groups: Sequence[Group]) -> list[str]:
    first = groups[0].runs[0]
    counts = first.cls_num_list
    several = any(len(one.runs) > 1 for one in groups)
    spread = ", mean ± standard deviation over the seeds" if several else ""
    sizes = class_groups(counts)
    shares = [
        f"{name} ({drawings.BOUNDS[name]}) {number}"
        for name in GROUPS
        if (number := int((sizes == name).sum()))
    ]
    notes = [
        f"Accuracy in percent on the {full(first.split)} set, {epochs(groups)}{spread}; balanced: "
        "the mean over classes.",
        f"{len(counts)} classes of {max(counts)} to {min(counts)} training images; classes with "
        f"{', '.join(shares)}.",
    ]
    if untested := [
        name for name, x in zip(first.classes, first.cls_acc, strict=True) if math.isnan(x)
    ]:
        verbs = (
            "has no test images and counts"
            if len(untested) == 1
            else "have no test images and count"
        )
        notes.append(f"{len(untested)} of them {verbs} in no figure ({some(untested)}).")
    if any(one.runs[0].epoch == f"best epoch on the {full(first.split)} set" for one in groups):
        notes.append("An epoch chosen on the set that it is reported on looks better than it is.")
    lengths: dict[int, list[str]] = {}
    for one in groups:
        if one.runs[0].trained is not None:
            lengths.setdefault(one.runs[0].trained, []).append(one.label)
    if len(lengths) > 1:
        of_each = [f"{number} of {', '.join(labels)}" for number, labels in lengths.items()]
        notes.append(f"Epochs trained: {'; '.join(of_each)}.")
    if not several:
        notes.append("One run each: small differences may be chance, more --seeds tell.")
    found = {pair for one in groups for run in one.runs for pair in run.fingerprints.items()}
    keys = [key for key, _ in found]
    differing = [key for key in keys if keys.count(key) > 1]
    for what, test in (("trained", False), ("evaluated", True)):
        if any(key.startswith("test_") == test for key in differing):
            notes.append(f"NOTE: they were not all {what} on the same images.")
    return notes


def epochs(groups: Sequence[Group]) -> str:
    """Which epoch is shown; of which method, where that differs."""
    labels: dict[str, list[str]] = {}
    for one in groups:
        labels.setdefault(one.runs[0].epoch, []).append(one.label)
    if len(labels) == 1:
        return next(iter(labels))
    return "; ".join(f"{epoch} of {', '.join(names)}" for epoch, names in labels.items())


def csv_rows(groups: Sequence[Group]) -> list[dict[str, object]]:
    """A row for each run: its figures, then the accuracy of each class in percent."""
    rows = []
    for one in groups:
        for run in one.runs:
            row = {"method": one.label, "paper": run.paper, "seed": run.seed, "epoch": run.epoch}
            row |= {name: round(value, 3) for name, value in run.figures.items()}
            accuracy = run.cls_acc.round(3).tolist()
            row |= {f"class {c}": x for c, x in zip(run.classes, accuracy, strict=True)}
            rows.append(row | {"folder": str(run.folder)})
    return rows


def draw(figure, groups: Sequence[Group], title: str) -> None:
    """Accuracy per class, a line a method, above the class sizes; largest class first.

    The line is the mean over seeds, in a band of their standard deviation; of many classes the mean
    over neighbours.
    """
    first = groups[0].runs[0]
    order = np.argsort(-np.asarray(first.cls_num_list), kind="stable")
    number = len(order)
    place, named = np.arange(number), number <= drawings.MAX_NAMES
    upper, _ = drawings.above_class_sizes(
        figure, [first.cls_num_list[c] for c in order], [first.classes[c] for c in order], SIZES
    )
    for i, one in enumerate(groups):
        accuracy = np.stack([run.cls_acc[order] for run in one.runs])
        mean, spread = accuracy.mean(0), accuracy.std(0, ddof=len(one.runs) > 1)
        if not named:
            window = max(number // 20, 1)
            mean = drawings.running_mean(mean, window)
            spread = drawings.running_mean(spread, window)
        colour = COLOURS[i % len(COLOURS)]
        upper.plot(
            place,
            mean,
            color=colour,
            linewidth=2,
            linestyle=LINES[i // len(COLOURS) % len(LINES)],
            marker=MARKERS[(i + i // len(COLOURS)) % len(MARKERS)] if named else "",
            label=textwrap.fill(f"{one.label}: {one.text('balanced_acc')}\u00a0%", 50),
        )
        band = np.clip([mean - spread, mean + spread], 0, 100)
        upper.fill_between(place, *band, color=colour, alpha=0.12, lw=0)
    upper.set(ylabel=f"{full(first.split)} accuracy (%)", ylim=(-3, 103), yticks=range(0, 101, 20))
    drawings.heading(figure, title)
    _legends(figure, upper, class_groups(first.cls_num_list))


def _legends(figure, axes, groups: np.ndarray) -> None:
    """The methods above the picture, which grows with their number; the class sizes below it."""
    from matplotlib.patches import Patch

    labels = axes.get_legend_handles_labels()[1]
    width, height = figure.get_size_inches()
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = min(max(int(12 * width) // (longest + 8), 1), 3)
    lines = sum(1 + label.count("\n") for label in labels) / columns
    figure.set_size_inches(width, height + 0.2 * max(lines - 2, 0))
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=9,
        title="balanced accuracy", title_fontsize=9,
    )  # fmt: skip
    names = [name for name in GROUPS if name in groups]
    figure.legend(
        handles=[Patch(color=SIZES[name]) for name in names],
        labels=[f"{name} ({drawings.BOUNDS[name]})" for name in names],
        loc="outside lower center", ncols=3, frameon=False, fontsize=9,
    )  # fmt: skip
