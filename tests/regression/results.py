"""Results of runs that were really done, and what they say about the published numbers."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.training.errors import UsageError
from common.training.logs import write_text
from datasets.listfile import PUBLISHED
from tools.table import Row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# Of training pixels and of test pixels (imb_type "test"), and what they are in words.
FINGERPRINTS = HERE / "fingerprints.csv"
# Training images and classes of what is read from lists: no fingerprint of them is known.
LISTS = {
    "imagenet_lt": PUBLISHED["ImageNet_LT_train.txt"],
    "inaturalist2018": PUBLISHED["iNaturalist18_train.txt"],
}
CURVES = ("train_loss", "loss", "top1", "many", "medium", "few")  # kept of every epoch
NEEDED = ("id", "seed", "epochs", "data", "settings", "final", "best")  # of a result


def key(row: Row, data: str, epochs: int | None, seed: int, amp: str = "none") -> str:
    """Name of a run, of its scratch folder and of its result file."""
    name = f"{row.id}_{data or row.dataset}_e{epochs or row.epochs}_s{seed}"
    return name if amp == "none" else f"{name}_{amp}"


def from_report(
    path: Path,
    row: Row,
    *,
    data: str,
    epochs: int,
    seed: int,
    command: str,
    settings: Sequence[dict],
    code: str,
) -> dict:
    """The result to keep of a program's ``report.json`` and the ``metrics.csv`` beside it.

    ``command`` is the command line with {root} and {out} still in, ``settings`` what each program
    makes of its own, ``code`` the ``code_sha256`` when it began.
    """
    report = json.loads(path.read_text())
    *earlier, last = settings
    if "margin_norm" in last:  # the data decide where the command line does not
        last = last | {"margin_norm": report["settings"]["margin_norm"]}
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
        "settings": [*earlier, last],
        "commit": report["versions"]["commit"],
        "code_sha256": code,
        "versions": {k: v for k, v in report["versions"].items() if k != "commit"},
        "wall_time_s": round(report["wall_time_s"], 1),
        "cls_num_list": report["cls_num_list"],
        "final": _figures(report["final"], report),
        "best": _figures(report["best"], report),
        "curves": curves,
    }


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _figures(row: dict, report: dict) -> dict:
    """The scalars of an epoch, in percent, and its class accuracies, as fractions."""
    kept = {name: _rounded(value) for name, value in row.items() if not isinstance(value, list)}
    if "cls_acc" in row:
        scale = 0.01 if "unit" in report else 1  # reports once had fractions
        kept["cls_acc"] = [
            None if value is None else round(value * scale, 4)  # a class without test images
            for value in row["cls_acc"]
        ]
    return kept


def write_result(path: Path, result: dict) -> None:
    """Write a result atomically, a line for each key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_result(path: Path) -> dict:
    """One stored result.

    Raises:
        UsageError: the file is none.
    """
    try:
        result = json.loads(path.read_text())
    except ValueError as error:  # of json, and of bytes that are no text
        raise UsageError(f"{path}: not a result ({error}); remove it and train it again") from None
    if lacking := [name for name in NEEDED if name not in result]:
        raise UsageError(f"{path}: not a result, without {lacking[0]}; remove it")
    return result


def read_results(folder: Path = RESULTS) -> list[dict]:
    """All stored results, ordered by file name.

    Raises:
        UsageError: no such folder, or a file that is no result.
    """
    if not folder.is_dir():
        raise UsageError(f"--results {folder}: no such folder")
    return [read_result(path) for path in sorted(folder.glob("*.json"))]


def other_code(result: dict, code: str) -> str | None:
    """Of which code a result is, in words; None if all of it is of ``code``, a ``code_sha256``.

    A result is a measurement of its commit, and says nothing about what was changed since.
    """
    commit = result.get("commit", "unknown")  # several, if the run went on with other code
    if result.get("code_sha256") == code and "," not in commit:
        return None
    return f"of other code (commit {commit})"


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


@cache
def read_fingerprints() -> dict[str, dict[str, str]]:
    """SHA-256 of training or test pixels -> its line of ``fingerprints.csv``."""
    with open(FINGERPRINTS, newline="") as file:
        return {line["pixels_sha256"]: line for line in csv.DictReader(file)}


def trained_on(result: dict) -> tuple[str, str]:
    """What a result was trained on: in words, and as a data set of the table.

    Pixels that no fingerprint names are called unknown. They count as the data set under whose name
    the program read them: it has looked at the files (of CIFAR: at their checksums).
    """
    name, pixels = result["data"]["dataset"], result["data"].get("pixels_sha256")
    if known := read_fingerprints().get(pixels):
        return known["words"], known["dataset"]
    return name if pixels is None else f"{name}, unknown pixels {pixels[:8]}", name


