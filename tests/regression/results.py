"""Results of runs that were really done, and what they say about the published numbers."""

from __future__ import annotations

import csv
import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.training.logs import write_text
from tests.regression.table import HERE, ROOT, STAND_INS, Row

RESULTS = HERE / "results"
CURVES = ("train_loss", "loss", "top1", "many", "medium", "few")  # kept of every epoch
SOURCES = ("ib_loss", "dbm_loss", "hmloss", "arbloss", "common", "datasets")


def key(row: Row, data: str, epochs: int | None, seed: int, amp: str = "none") -> str:
    """Name of a run, of its scratch folder and of its result file."""
    name = f"{row.id}_{data or row.dataset}_e{epochs or row.epochs}_s{seed}"
    return name if amp == "none" else f"{name}_{amp}"


def code_sha256() -> str:
    """Fingerprint of the code that a number comes from, also where it is no git checkout."""
    digest = hashlib.sha256()
    files = [
        path
        for top in SOURCES
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".py", ".yaml", ".json") and path.is_file()
    ]
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def from_report(
    path: Path,
    row: Row,
    *,
    data: str,
    epochs: int,
    seed: int,
    command: str,
    settings: Sequence[dict],
) -> dict:
    """The result to keep of a program's ``report.json`` and the ``metrics.csv`` beside it.

    ``command`` is the command line with {root} and {out} still in.
    """
    report = json.loads(path.read_text())
    with open(path.with_name("metrics.csv"), newline="") as file:
        history = list(csv.DictReader(file))
    curves = {
        name: [_rounded(float(epoch[name])) for epoch in history]
        for name in CURVES
        if all(epoch.get(name) for epoch in history)
    }
    return {
        "id": row.id,
        "seed": seed,
        "epochs": epochs,
        "published_epochs": row.epochs,
        "data": {"dataset": data or row.dataset}
        | {name: value for name, value in report.items() if name.endswith("_sha256")},
        "command": command,
        "settings": list(settings),
        "commit": report["versions"]["commit"],
        "code_sha256": code_sha256(),
        "versions": {k: v for k, v in report["versions"].items() if k != "commit"},
        "wall_time_s": round(report["wall_time_s"], 1),
        "cls_num_list": report["cls_num_list"],
        "final": _figures(report["final"]),
        "best": _figures(report["best"]),
        "curves": curves,
    }


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _figures(row: dict) -> dict:
    """The scalars of an epoch and its class accuracies."""
    kept = {name: _rounded(value) for name, value in row.items() if not isinstance(value, list)}
    if "cls_acc" in row:
        kept["cls_acc"] = [round(value, 4) for value in row["cls_acc"]]
    return kept


def write_result(path: Path, result: dict) -> None:
    """Write a result atomically, a line for each key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_results(folder: Path = RESULTS) -> list[dict]:
    """All stored results, ordered by file name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@dataclass(frozen=True)
class Figures:
    """Accuracy of a row over seeds, in percent: of the best and of the last epoch."""

    seeds: tuple[int, ...]
    best: tuple[float, ...]
    last: tuple[float, ...]

    def of(self, score: str) -> tuple[float, ...]:
        return self.best if score == "best" else self.last

    @staticmethod
    def text(values: Sequence[float]) -> str:
        """Mean, and the standard deviation of the sample if there are several values."""
        mean = f"{statistics.fmean(values):.2f}"
        return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def figures(row: Row, results: Iterable[dict]) -> Figures | None:
    """What the results of this row's command say about this row's cell; None without any."""
    name = row.metric if row.split == "all" else row.split
    found = sorted(
        (r["seed"], r["best"][name], r["final"][name])
        for r in results
        if r["best"].get(name) is not None and r["final"].get(name) is not None
    )
    return Figures(*zip(*found, strict=True)) if found else None


@dataclass(frozen=True)
class Comparison:
    """A row next to our runs of it on one data set, at one length.

    Attributes:
        data: name of the data set and start of the training pixels' fingerprint.
        verdict: in words. ok: True or False where something was judged, else None.
    """

    row: Row
    data: str
    epochs: int
    ours: Figures
    difference: float | None
    verdict: str
    ok: bool | None

    @property
    def full_length(self) -> bool:
        return self.epochs == self.row.epochs


def data_label(result: dict) -> str:
    """Data set and fingerprint: results on different pixels never share a line."""
    facts = result["data"]
    label = facts["dataset"]
    if "pixels_sha256" in facts:
        label += f" {facts['pixels_sha256'][:8]}"
    return label


def compare(rows: Sequence[Row], results: Sequence[dict], table: Sequence[Row]) -> list[Comparison]:
    """Compare every row that has results; ``table`` holds the rows' baselines."""
    groups: dict[tuple[str, str, int], list[dict]] = {}
    for result in results:
        group = (result["id"], data_label(result), result["epochs"])
        groups.setdefault(group, []).append(result)
    found = []
    for row in rows:
        for (id_, data, epochs), members in groups.items():
            if id_ != row.id:
                continue
            ours = figures(row, members)
            if ours is None:
                continue
            baseline = _baseline(row, table)
            rival = groups.get((row.better_than, data, epochs), [])
            found.append(_compare(row, data, epochs, ours, baseline, rival))
    return found


def _baseline(row: Row, table: Sequence[Row]) -> Row | None:
    """The row that this one claims to beat, from the same source if it is there."""
    candidates = [
        other
        for other in table
        if other.id == row.better_than
        and other.split == row.split
        and other.status == "tested"
        and other.published is not None
    ]
    same = [other for other in candidates if other.source == row.source]
    return (same or candidates or [None])[0]


def _compare(
    row: Row, data: str, epochs: int, ours: Figures, baseline: Row | None, rival: Sequence[dict]
) -> Comparison:
    values = ours.of(row.score)
    mean = statistics.fmean(values)
    difference = None if row.published is None else mean - row.published
    judged, ok = [], []
    if row.status == "misprint":
        judged.append("misprint, not judged")
    elif row.status != "tested":
        judged.append("recorded, not judged")
    else:
        if data.split()[0] not in STAND_INS and epochs == row.epochs:
            within = abs(difference) <= row.tolerance
            side = "within" if within else "above" if difference > 0 else "below"
            judged.append(f"{side} ± {row.tolerance:g}")
            ok.append(within)
        claim = row.published - baseline.published if baseline else 0.0
        if claim > row.tolerance / 2 and rival:
            gain = mean - statistics.fmean(figures(row, rival).of(row.score))
            holds = gain > 0
            method = baseline.method
            judged.append(
                f"{'better' if holds else 'NOT better'} than {method} "
                f"({gain:+.2f}, published {claim:+.2f})"
            )
            ok.append(holds)
    return Comparison(
        row, data, epochs, ours, difference, "; ".join(judged) or "for orientation",
        all(ok) if ok else None,
    )  # fmt: skip


def text_table(comparisons: Sequence[Comparison]) -> str:
    """A table for the terminal."""
    header = ("row", "split", "data", "epochs", "seeds", "reported", "ours, best", "ours, last",
              "difference", "verdict")  # fmt: skip
    lines = [header] + [
        (
            c.row.id,
            c.row.split,
            c.data,
            str(c.epochs) if c.full_length else f"{c.epochs} of {c.row.epochs}",
            str(len(c.ours.seeds)),
            "none" if c.row.published is None else f"{c.row.published:.2f}",
            Figures.text(c.ours.best),
            Figures.text(c.ours.last),
            "" if c.difference is None else f"{c.difference:+.2f}",
            c.verdict,
        )
        for c in comparisons
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
