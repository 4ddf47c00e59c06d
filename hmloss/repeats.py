"""Several runs of one setting: which checkpoint belongs to which, their seeds, their summary."""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from common.training.checkpoint import find, remove_parts
from common.training.errors import UsageError
from common.training.files import Files
from common.training.launch import Process
from common.training.logs import write_csv
from common.training.record import Record
from common.training.seeds import choose_seed
from datasets.classes import some

COLUMNS = ("best_top1", "top1", "many", "medium", "few")  # of the CIFAR and iNaturalist summaries


def resume_flags(resume: str, latest: Sequence[Path]) -> list[str]:
    """What ``--resume`` means to each run, given the checkpoint that each would write.

    ``auto`` goes for all of them. A path belongs to the run whose folder it lies in; the others
    then go on from their own checkpoints, so that finished runs stay and later ones follow.

    Raises:
        UsageError: the path does not exist, or belongs to none of several runs.
    """
    if resume in ("", "auto"):
        return [resume] * len(latest)
    folder = find(resume, latest[0]).resolve().parent
    own = [path.parent.resolve() == folder for path in latest]
    if len(latest) == 1:
        own = [True]
    if not any(own):
        raise UsageError(
            f"--resume {resume}: belongs to none of these {len(latest)} runs; "
            "give --num_runs 1, or 'auto' to go on with all of them"
        )
    return [resume if mine else "auto" for mine in own]


def claim(
    files: Sequence[Files],
    flags: Sequence[str],
    args: Namespace,
    process: Process,
    summaries: Sequence[Path] = (),
) -> list[Record]:
    """Lock the log and checkpoint folders of all runs before the first of them trains.

    They stay locked as long as the records that are returned; the runs' own records are to know
    that they are ``claimed`` (``Record.resume``). What a kill left of the runs' ``summaries``,
    beside which others may lie, is removed.

    Raises:
        UsageError: see ``Record.claim``.
    """
    records = [Record(its_files, process, vars(args)) for its_files in files]
    for record, flag in zip(records, flags, strict=True):
        record.claim(flag)
    if process.is_main:
        for summary in summaries:
            remove_parts(summary.parent, of=summary.name)
    return records


def left_out(resume: str, latest: Sequence[Path]) -> list[str]:
    """A note on the runs that ``--evaluate --resume auto`` leaves out: all but the first.

    ``latest``: the checkpoint of each.
    """
    others = [str(path) for path in latest[1:] if path.is_file()]
    if resume != "auto" or not others:
        return []
    return [
        f"note: --evaluate --resume auto evaluates {latest[0]} alone; the other runs by --resume "
        f"with their checkpoint: {some(others)}"
    ]


def run_seed(run: int, *, user: int | None, recorded: int | None, first: int | None) -> int:
    """Seed of a run: those of successive runs count up.

    Args:
        user: ``--seed``, the seed of run 0; None: not given.
        recorded: the seed in the checkpoint that this run goes on from, if any.
        first: the seed of run 0 as an earlier run tells it; None: unknown, draw one.
    """
    if user is None and recorded is not None:
        return recorded
    first = first if user is None else user
    return choose_seed(None if first is None else first + run)


def write_summary(path: Path, rows: Sequence[dict]) -> None:
    """Write a csv of the runs, below them mean and population standard deviation (authors')."""
    spread = {name: _mean_and_std(rows, name) for name in rows[0] if name not in ("run", "seed")}
    mean = {"run": "mean", **{name: values[0] for name, values in spread.items()}}
    std = {"run": "std", **{name: values[1] for name, values in spread.items()}}
    write_csv(path, [_six_digits(row) for row in (*rows, mean, std)])


def summary_line(rows: Sequence[dict], names: Sequence[str], digits: int = 2) -> str:
    """Mean ± standard deviation of some columns, for the screen; empty ones are left out."""
    spread = {name: _mean_and_std(rows, name) for name in names}
    parts = [
        f"{name} {mean:.{digits}f} ± {std:.{digits}f}"
        for name, (mean, std) in spread.items()
        if not math.isnan(mean)
    ]
    return f"{len(rows)} run{'s' if len(rows) > 1 else ''}: {', '.join(parts)}"


def _mean_and_std(rows: Sequence[dict], name: str) -> tuple[float, float]:
    """Of the runs that have the figure."""
    values = [row[name] for row in rows if not math.isnan(row[name])]
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.pstdev(values)


def _six_digits(row: dict) -> dict:
    numbers = {k: f"{v:.6g}" for k, v in row.items() if isinstance(v, float) and not math.isnan(v)}
    return {**row, **numbers}
