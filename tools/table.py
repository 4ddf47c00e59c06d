"""The table of reported accuracies, and the command lines that reproduce them."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.programs import PROGRAMS

REPORTED = Path(__file__).with_name("reported.csv")
PAPERS = ("ib_loss", "dbm_loss", "hmloss", "arbloss")
NPZ = "npz"  # CIFAR itself, from {root}/cifar10.npz and {root}/cifar100.npz
# Sets that take the place of CIFAR-10, ten classes: the programs' name of each and its image size.
# 16x16 is a quarter of the work of 32x32, for runs on a CPU.
STAND_INS = {
    "digits": ("digits", 32),
    "imagefolder": ("imagefolder", 32),
    "imagefolder16": ("imagefolder", 16),
}


@dataclass(frozen=True)
class Row:
    """A cell of a published table, and the command that trains it.

    Attributes:
        id: names the command; rows that differ in ``split`` or ``source`` alone share it.
        split: ``all``, or the classes with ``many``, ``medium`` or ``few`` training images.
        metric: ``top1``, or ``bacc`` (balanced accuracy), in percent.
        published: the value, or None.
        epochs: length of the published run. score: the epoch that counts, ``best`` or ``last``.
        tolerance: how far the mean over seeds may be off, in points; None: not judged.
        better_than: id of the row that the paper compares with.
        status: ``tested``, ``misprint``, ``unverified`` (a number nobody has seen in a document)
            or ``no_published_number``.
        command: from the repository root, one or several joined by ``&&``, with the placeholders
            {root} (data folder), {dataset}, {seed} and {out}.
    """

    id: str
    paper: str
    method: str
    dataset: str
    imb_type: str
    imb_ratio: str
    split: str
    metric: str
    published: float | None
    source: str
    confidence: str
    epochs: int
    score: str
    tolerance: float | None
    tolerance_reason: str
    better_than: str
    status: str
    note: str
    command: str


def read_table(path: Path = REPORTED) -> list[Row]:
    """All rows, in the order of the file."""
    with open(path, newline="") as file:
        return [
            Row(
                **fields
                | {
                    "published": float(fields["published"]) if fields["published"] else None,
                    "tolerance": float(fields["tolerance"]) if fields["tolerance"] else None,
                    "epochs": int(fields["epochs"]),
                }
            )
            for fields in csv.DictReader(file)
        ]


def select(
    rows: Sequence[Row],
    *,
    papers: Sequence[str] = (),
    datasets: Sequence[str] = (),
    ratios: Sequence[float] = (),
    methods: Sequence[str] = (),
    words: str = "",
) -> list[Row]:
    """Rows that match; an empty condition matches all.

    Args:
        methods: whole names, in any case. words: each must occur in the id.
    """
    methods = [method.lower() for method in methods]
    return [
        row
        for row in rows
        if (not papers or row.paper in papers)
        and (not datasets or row.dataset in datasets)
        and (not ratios or float(row.imb_ratio) in ratios)
        and (not methods or row.method.lower() in methods)
        and all(word in row.id for word in words.split())
    ]


def commands(
    row: Row,
    data: str = "",
    epochs: int | None = None,
    channels_last: bool = False,
    amp: str = "none",
) -> list[list[str]]:
    """The command lines of a run as lists of words, their placeholders still in.

    Args:
        data: one of ``STAND_INS`` to train on that instead of CIFAR-10; ``npz``: CIFAR from the
            files {root}/cifar10.npz and {root}/cifar100.npz; empty: as published.
        epochs: length of a shortened run.
        channels_last, amp: memory format and precision.
    """
    dataset, size = STAND_INS.get(data, (data or row.dataset, 32))
    found = []
    for command in row.command.split(" && "):
        words = shlex.split(command)
        program = PROGRAMS[words[1]]
        if data in STAND_INS:
            words += shlex.split(program.data)
        if data == NPZ:
            words += shlex.split(program.data.replace("{root}", f"{{root}}/{row.dataset}.npz"))
        if size != 32:
            words += shlex.split(program.size.replace("{size}", str(size)))
        if epochs is not None and epochs != row.epochs:
            words += shlex.split(program.epochs.replace("{epochs}", str(epochs)))
        if channels_last:
            words += shlex.split(program.memory)
        if amp != "none":
            words += shlex.split(program.amp.replace("{amp}", amp))
        found.append([word.replace("{dataset}", dataset) for word in words])
    return found
