"""The table of reported accuracies, and the command lines that reproduce them."""

from __future__ import annotations

import csv
import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPORTED = HERE / "reported.csv"
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


@dataclass(frozen=True)
class Program:
    """How a program is told what differs from the published run; the last mention of a flag counts.

    Attributes:
        data: words that set data set and folder. size: words for images of another size than 32.
        epochs: words for a shortened, stretched run.
        memory, amp: words for channels-last memory and for half precision.
        resume: words that go on from the run's own checkpoint.
        parse: the program's own reading of a command line.
    """

    data: str
    parse: Callable[[list[str]], object]
    size: str = "--image_size {size}"
    epochs: str = "--epochs {epochs} --stretch_schedule"
    memory: str = "--channels_last"
    amp: str = "--amp {amp}"
    resume: str = "--resume auto"


def _ib(program: str, argv: list[str]) -> object:
    from ib_loss import opts, schedule

    plan = schedule.TINY_IMAGENET if program == "tiny" else schedule.CIFAR
    return opts.parse_args(argv, program, plan)[0]


def _dbm_cifar(argv: list[str]) -> object:
    from dbm_loss.cifar import opts

    return opts.parse_args(argv)[0]


def _dbm_large(argv: list[str]) -> object:
    from dbm_loss.large_scale import opts

    return opts.parse_args(argv)


def _gml(program: str, argv: list[str]) -> object:
    from dbm_loss.GML import opts

    return opts.parse_args(argv, program)[0]


def _hml(argv: list[str]) -> object:
    from hmloss.cifar_implementation import opts

    return opts.parse_args(argv)[0]


def _isic(argv: list[str]) -> object:
    from hmloss.isic2019_implementation import opts

    return opts.parse_args(argv)


def _inat(argv: list[str]) -> object:
    from hmloss.inat_implementation import opts

    return opts.parse_args(argv)[0]


def _arb(argv: list[str]) -> object:
    from arbloss import opts

    config = opts.parse_args("", [str(ROOT / a) if a.endswith(".yaml") else a for a in argv])[1]
    opts.check(config, stage=1)
    return config


PROGRAMS = {
    "ib_loss/cifar_train.py": Program("--dataset {dataset} --root {root}", partial(_ib, "cifar")),
    "ib_loss/tinyimage_train.py": Program("", partial(_ib, "tiny")),
    "dbm_loss/cifar/main.py": Program("--dataset {dataset} --data_dir {root}", _dbm_cifar),
    "dbm_loss/large_scale/train.py": Program("", _dbm_large),
    "dbm_loss/GML/cifar_ce.py": Program(
        "--dataset {dataset} --data {root}", partial(_gml, "cifar_ce")
    ),
    "dbm_loss/GML/cifar_main.py": Program(
        "--dataset {dataset} --data {root}", partial(_gml, "cifar_main")
    ),
    "dbm_loss/GML/main.py": Program("", partial(_gml, "main")),
    "hmloss/cifar_implementation/train_cifar.py": Program(
        "--dataset {dataset} --root {root}", _hml
    ),
    "hmloss/isic2019_implementation/train_isic.py": Program(
        "", _isic, epochs="--num_epochs {epochs} --stretch_schedule"
    ),
    "hmloss/inat_implementation/train_inat.py": Program("", _inat),
    "arbloss/train_stage1.py": Program(
        "dataset {dataset} data_path {root}",
        _arb,
        size="image_size {size}",
        epochs="num_epochs {epochs} stretch_schedule True",
        memory="channels_last True",
        amp="amp {amp}",
        resume="resume auto",
    ),
}  # fmt: skip


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


def fill(words: Sequence[str], **values: object) -> list[str]:
    """The words with {name} replaced by its value."""
    filled = []
    for word in words:
        for name, value in values.items():
            word = word.replace("{" + name + "}", str(value))
        filled.append(word)
    return filled


def settings(words: Sequence[str]) -> dict[str, object]:
    """What the program of a command line makes of it: its flags or configuration as plain values.

    Raises:
        SystemExit, common.training.UsageError: the program refuses the command line.
    """
    parsed = PROGRAMS[words[1]].parse(list(words[2:]))
    found = vars(parsed) if isinstance(parsed, Namespace) else dict(parsed)
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
