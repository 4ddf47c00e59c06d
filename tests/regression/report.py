#!/usr/bin/env python
"""Rebuild the tables of the READMEs and the pictures from the stored results.

    python tests/regression/report.py

Writes between the lines <!-- results:begin --> and <!-- results:end --> of README.md and of each
paper's README.md, between <!-- originals:begin --> and <!-- originals:end --> of README.md, and the
pictures in tests/regression/pictures/. Twice gives the same as once.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder

from common.training.errors import UsageError
from common.training.logs import write_text
from common.training.pictures import save_picture
from tests.regression import originals
from tests.regression.results import RESULTS, Comparison, Figures, compare, read_results
from tools.programs import ROOT
from tools.table import PAPERS, Row, read_table

MARKS = "<!-- {name}:begin -->", "<!-- {name}:end -->"
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
MIXED = (
    " A baseline of another source than the method's number is named: no paper publishes that gain."
)
NOTHING = "No run of the published length is stored yet."


def setting(row: Row) -> str:
    """Data set and imbalance of a row."""
    kinds = {"exp": "long tail", "step": "step"}
    imbalance = f", {kinds[row.imb_type]} {row.imb_ratio}" if row.imb_type in kinds else ""
    return DATASETS[row.dataset] + imbalance


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a markdown table."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines)]


def full_table(comparisons: Sequence[Comparison], with_paper: bool) -> list[str]:
    """Runs of the published length beside the published numbers."""
    header = ["method", "setting", "trained on", "epochs", "reported", "ours, best epoch",
              "ours, last epoch", "seeds", "difference", "verdict"]  # fmt: skip
    lines = []
    for c in comparisons:
        name = c.row.method if c.row.split == "all" else f"{c.row.method}, {c.row.split}"
        lines.append([
            *([NAMES[c.row.paper]] if with_paper else []),
            name,
            setting(c.row),
            c.data,
            c.length,
            "none found" if c.row.published is None else f"{c.row.published:.2f}",
            Figures.text(c.ours.best),
            Figures.text(c.ours.last),
            str(len(c.ours.seeds)),
            "" if c.difference is None else f"{c.difference:+.2f}",
            c.verdict,
        ])  # fmt: skip
    return markdown([*(["paper"] if with_paper else []), *header], lines)


def seeds(c: Comparison) -> str:
    """How many runs a gain is of: of the method, and of its baseline where that differs."""
    own = len(c.ours.seeds)
    return f"{own}" if own == c.gain.seeds else f"{own}, {c.gain.over} {c.gain.seeds}"


def order(c: Comparison) -> str:
    """Whether the method is better than its baseline, as the paper says; or why that is open."""
    if c.ok is not None:
        return "as published" if c.ok else "NOT as published"
    if not c.same_data:
        return "not judged: other data"
    return "not judged" if c.gain.published is None else "too small a gain to judge"


def gains_table(comparisons: Sequence[Comparison], with_paper: bool) -> list[str]:
    """Shortened runs: what each method adds to its baseline, ours and published.

    What is the same for all stands above the table.
    """
    columns = {
        "paper": [NAMES[c.row.paper] for c in comparisons],
        "method": [c.row.method for c in comparisons],
        "over": [c.gain.over for c in comparisons],
        "setting": [setting(c.row) for c in comparisons],
        "trained on": [c.data for c in comparisons],
        "epochs": [c.length for c in comparisons],
        "seeds": [seeds(c) for c in comparisons],
        "gain, ours": [
            f"{c.gain.ours:+.2f}" + ("" if math.isnan(c.gain.error) else f" ± {c.gain.error:.2f}")
            for c in comparisons
        ],
        "gain, published": [c.gain.published_text for c in comparisons],
        "order": [order(c) for c in comparisons],
    }
    if not with_paper:
        del columns["paper"]
    common = [
        f"{name}: {columns.pop(name)[0]}"
        for name in ("setting", "trained on", "epochs", "seeds")
        if len(set(columns[name])) == 1
    ]
    above = [f"All of them: {'; '.join(common)}.", ""] if common else []
    return above + markdown(list(columns), zip(*columns.values(), strict=True))


def remaining(comparisons: Sequence[Comparison], rows: Sequence[Row]) -> str:
    """One sentence on the published numbers that are not reproduced yet."""
    cells = [row for row in rows if row.status == "tested" and row.split == "all"]
    if not cells:
        return "The paper's tables were not found, so that there is no number to reproduce."
    reached = {c.row for c in comparisons if c.comparable and c.ok}
    missed = {c.row for c in comparisons if c.comparable and c.ok is False} & set(cells)
    left = [row.dataset for row in cells if row not in reached]
    counts = ", ".join(
        f"{left.count(name)} on {DATASETS[name]}" for name in DATASETS if name in left
    )
    outside = f"; {len(missed)} of them were trained at full length and missed" if missed else ""
    return (
        f"Not yet reproduced are {len(left)} of the {len(cells)} published numbers that can be "
        f"judged ({counts}){outside}."
    )


def test_images(comparisons: Sequence[Comparison], with_paper: bool) -> str:
    """Sentences on the test images: which they are, and of which runs that is not known."""
    known = dict.fromkeys(c.test for c in comparisons if c.test)
    untold = dict.fromkeys(
        f"{c.row.method} ({NAMES[c.row.paper]})" if with_paper else c.row.method
        for c in comparisons
        if c.untold
    )
    text = f" Test images: {'; '.join(known)}." if known else ""
    if untold:
        text += f" No fingerprint of the test images was kept of {', '.join(untold)}."
    return text


def by_length(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """Runs of the published length; and shortened ones that have a baseline, over all classes."""
    full = [c for c in comparisons if c.full_length]
    short = [c for c in comparisons if not c.full_length and c.gain and c.row.split == "all"]
    return full, first_of_each(short)


def section(
    comparisons: Sequence[Comparison], rows: Sequence[Row], with_paper: bool = False
) -> str:
    """What stands between the markers: full-length runs, then shortened ones, never together.

    ``rows``: those that the sentence on what is left counts.
    """
    full, short = by_length(comparisons)
    lines = ["**At full length**", ""]
    shown = first_of_each(c for c in full if c.row.split == "all") if with_paper else full
    if full:
        lines += [
            *full_table(shown, with_paper),
            "",
            "Top-1 accuracy in percent on the balanced test set, mean ± standard deviation over "
            "seeds. The difference is that of the best epoch, which the authors' programs report."
            + test_images(first_of_each(full), with_paper),
        ]
    else:
        lines.append(NOTHING)
    lines += ["", remaining(full, rows)]
    if len(shown) < sum(c.row.split == "all" for c in full):
        lines[-1] += (
            " Where the same runs stand for several numbers, as in an ablation, the first is shown "
            "here, and all in the paper's README."
        )
    if short:
        lines += [
            "",
            "**Shortened runs: the gain over the baseline.** With schedules stretched to fewer "
            "epochs, accuracies are not those of the papers; what a method adds to its "
            "baseline on the same images shows here, in points of top-1 at the best epoch (± its "
            "standard error, over several seeds). The order is judged where the published gain is "
            "more than half the larger tolerance of the two published numbers."
            + (MIXED if any(c.gain.source for c in short) else ""),
            "",
            *gains_table(short, with_paper),
        ]
    lines += ["", "Made by `python tests/regression/report.py` from `tests/regression/results/`."]
    return "\n".join(lines)


def replace_section(path: Path, text: str, name: str = "results") -> bool:
    """Put ``text`` between the markers of a file; False if it lacks the file or the markers."""
    begin, end = (mark.format(name=name) for mark in MARKS)
    content = path.read_text() if path.is_file() else ""
    if begin not in content or end not in content:
        return False
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    new = f"{before}{begin}\n{text}\n{end}{after}"
    if new != content:
        write_text(path, new)
    return True


def draw(figure, full: Sequence[Comparison], short: Sequence[Comparison]) -> None:
    """Reported against ours at full length, and below it the gains of shortened runs."""
    heights = [len(part) for part in (full, short) if part]
    figure.set_size_inches(11, 0.9 * len(heights) + 0.42 * sum(heights))
    axes = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if full:
        pairs = [
            (
                f"{c.row.method}, {setting(c.row)}\n{c.data}, {c.length} epochs",
                c.row.published if c.comparable else None,
                statistics.fmean(c.ours.best),
                statistics.stdev(c.ours.best) if len(c.ours.best) > 1 else 0.0,
            )
            for c in full
        ]
        draw_pairs(axes[0], pairs, ("reported", "ours, best epoch"), ".2f")
        axes.pop(0).set_xlabel("top-1 accuracy (%) at full length")
    if short:
        pairs = [
            (
                f"{c.row.method} over {c.gain.over}, {setting(c.row)}\n{c.data}, {c.length} epochs"
                + (f"\npublished: baseline of {c.gain.source}" if c.gain.source else ""),
                c.gain.published,
                c.gain.ours,
                0.0 if math.isnan(c.gain.error) else c.gain.error,
            )
            for c in short
        ]
        draw_pairs(axes[0], pairs, ("published", "ours"), "+.2f")
        axes[0].set_xlabel("gain in shortened runs (points of top-1)")


def draw_pairs(
    axes,
    pairs: Sequence[tuple[str, float | None, float, float]],
    names: tuple[str, str],
    number: str,
) -> None:
    """A line for each (label, reported, ours, spread of ours): two points, their values beside."""
    for y, (_, reported, ours, spread) in enumerate(reversed(pairs)):
        axes.errorbar(ours, y, xerr=spread, fmt="o", color="tab:blue", capsize=3)
        points = [(ours, spread, names[1], "tab:blue")]
        if reported is not None:
            axes.plot([reported, ours], [y, y], color="lightgrey", zorder=0)
            axes.plot(reported, y, "D", color="black")
            points.append((reported, 0.0, names[0], "black"))
        for rank, (x, width, name, color) in enumerate(sorted(points)):
            side = -1 if rank == 0 and len(points) == 2 else 1  # the lower one's words on the left
            axes.annotate(
                f"{name} {x:{number}}", (x + side * width, y), xytext=(7 * side, 0),
                textcoords="offset points", ha="left" if side > 0 else "right", va="center",
                color=color, fontsize=8,
            )  # fmt: skip
    values = [value for pair in pairs for value in pair[1:3] if value is not None]
    room = 0.35 * (max(values) - min(values)) + 2  # for the words on both sides
    axes.set_xlim(min(values) - room, max(values) + room)
    axes.set_yticks(range(len(pairs)), [pair[0] for pair in reversed(pairs)], fontsize=7)
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.grid(axis="x", alpha=0.3)


def first_of_each(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """One line for the same runs: the first of the published numbers that they stand for."""
    found = {}
    for c in comparisons:
        found.setdefault((c.row.id, c.data, c.length, c.ours), c)
    return list(found.values())


def pictured(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """What the picture of a paper shows: runs of the published length, and shortened ones."""
    full, short = by_length([c for c in comparisons if c.row.split == "all"])
    return first_of_each(full), short


def sections(results: Sequence[dict]) -> list[tuple[str, str, str]]:
    """What the results say in the READMEs: file, name of the markers and the text between them."""
    rows, overall, found = read_table(), [], []
    for paper in PAPERS:
        own = [row for row in rows if row.paper == paper]
        comparisons = compare(own, results, rows)
        overall += comparisons
        text = section(comparisons, own)
        if any(pictured(comparisons)):
            text += f"\n\n![Reported and ours](../{PICTURES}/{paper}.png)"
        found.append((f"{paper}/README.md", "results", text))
    beside = "\n".join(originals.section())
    beside += f"\n\n![Training losses of both programs]({PICTURES}/originals.png)"
    return [
        *found,
        ("README.md", "results", section(overall, rows, with_paper=True)),
        ("README.md", "originals", beside),
    ]


def rebuild(root: Path, results: Sequence[dict]) -> list[str]:
    """Rewrite tables and pictures below ``root``; returns what could not be written, in words."""
    rows = read_table()
    pictures = root / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    for paper in PAPERS:
        own = [row for row in rows if row.paper == paper]
        path, parts = pictures / f"{paper}.png", pictured(compare(own, results, rows))
        if any(parts):
            save_picture(path, draw, *parts)
        else:
            path.unlink(missing_ok=True)
    save_picture(pictures / "originals.png", originals.draw)
    return [
        f"{root / file}: not there, or without the lines {' and '.join(MARKS).format(name=name)}"
        for file, name, text in sections(results)
        if not replace_section(root / file, text, name)
    ]


def main() -> int:
    """Run the program; returns the exit code, 1 if a README has no place for its table.

    With what is no folder of results it ends with exit code 2, and the tables stay as they are.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    try:
        results = read_results(parser.parse_args().results)
    except UsageError as error:
        parser.error(str(error))
    missing = rebuild(ROOT, results)
    print(f"{len(results)} results")
    for line in missing:
        print(line)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
