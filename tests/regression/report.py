#!/usr/bin/env python
"""Rebuild the tables of the READMEs and the pictures from the stored results.

    python tests/regression/report.py

Writes between the lines <!-- results:begin --> and <!-- results:end --> of README.md and of each
paper's README.md, and tests/regression/pictures/<paper>.png. Twice gives the same as once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder

from common.training.logs import write_text
from common.training.pictures import save_picture
from tests.regression.results import RESULTS, Comparison, Figures, compare, read_results
from tests.regression.table import PAPERS, ROOT, STAND_INS, read_table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NAMES = {"ib_loss": "IB", "dbm_loss": "DBM", "hmloss": "HMLoss", "arbloss": "ARB-Loss"}
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tinyimagenet": "Tiny ImageNet",
    "imagenet_lt": "ImageNet-LT",
    "inaturalist2018": "iNaturalist 2018",
    "isic2019": "ISIC 2019",
}
PICTURES = "tests/regression/pictures"
NOTHING = "No run of this length is stored yet."


def cells(comparison: Comparison, with_paper: bool) -> list[str]:
    """The columns of a README table."""
    row, ours = comparison.row, comparison.ours
    setting = DATASETS[row.dataset]
    if row.imb_type in ("exp", "step"):
        tail = "long tail" if row.imb_type == "exp" else "step"
        setting += f", {tail} {row.imb_ratio}"
    name = row.method if row.split == "all" else f"{row.method}, {row.split}"
    length = str(comparison.epochs)
    if not comparison.full_length:
        length += f" (of {row.epochs})"
    return [
        *([NAMES[row.paper]] if with_paper else []),
        name,
        setting,
        comparison.data,
        length,
        "none found" if row.published is None else f"{row.published:.2f}",
        Figures.text(ours.best),
        Figures.text(ours.last),
        str(len(ours.seeds)),
        "" if comparison.difference is None else f"{comparison.difference:+.2f}",
        comparison.verdict,
    ]


def table(comparisons: Sequence[Comparison], with_paper: bool = False) -> list[str]:
    """Lines of a markdown table, or a line that says that there is nothing."""
    if not comparisons:
        return [NOTHING]
    header = [
        *(["paper"] if with_paper else []), "method", "setting of the paper", "trained on",
        "epochs", "reported", "ours, best epoch", "ours, last epoch", "seeds", "difference",
        "verdict",
    ]  # fmt: skip
    lines = [header, ["---"] * len(header)] + [cells(c, with_paper) for c in comparisons]
    return [f"| {' | '.join(line)} |" for line in lines]


def section(comparisons: Sequence[Comparison], with_paper: bool = False) -> str:
    """What stands between the markers: full-length runs, then shortened ones, never together."""
    full = [c for c in comparisons if c.full_length]
    short = [c for c in comparisons if not c.full_length]
    lines = ["**Runs of the published length**", "", *table(full, with_paper)]
    if short:
        lines += [
            "",
            "**Shortened runs.** Schedules stretched to fewer epochs: no reproduction of the "
            "reported number, which stands here for orientation; only the order of the methods is "
            "judged.",
            "",
            *table(short, with_paper),
        ]
    if any(c.data.split()[0] in STAND_INS for c in comparisons):
        lines += [
            "",
            "The hexadecimal number is the fingerprint of the training pixels. `imagefolder`, "
            "`imagefolder16` (its images shrunk to 16x16) and `digits` stand in for CIFAR-10 and "
            "are other data sets: no difference to a reported number is judged there, only the "
            "order of the methods.",
        ]
    lines += [
        "",
        "Top-1 accuracy in percent on the balanced test set, mean ± standard deviation over seeds. "
        "The difference is that of the best epoch, which the authors' programs report. Made by "
        "`python tests/regression/report.py` from `tests/regression/results/`.",
    ]
    return "\n".join(lines)


def replace_section(path: Path, text: str) -> bool:
    """Put ``text`` between the markers of a file; False if it lacks the file or the markers."""
    if not path.is_file():
        return False
    content = path.read_text()
    if BEGIN not in content or END not in content:
        return False
    before, rest = content.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    new = f"{before}{BEGIN}\n{text}\n{END}{after}"
    if new != content:
        write_text(path, new)
    return True


def draw(figure, comparisons: Sequence[Comparison]) -> None:
    """Reported against ours, a line for each row; shortened runs hollow."""
    figure.set_size_inches(9, 1.4 + 0.3 * len(comparisons))
    axes = figure.subplots()
    labels, seen = [], set()

    def once(label: str) -> str | None:
        return None if label in seen else seen.add(label) or label

    for y, c in enumerate(reversed(comparisons)):
        mean = statistics.fmean(c.ours.best)
        spread = statistics.stdev(c.ours.best) if len(c.ours.best) > 1 else 0.0
        label = "ours, best epoch" if c.full_length else "ours, best epoch, shortened run"
        axes.errorbar(
            mean, y, xerr=spread, fmt="o", color="tab:blue", capsize=3, label=once(label),
            markerfacecolor="tab:blue" if c.full_length else "white",
        )  # fmt: skip
        if c.row.published is not None:
            axes.plot([c.row.published, mean], [y, y], color="lightgrey", zorder=0)
            axes.plot(c.row.published, y, "D", color="black", label=once("reported"))
        setting = f"{DATASETS[c.row.dataset]} {c.row.imb_type} {c.row.imb_ratio}"
        labels.append(f"{c.row.method}, {setting}\n{c.data}, {c.epochs} epochs")
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel("top-1 accuracy (%), mean ± standard deviation over seeds")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=7)


def first_of_each(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """One line for a command on one data set: the first of the published numbers it stands for."""
    found = {}
    for c in comparisons:
        found.setdefault((c.row.id, c.data, c.epochs), c)
    return list(found.values())


def rebuild(root: Path, results: Sequence[dict]) -> list[str]:
    """Rewrite tables and pictures below ``root``; returns what could not be written, in words."""
    rows = read_table()
    missing = []
    overall = []
    for paper in PAPERS:
        comparisons = compare([row for row in rows if row.paper == paper], results, rows)
        headline = first_of_each(c for c in comparisons if c.row.split == "all")
        overall += headline
        text = section(comparisons)
        if headline:
            pictures = root / PICTURES
            pictures.mkdir(parents=True, exist_ok=True)
            save_picture(pictures / f"{paper}.png", draw, headline)
            text += f"\n\n![Reported accuracies and ours](../{PICTURES}/{paper}.png)"
        path = root / paper / "README.md"
        if not replace_section(path, text):
            missing.append(f"{path}: not there, or without the lines {BEGIN} and {END}")
    path = root / "README.md"
    if not replace_section(path, section(overall, with_paper=True)):
        missing.append(f"{path}: not there, or without the lines {BEGIN} and {END}")
    return missing


def main() -> int:
    """Run the program; returns the exit code, 1 if a README has no place for its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    results = read_results(parser.parse_args().results)
    missing = rebuild(ROOT, results)
    print(f"{len(results)} results")
    for line in missing:
        print(line)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
