"""Configuration: the original's yacs keys, read from a YAML file and KEY VALUE words."""

from __future__ import annotations

import argparse
import ast
import difflib
from collections.abc import Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

from arbloss.models import BACKBONES
from common import models
from common.training.errors import UsageError
from common.training.flags import Parser, check_numbers

# Keys, defaults and order of the original; the keys after the comment line are added here.
DEFAULTS = {
    "name": "",
    "print_freq": 40,
    "workers": 16,
    "log_dir": "logs",
    "model_dir": "ckps",
    "dataset": "cifar10",
    "data_path": "./data/cifar10",
    "num_classes": 100,
    "imb_factor": 0.01,
    "backbone": "resnet32_fe",
    "resume": "",
    "head_class_idx": [0, 1],
    "med_class_idx": [0, 1],
    "tail_class_idx": [0, 1],
    "deterministic": True,
    "gpu": 0,
    "world_size": -1,
    "rank": -1,
    "dist_url": "env://",
    "dist_backend": "nccl",
    "multiprocessing_distributed": False,
    "distributed": False,
    "mode": None,
    "smooth_tail": None,
    "smooth_head": None,
    "shift_bn": False,
    "lr_factor": None,
    "lr": 0.1,
    "batch_size": 128,
    "weight_decay": 0.002,
    "num_epochs": 200,
    "momentum": 0.9,
    "cos": False,
    "mixup": True,
    "alpha": 1.0,
    "arbloss": False,
    "warbloss": False,
    "arb_loss_use_global_class_cnt": False,
    "LAS": False,
    "not_pretrained": False,
    "arbloss_fl": False,
    "train_stage2_instance": False,
    # added; the defaults change nothing
    "seed": None,
    "milestones": [160, 240],
    "stretch_schedule": False,
    "diagnostic": False,
    "list_path": "",
    "classes": "",
    "val_list": "",
    "val_fraction": 0.0,
    "eval_every": 1,
    "pretrained": False,
    "weights": "",
    "image_size": 32,
    "loader": "device",
    "amp": "none",
    "channels_last": None,
    "compile": False,
    "overwrite": False,
    "other_data": False,
}
CIFAR_LIKE = ("cifar10", "cifar100", "digits", "imagefolder", "npz")

# Keys that may be None, with the type of their other values.
NULLABLE = {
    "imb_factor": float,
    "gpu": int,
    "mode": str,
    "smooth_tail": float,
    "smooth_head": float,
    "lr_factor": float,
    "alpha": float,
    "seed": int,
    "channels_last": bool,
}
PAIRS = ("head_class_idx", "med_class_idx", "tail_class_idx", "milestones")
CHOICES = {
    "dataset": (*CIFAR_LIKE, "imagenet", "ina2018", "places"),
    "dist_backend": ("nccl", "gloo"),
    "loader": ("device", "workers"),
    "amp": ("none", "bf16", "fp16"),
    "mode": ("stage1", "stage2"),
}
WORDS = {"true": True, "false": False, "none": None, "null": None}
KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a word",
    list: "two whole numbers [a, b] with a <= b",
}


def get_parser(description: str) -> argparse.ArgumentParser:
    """The command line of all three programs."""
    parser = Parser(description=description)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment YAML file")
    parser.add_argument(
        "--local_rank",
        "--local-rank",
        type=int,
        default=None,
        help="given by torch.distributed.launch; torchrun's LOCAL_RANK does the same",
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="change keys of the YAML file, e.g. lr 0.05"
    )
    return parser


def parse_args(
    description: str, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, CfgNode]:
    """Read the command line and the YAML file that it names.

    Flags and KEY VALUE words may come in any order.

    Returns: the arguments, and the frozen config (not yet looked at by ``check``).
    Raises:
        UsageError: missing file, unknown key, value of the wrong type, odd number of words.
    """
    args = get_parser(description).parse_intermixed_args(argv)
    return args, load_config(args.cfg, args.opts)