def is_the_rows_subset(result: dict, row: Row) -> bool:
    """Whether a result on the row's data set was trained on the part of it that the row names.

    Known pixels tell; of others the sizes of the classes, if the result has them.
    """
    if known := read_fingerprints().get(result["data"].get("pixels_sha256")):
        return (known["imb_type"], known["imb_ratio"]) == (row.imb_type, row.imb_ratio)
    counts = result.get("cls_num_list")
    if counts is None:
        return True
    if row.dataset in LISTS:
        return (sum(counts), len(counts)) == LISTS[row.dataset]
    if row.imb_type in ("exp", "step"):  # the smallest class is rounded to whole images
        return abs(max(counts) / float(row.imb_ratio) - min(counts)) < 1
    return True


def subset_words(result: dict) -> str:
    """The part of a data set that is not the row's, in words."""
    if known := read_fingerprints().get(result["data"].get("pixels_sha256")):
        return f"{known['imb_type']} {known['imb_ratio']}"
    counts = result["cls_num_list"]
    images = f"{sum(counts):,} images of {len(counts):,} classes"
    return f"{images}, {max(counts):,} to {min(counts):,}"


def tested_on(result: dict) -> dict[str, str] | None:
    """The line of ``fingerprints.csv`` of the test images; None if they are unknown."""
    return read_fingerprints().get(result["data"].get("test_pixels_sha256"))


def is_the_rows_test_set(result: dict, row: Row) -> bool:
    """Whether a result may be of the row's test images.

    It may where no fingerprint of its own, or of the row's, is there; and, as ``trained_on`` says,
    where the program read them under the row's name.
    """
    pixels = result["data"].get("test_pixels_sha256")
    if pixels is None:
        return True
    if known := tested_on(result):
        return (known["dataset"], known["imb_type"]) == (row.dataset, "test")
    lines = read_fingerprints().values()
    told = any((line["dataset"], line["imb_type"]) == (row.dataset, "test") for line in lines)
    return not told or result["data"]["dataset"] == row.dataset


def precision(result: dict) -> str:
    """``none`` (float32), ``bf16`` or ``fp16``."""
    return result["settings"][-1].get("amp", "none")


