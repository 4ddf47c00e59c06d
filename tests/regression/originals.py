"""The authors' own program beside ours, on the same files, with the same flags and seeds.

``originals/results.csv`` and ``curves.csv`` hold what the published code of IB-Loss reached on a
CPU. It was given what it needs to run there at all on a current PyTorch: ``.cuda()`` without
effect, ``view`` that falls back to ``reshape`` in the top-k, ``np.float`` and ``np.int``, and "the
file is there" for torchvision's checksum test. What it computes was left alone. The JSON files
beside them are our runs (IB of seeds 2 and 3 goes on from CE's checkpoint after epoch 8, the same
run up to there; the epochs of seed 1 were not kept).
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.regression.results import HERE, Figures, difference_of_means, read_results

FOLDER = HERE / "originals"
EPOCHS, START_IB = 12, 8  # of every run; the first epoch of IB
SEEDS = 3  # of each method; the last epoch of one run of the authors' program was not kept
# Runs of curves.csv, and what stands for them here.
RUNS = {"IB": "theirs", "IB from our CE epoch 8": "theirs from ours"}
Curves = dict[int, dict[int, float]]  # seed -> epoch -> training loss


@dataclass(frozen=True)
class Beside:
    """Top-1 accuracies of both programs over seeds, of their best or their last epoch."""

    method: str
    epoch: str
    theirs: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def difference(self) -> tuple[float, float]:
        """Of the means, ours less theirs, and its standard error."""
        return difference_of_means(self.ours, self.theirs)


def _lines(name: str, folder: Path) -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def accuracies(folder: Path = FOLDER) -> list[Beside]:
    """Both programs' figures, of CE and IB."""
    theirs, ours = _lines("results.csv", folder), read_results(folder)
    found = []
    for method in ("CE", "IB"):
        lines = [line for line in theirs if f"--loss_type {method} " in line["flags"]]
        runs = [run for run in ours if run["id"].endswith(f"-{method.lower()}")]
        for epoch, column, key in (("best", "best_top1", "best"), ("last", "last_top1", "final")):
            values = tuple(float(line[column]) for line in lines if line[column])
            found.append(Beside(method, epoch, values, tuple(run[key]["top1"] for run in runs)))
    return found


def losses(folder: Path = FOLDER) -> dict[str, Curves]:
    """Training losses of IB's runs: "theirs", "ours", and "theirs from ours".

    The last begins at epoch ``START_IB``, with the weights of our run of the same seed.
    """
    found: dict[str, Curves] = {"theirs": {}, "theirs from ours": {}, "ours": {}}
    for line in _lines("curves.csv", folder):
        epochs = found[RUNS[line["run"]]].setdefault(int(line["seed"]), {})
        epochs[int(line["epoch"])] = float(line["train_loss"])
    for run in read_results(folder):
        if run["id"].endswith("-ib") and run["curves"]:
            found["ours"][run["seed"]] = dict(enumerate(run["curves"]["train_loss"]))
    return found


def mean(curves: Curves) -> dict[int, float]:
    """Mean over the seeds, epoch by epoch."""
    first = next(iter(curves.values()))
    return {e: statistics.fmean(epochs[e] for epochs in curves.values()) for e in first}


def section() -> list[str]:
    """The lines of the README's section."""
    lines = [
        "| method | epoch | authors' program | ours | difference | in standard errors |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for pair in accuracies():
        difference, error = pair.difference
        lines.append(
            f"| {pair.method} | {pair.epoch} | {_text(pair.theirs)} | {_text(pair.ours)} | "
            f"{difference:+.2f} ± {error:.2f} | "
            f"{difference / error:+.1f} |"
        )
    curves = losses()
    theirs, phase, ours = map(mean, curves.values())
    one, other = curves["theirs"].values()
    lines += [
        "",
        "The training loss varies far less from run to run than an accuracy. IB's, epoch by epoch, "
        f"means of two seeds ({_seeds(curves['theirs'])} of the authors' program, "
        f"{_seeds(curves['ours'])} of ours); and of the authors' IB phase started from our weights "
        f"after epoch {START_IB}, where nothing but the random order and crops of the images "
        "differs:",
        "",
        f"| epoch | {' | '.join(str(e + 1) for e in range(EPOCHS))} |",
        f"| --- |{' --- |' * EPOCHS}",
        _row("authors' program", theirs),
        _row("ours", ours),
        _row("ours to theirs", ours, theirs),
        _row("their second seed to their first", other, one),
        _row("authors' program from our weights", phase),
        _row("ours to that", {e: ours[e] for e in phase}, phase),
    ]
    return lines


def _text(values: Sequence[float]) -> str:
    """Mean and deviation, with the number of seeds where some are missing."""
    text = Figures.text(values)
    return text if len(values) == SEEDS else f"{text} ({len(values)} seeds)"


def _seeds(curves: Curves) -> str:
    return " and ".join(map(str, sorted(curves)))


def _row(name: str, curve: dict[int, float], reference: dict[int, float] | None = None) -> str:
    """A line of losses, or of their difference to a reference in percent."""
    cells = {e: f"{loss:.3f}" for e, loss in curve.items()}
    if reference is not None:
        cells = {e: f"{100 * (loss / reference[e] - 1):+.1f} %" for e, loss in curve.items()}
    return f"| {name} | {' | '.join(cells.get(e, '') for e in range(EPOCHS))} |"


def draw(figure) -> None:
    """Both programs' training losses, a line for each run: cross entropy, then IB."""
    figure.set_size_inches(9, 4)
    looks = {
        "theirs": ("black", "authors' program"),
        "theirs from ours": ("tab:orange", "authors' program from our weights"),
        "ours": ("tab:blue", "ours"),
    }
    phases = {"cross entropy": range(START_IB), "influence-balanced loss": range(START_IB, EPOCHS)}
    curves = losses()
    for axes, (title, epochs) in zip(figure.subplots(1, 2), phases.items(), strict=True):
        height = 0.95
        for name, (color, label) in looks.items():
            runs = [[run.get(e) for e in epochs] for run in curves[name].values()]
            if None in runs[0]:
                continue
            for run in runs:
                axes.plot([e + 1 for e in epochs], run, ".-", color=color, linewidth=1)
            axes.text(
                0.97, height, f"{label}, seeds {_seeds(curves[name])}", color=color, fontsize=8,
                ha="right", va="top", transform=axes.transAxes,
            )  # fmt: skip
            height -= 0.08
        axes.set(xlabel="epoch", ylabel="training loss", title=title)
        axes.set_xticks([e + 1 for e in epochs])
        axes.grid(alpha=0.3)