def stem(cfg: str) -> str:
    """Name of a configuration file up to its first dot; names the run folder and its log."""
    return Path(cfg).name.split(".")[0]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, changed by a YAML file, changed by a flat list of KEY VALUE words; frozen.

    Values are Python literals (``5e-4``, ``None``, ``[0, 3]``) or words; ``true``, ``false`` and
    ``null`` count in any case, and a whole number is taken where a number is expected.

    Raises:
        UsageError: missing file, unknown key, value of the wrong type, odd number of words.
    """
    config = CfgNode(DEFAULTS)
    for key, value in _read_yaml(Path(path)).items():
        _set(config, key, value, source=str(path))
    if len(overrides) % 2:
        raise UsageError(
            f"overrides come in pairs KEY VALUE, got {len(overrides)} words: {' '.join(overrides)}"
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _set(config, key, value, source="command line")
    config.freeze()
    return config


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise UsageError(f"--cfg {path}: no such file; the shipped ones are under arbloss/config")
    try:
        text = path.read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"--cfg {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UsageError(f"--cfg {path}: holds no 'key: value' lines")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UsageError(
                f"--cfg {path}: {key.value} stands in lines {lines[key.value]} and {line}; keep one"
            )
        lines[key.value] = line
    return content


def _set(config: CfgNode, key: object, value: object, source: str) -> None:
    if key not in DEFAULTS:
        close = difflib.get_close_matches(str(key), DEFAULTS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"{source}: unknown key {key}{hint}")
    kind = NULLABLE.get(key, type(DEFAULTS[key]))
    parsed = _literal(value)
    if kind is str and isinstance(value, str) and not isinstance(parsed, str):
        parsed = None if key in NULLABLE and parsed is None else value  # `name 2024` is a word
    elif kind is float and type(parsed) is int:
        parsed = float(parsed)
    elif isinstance(parsed, tuple):
        parsed = list(parsed)
    if not (parsed is None and key in NULLABLE) and not _fits(key, parsed, kind):
        need = KINDS[kind]
        if key in CHOICES:
            need = f"one of {', '.join(CHOICES[key])}"
        raise UsageError(f"{source}: {key} must be {need}, got {value!r}")
    check_numbers({key: parsed}, f"{source}: ", smooth_head=(0, 1), smooth_tail=(0, 1))
    config[key] = parsed


def _literal(value: object) -> object:
    """A string as the Python literal that it spells, if any."""
    if not isinstance(value, str):
        return value
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _fits(key: str, value: object, kind: type) -> bool:
    if type(value) is not kind:
        return False
    if key in PAIRS:
        return len(value) == 2 and all(type(v) is int for v in value) and value[0] <= value[1]
    if key in CHOICES:
        return value in CHOICES[key]
    return True


def check(config: CfgNode, stage: int | None = None) -> list[str]:
    """Refuse what cannot work together, and say what will have no effect.

    Args:
        stage: 1 or 2 for training, None for evaluation.

    Returns: notes for the user, one line each.
    Raises:
        UsageError: the keys contradict each other.
    """
    if config.multiprocessing_distributed:
        raise UsageError(
            "multiprocessing_distributed True: start the processes with torchrun or "
            "python -m torch.distributed.launch instead"
        )
    if config.imb_factor is not None and not 0 < config.imb_factor <= 1:
        raise UsageError(
            f"imb_factor {config.imb_factor}: smallest / largest class, 0 < f <= 1, "
            "or null for the data as they are"
        )
    if not 0 <= config.val_fraction < 1:
        raise UsageError(f"val_fraction {config.val_fraction}: at least 0 and below 1")
    ranges = ("head_class_idx", "med_class_idx", "tail_class_idx")
    before, number = 0, config.num_classes
    for key in ranges:
        first, end = config[key]
        if first != before or end > number or (key == ranges[-1] and end != number):
            raise UsageError(
                f"{key} {config[key]}: num_classes is {number}; give head_class_idx, "
                f"med_class_idx and tail_class_idx that follow one another from 0 to {number}, "
                f"such as {_thirds(number)}"
            )
        before = end
    if stage is None:
        return []
    if config.mixup and (config.alpha is None or config.alpha < 0):
        raise UsageError(f"mixup True needs an alpha of at least 0, got {config.alpha}")
    if config.not_pretrained and (config.pretrained or config.weights):
        asked = f"weights {config.weights}" if config.weights else "pretrained True"
        raise UsageError(f"{asked} and not_pretrained True exclude each other: leave one out")
    if stage == 1 and not config.resume:  # else the checkpoint has them
        check_published(config)
    if stage == 2 and not config.resume:
        raise UsageError("stage 2 starts from a stage-1 checkpoint: give resume CHECKPOINT")
    if stage == 2 and config.lr_factor is None:
        raise UsageError("stage 2 needs lr_factor, the classifier's share of the learning rate")
    if smooths(config, stage) and None in (config.smooth_head, config.smooth_tail):
        raise UsageError("label-aware smoothing needs numbers for smooth_head and smooth_tail")
    return _notes(config, stage)


def check_number(config: CfgNode, found: int, source: object) -> None:
    """Refuse data of another number of classes than ``num_classes``.

    Raises:
        UsageError: names all keys that go with the number.
    """
    if found != config.num_classes:
        raise UsageError(
            f"num_classes {config.num_classes}: {source} has {found} classes; give num_classes "
            f"{found} and three groups of its classes, largest first, such as {_thirds(found)}"
        )


def _thirds(number: int) -> str:
    """Three groups of about as many classes each, as words of a command line."""
    first, second = -(-number // 3), -(-2 * number // 3)
    return (
        f"head_class_idx [0,{first}] med_class_idx [{first},{second}] "
        f"tail_class_idx [{second},{number}]"
    )


def check_batch(config: CfgNode, stage: int, processes: int) -> None:
    """Refuse batches of one image where the loss counts the batch: ARB-Loss would always be 0.

    Args:
        processes: those that share ``batch_size``, the total of a machine.
    Raises:
        UsageError: names the key.
    """
    counts_batch = takes_counts(config, stage) and not config.arb_loss_use_global_class_cnt
    if counts_batch and config.batch_size <= processes:
        shared = f" over {processes} processes" if processes > 1 else ""
        raise UsageError(
            f"batch_size {config.batch_size}{shared}: a batch of one image has one class, which "
            "its own counts set against none; make it larger, or arb_loss_use_global_class_cnt True"
        )


def takes_counts(config: CfgNode, stage: int) -> bool:
    """Whether the loss of a stage weighs the classes by their counts."""
    return config.arbloss or (stage == 2 and (config.arbloss_fl or config.warbloss))


def smooths(config: CfgNode, stage: int) -> bool:
    """Whether the loss of a stage is label-aware smoothing."""
    return config.LAS if stage == 1 else not takes_counts(config, stage)


def wants_weights(config: CfgNode) -> bool:
    """Whether the backbone of stage 1 starts from ImageNet weights; that of Places always did."""
    asked = config.pretrained or config.weights or config.dataset == "places"
    return bool(asked) and not config.not_pretrained


def from_scratch(config: CfgNode) -> str:
    """How the user does without ImageNet weights."""
    if config.dataset == "places":
        return "set not_pretrained True" + (" instead of pretrained" if config.pretrained else "")
    return "leave pretrained out"


def check_published(config: CfgNode) -> None:
    """Refuse a backbone that is to have published weights where there are none.

    Raises:
        UsageError: names the backbones that have some.
    """
    if config.weights or not wants_weights(config):
        return
    published = [f"{arch}_fe" for arch in BACKBONES if arch in models.pretrained.PUBLISHED]
    if config.backbone not in published:
        raise UsageError(
            f"backbone {config.backbone}: no ImageNet weights exist for it, only for "
            f"{', '.join(published)}; give a file by weights, or {from_scratch(config)}"
        )


def _notes(config: CfgNode, stage: int) -> list[str]:
    notes = [
        f"note: {key} {config[key]} has no effect {where}"
        for key, where in _without_effect(config, stage).items()
        if config[key] not in (None, DEFAULTS[key])
    ]
    if stage == 1 and not config.cos and not config.stretch_schedule:
        milestone = config.milestones[0]
        if milestone >= config.num_epochs:
            notes.append(
                f"note: the learning rate's step at epoch {milestone} is never reached with "
                f"num_epochs {config.num_epochs}; stretch_schedule True fits it into the run"
            )
    if stage == 1 and config.dataset == "places" and config.not_pretrained:
        notes.append("note: not_pretrained True: the frozen backbone keeps its random weights")
    return notes


def _without_effect(config: CfgNode, stage: int) -> dict[str, str]:
    """The keys that change nothing, each with the reason in words."""
    schedule = ("cos", "milestones", "stretch_schedule")
    if stage == 1:
        elsewhere = ("warbloss", "arbloss_fl", "train_stage2_instance", "shift_bn", "lr_factor")
    else:
        elsewhere = ("LAS", "pretrained", "weights", "not_pretrained", *schedule)
    found = dict.fromkeys(elsewhere, f"in stage {stage}")

    def add(reason: str, *keys: str) -> None:
        for key in keys:
            found.setdefault(key, reason)

    if config.cos:
        add("with cos True", "milestones", "stretch_schedule")
    if not config.mixup:
        add("with mixup False", "alpha")
    if not takes_counts(config, stage):
        add("with a loss without class counts", "arb_loss_use_global_class_cnt")
    if not smooths(config, stage):
        add("without label-aware smoothing", "smooth_head", "smooth_tail")
    if config.arbloss:  # the first of them counts
        add("with arbloss True", "arbloss_fl", "warbloss")
    elif config.arbloss_fl:
        add("with arbloss_fl True", "warbloss")
    if config.dataset not in CIFAR_LIKE:
        add(f"with dataset {config.dataset}", "imb_factor", "loader")
    if config.dataset != "places":
        add(f"with dataset {config.dataset}", "not_pretrained")
    return found
