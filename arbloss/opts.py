"""Configuration: the original's yacs keys, read from a YAML file and KEY VALUE words."""

from __future__ import annotations

import argparse
import ast
import difflib
from collections.abc import Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

from common.launch import UsageError

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
    # added
    "seed": None,
    "milestones": [160, 240],
    "diagnostic": False,
}

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
}
PAIRS = ("head_class_idx", "med_class_idx", "tail_class_idx", "milestones")
POSITIVE = ("print_freq", "num_classes", "batch_size", "num_epochs")
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
    parser = argparse.ArgumentParser(description=description)
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

    Returns: the arguments, and the frozen config.
    Raises:
        UsageError: missing file, unknown key, value of the wrong type, odd number of words.
    """
    args = get_parser(description).parse_intermixed_args(argv)
    return args, load_config(args.cfg, args.opts)


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
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--cfg {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UsageError(f"--cfg {path}: holds no 'key: value' lines")
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
        need = "at least 1" if key in POSITIVE and type(parsed) is int else KINDS[kind]
        raise UsageError(f"{source}: {key} must be {need}, got {value!r}")
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
    return key not in POSITIVE or value >= 1