def difference_of_means(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """First less second, and its standard error (NaN where a single value shows no spread)."""
    difference = statistics.fmean(first) - statistics.fmean(second)
    if min(len(first), len(second)) < 2:
        return difference, math.nan
    squares = (statistics.variance(values) / len(values) for values in (first, second))
    return difference, math.sqrt(sum(squares))


@dataclass(frozen=True)
class Gain:
    """A method against the one that its paper compares it with, trained on the same pixels.

    Attributes:
        over, seeds: the other method, and how many runs of it there are.
        ours, error: our gain and its standard error. published: the published number less that of
            the other method, or None.
        source: where the other method's number is from; empty if from where the method's own is.
        tolerance: the larger one of the two numbers, if they are judged.
    """

    over: str
    seeds: int
    ours: float
    error: float
    published: float | None
    source: str
    tolerance: float | None

    @property
    def published_text(self) -> str:
        """The published gain; where no paper publishes it, with the source of the baseline."""
        text = "none found" if self.published is None else f"{self.published:+.2f}"
        return f"{text}, baseline of {self.source}" if self.source else text


@dataclass(frozen=True)
class Comparison:
    """A row next to our runs of it on one data set, at one length and precision.

    Attributes:
        data: what it was trained on, in words. epochs, amp: length and precision.
        test: what it was tested on, in words; empty if that is unknown. untold: no fingerprint of
            the test images was kept of some of the runs.
        same_data: trained and tested on the images of the published number, as its gain is to be
            judged.
        comparable: trained as the published number was, which therefore is the one to reach.
        difference: to that number; None where not comparable.
        verdict: in words. ok: True or False where something was judged, else None.
    """

    row: Row
    data: str
    epochs: int
    amp: str
    test: str
    untold: bool
    ours: Figures
    same_data: bool
    comparable: bool
    difference: float | None
    gain: Gain | None
    verdict: str
    ok: bool | None

    @property
    def full_length(self) -> bool:
        return self.epochs == self.row.epochs

    @property
    def length(self) -> str:
        """Epochs, with the precision where it is not float32."""
        text = str(self.epochs) if self.full_length else f"{self.epochs} of {self.row.epochs}"
        return text if self.amp == "none" else f"{text}, {self.amp}"


def compare(rows: Sequence[Row], results: Sequence[dict], table: Sequence[Row]) -> list[Comparison]:
    """Compare every row that has results; ``table`` holds the rows' baselines.

    Results on different images, of different length or precision never share a comparison.
    """
    groups: dict[tuple, list[dict]] = {}
    for result, conditions in zip(results, _conditions(results), strict=True):
        groups.setdefault((result["id"], conditions), []).append(result)
    found = []
    for row in rows:
        for (id_, conditions), members in groups.items():
            if id_ != row.id or (ours := figures(row, members)) is None:
                continue
            rivals = groups.get((row.better_than, conditions), [])
            gain = _gain(row, ours, _baseline(row, table), rivals)
            found.append(_compare(row, members, ours, gain))
    return found


def _conditions(results: Sequence[dict]) -> list[tuple]:
    """For each result what it has to share with another one: length, precision and images.

    A result that has fewer fingerprints of its data than others (older ones have none of the test
    images) is taken to be on the images of those that agree with it, if these agree, too.
    """
    how = [(result["data"]["dataset"], result["epochs"], precision(result)) for result in results]
    images = [
        frozenset((k, v) for k, v in result["data"].items() if k.endswith("_sha256"))
        for result in results
    ]
    found = []
    for same, own in zip(how, images, strict=True):
        alike = (more for other, more in zip(how, images, strict=True) if other == same)
        fuller = {more for more in alike if own <= more}
        fullest = [one for one in fuller if not any(one < other for other in fuller)]
        found.append((same, fullest[0] if len(fullest) == 1 else own))
    return found


def _baseline(row: Row, table: Sequence[Row]) -> Row | None:
    """The row that this one claims to beat, from the same source if it is there."""
    candidates = [
        other for other in table if other.id == row.better_than and other.split == row.split
    ]
    tested = [other for other in candidates if other.status == "tested"]
    same = [other for other in tested if other.source == row.source]
    near = [other for other in tested if publication(other) == publication(row)]
    return (same or near or tested or candidates or [None])[0]


def publication(row: Row) -> str:
    """The document that a number is from, without the table in it, as short as it is unique."""
    return row.source.partition(",")[0].rpartition("/")[2].strip()


def _gain(row: Row, ours: Figures, baseline: Row | None, rivals: Sequence[dict]) -> Gain | None:
    theirs = figures(row, rivals)
    if baseline is None or theirs is None:
        return None
    tested = row.status == baseline.status == "tested"
    return Gain(
        baseline.method,
        len(theirs.seeds),
        *difference_of_means(ours.of(row.score), theirs.of(row.score)),
        row.published - baseline.published if tested else None,
        publication(baseline) if tested and publication(baseline) != publication(row) else "",
        max(row.tolerance, baseline.tolerance) if tested else None,
    )


def _compare(row: Row, results: Sequence[dict], ours: Figures, gain: Gain | None) -> Comparison:
    result = max(results, key=lambda result: len(result["data"]))  # with the most fingerprints
    words, dataset = trained_on(result)
    epochs, amp = result["epochs"], precision(result)
    same_data = dataset == row.dataset
    if same_data and not is_the_rows_subset(result, row):
        words, same_data = f"{words} ({subset_words(result)})", False
    test = known["words"] if (known := tested_on(result)) else ""
    if same_data and not is_the_rows_test_set(result, row):
        pixels = result["data"]["test_pixels_sha256"]
        words += f", tested on {test}" if test else f", unknown test images {pixels[:8]}"
        same_data = False
    untold = any(
        "pixels_sha256" in r["data"] and "test_pixels_sha256" not in r["data"] for r in results
    )
    comparable = same_data and epochs == row.epochs and amp == "none"
    difference = None
    if comparable and row.published is not None:
        difference = statistics.fmean(ours.of(row.score)) - row.published
    judged, ok = [], []
    if row.status == "misprint":
        judged.append("misprint, not judged")
    elif row.status != "tested":
        judged.append("recorded, not judged")
    else:
        if comparable:
            within = abs(difference) <= row.tolerance
            side = "within" if within else "above" if difference > 0 else "below"
            judged.append(f"{side} ± {row.tolerance:g}")
            ok.append(within)
        elif not same_data:
            judged.append("not judged: other data")
        elif epochs == row.epochs:
            judged.append(f"not judged: {amp}")
        stated = gain.published if gain and same_data else None
        if stated is not None and stated > gain.tolerance / 2:
            judged.append(
                f"{'better' if gain.ours > 0 else 'NOT better'} than {gain.over} "
                f"({gain.ours:+.2f}, published {gain.published_text})"
            )
            ok.append(gain.ours > 0)
    return Comparison(
        row, words, epochs, amp, test, untold, ours, same_data, comparable, difference, gain,
        "; ".join(judged) or "for orientation", all(ok) if ok else None,
    )  # fmt: skip


def _reported(comparison: Comparison) -> str:
    if not comparison.full_length:  # not to be set beside the accuracy of a shortened run
        return ""
    published = comparison.row.published
    return "none" if published is None else f"{published:.2f}"


def text_table(comparisons: Sequence[Comparison]) -> str:
    """A table for the terminal."""
    header = ("row", "split", "data", "epochs", "seeds", "reported", "ours, best", "ours, last",
              "difference", "verdict")  # fmt: skip
    lines = [header] + [
        (
            c.row.id,
            c.row.split,
            c.data,
            c.length,
            str(len(c.ours.seeds)),
            _reported(c),
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
