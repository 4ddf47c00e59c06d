"""How the programs are told what to train on and for how long, and how they read a command line."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("ib_loss", "dbm_loss", "hmloss", "arbloss", "common", "datasets")  # of every number


@dataclass(frozen=True)
class Program:
    """How a program is told what differs from the published run; the last mention of a flag counts.

    Attributes:
        data: words that set data set and folder, for small images; empty: it takes none.
        large: the same for a folder of large images; {lists} has list files of it.
        parse: the program's own reading of a command line.
        whole: words for the training images as they are. tail: for a long tail cut out of them.
        classes: words for the number of classes. size: for images of another size than 32.
        arch: words for another network, of those for large images. pretrained, weights: words for
            a start from torchvision's weights or from those of a file.
        epochs: words for a shortened, stretched run. batch: for another batch size.
        teacher: where a recipe's second command finds the network of the first, if that has
            written it to a folder of these data.
        val: words for the part of the training images that chooses the best epoch. val_list: for
            a list of other images, where val/ beside test/ is not seen anyway.
        memory, amp: words for channels-last memory and for half precision.
        resume: words that go on from the run's own checkpoint. workers: for so many processes that
            read images, which changes nothing but the time.
    """

    data: str
    parse: Callable[[list[str]], object]
    large: str = ""
    whole: str = "--imb_type none"
    tail: str = "--imb_type exp --imb_factor {imb_factor}"
    classes: str = ""
    size: str = "--image_size {size}"
    arch: str = "--arch {arch}"
    pretrained: str = "--pretrained"
    weights: str = "--weights {weights}"
    epochs: str = "--epochs {epochs} --stretch_schedule"
    batch: str = "--batch-size {batch_size}"
    teacher: str = ""
    val: str = "--val_fraction {val_fraction}"
    val_list: str = ""
    memory: str = "--channels_last"
    amp: str = "--amp {amp}"
    resume: str = "--resume auto"
    workers: str = "--workers {workers}"


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
    "dbm_loss/cifar/main.py": Program(
        "--dataset {dataset} --data_dir {root}",
        _dbm_cifar,
        tail="--imb_type exp --imb_ratio {imb_ratio}",
    ),
    "dbm_loss/large_scale/train.py": Program(
        "",
        _dbm_large,
        large="--dataset imagefolder --root {root}",
        batch="--batch_size {batch_size}",
    ),
    "dbm_loss/GML/cifar_ce.py": Program(
        "--dataset {dataset} --data {root}", partial(_gml, "cifar_ce")
    ),
    "dbm_loss/GML/cifar_main.py": Program(
        "--dataset {dataset} --data {root}", partial(_gml, "cifar_main")
    ),
    "dbm_loss/GML/main.py": Program(
        "",
        partial(_gml, "main"),
        large="--dataset imagefolder --data {root}",
        arch="--arch {arch} --arch_t {arch} --feat_t {features}",
        teacher="--path_t {out}/imagefolder/teacher/moco_ckpt.pth.tar",
    ),
    "hmloss/cifar_implementation/train_cifar.py": Program(
        "--dataset {dataset} --root {root}",
        _hml,
        tail="--imb_type exp --imb_ratio {imb_factor}",
    ),
    "hmloss/isic2019_implementation/train_isic.py": Program(
        "", _isic, epochs="--num_epochs {epochs} --stretch_schedule"
    ),
    "hmloss/inat_implementation/train_inat.py": Program(
        "",
        _inat,
        large="--dataset imagefolder --root {root}",
    ),
    "arbloss/train_stage1.py": Program(
        "dataset {dataset} data_path {root}",
        _arb,
        large="dataset imagenet data_path {root} list_path {lists}",
        whole="imb_factor None",
        tail="imb_factor {imb_factor}",
        classes="num_classes {classes} head_class_idx [0,{third}] "
        "med_class_idx [{third},{two_thirds}] tail_class_idx [{two_thirds},{classes}]",
        size="image_size {size}",
        arch="backbone {arch}_fe",
        pretrained="pretrained True",
        weights="weights {weights}",
        epochs="num_epochs {epochs} stretch_schedule True",
        batch="batch_size {batch_size}",
        val="val_fraction {val_fraction}",
        val_list="val_list {lists}/ImageNet_LT_val.txt",
        memory="channels_last True",
        amp="amp {amp}",
        resume="resume auto",
        workers="workers {workers}",
    ),
}  # fmt: skip


def code_sha256() -> str:
    """Fingerprint of the code that a number comes from, also where it is no git checkout.

    Of other files only those that the code reads: runs may leave theirs beside it.
    """
    digest = hashlib.sha256()
    files = [path for top in SOURCES for path in (ROOT / top).rglob("*.py")]
    files += (ROOT / "arbloss" / "config").rglob("*.yaml")
    files.append(ROOT / "dbm_loss" / "augment" / "policies.json")
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


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
        UsageError: the program refuses the command line.
    """
    parsed = PROGRAMS[words[1]].parse(list(words[2:]))
    found = vars(parsed) if isinstance(parsed, Namespace) else dict(parsed)
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
