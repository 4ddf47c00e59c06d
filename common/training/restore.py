"""What a file holds, checked by name and given to networks, optimisers and scalers."""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from common.training import launch
from common.training.checkpoint import load
from common.training.errors import UsageError
from common.training.precision import first_non_finite

# What the record of a run holds.
RECORD = {
    "seed": int | None,
    "history": list,
    "best_row": dict | None,
    "offsets": dict,
    "settings": dict,
    "facts": dict,
    "processes": int,
    "commits": list,
    "launchers": list,
}


def check_checkpoint(state: Mapping[str, object], path: Path, *, weights_alone: bool) -> None:
    """Refuse a checkpoint whose epoch or record is no such thing; weights may be all it holds."""
    epoch = state.get("epoch", 0 if weights_alone else None)
    try:
        valid = operator.index(epoch) >= 0 and not isinstance(epoch, bool)
    except TypeError:
        valid = False
    if "epoch" not in state and not weights_alone:
        raise UsageError(f"{path}: has no 'epoch', not a checkpoint of this program")
    if not valid:
        raise UsageError(f"{path}: its 'epoch' is {epoch!r}, not a number of epochs")
    for key in ("best_acc1", "best_bacc", "its_ece"):
        try:
            valid = math.isfinite(float(state.get(key, 0)))
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise UsageError(f"{path}: its {key!r} is {state[key]!r}, not a finite number")
    for key in ("step", "steps"):
        step = state.get(key, 0)
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise UsageError(f"{path}: its {key!r} is {step!r}, not a whole number from 0")
    sums = state.get("sums", torch.zeros(0))
    if not _dense_and_real(sums) or first_non_finite(sums) is not None:
        raise UsageError(f"{path}: its 'sums' are not the finite numbers of an epoch's first steps")
    if (wrong := _no_record(state.get("run", {}))) is not None:
        raise UsageError(f"{path}: its 'run' is not the record of a run, {wrong}")


def _no_record(run: object) -> str | None:
    """What in a record is of another kind than it should be; None if nothing is."""
    if not isinstance(run, dict):
        return f"but a {type(run).__name__}"
    for key, value in run.items():
        if not isinstance(value, RECORD.get(key, object)):
            return f"{key!r} is a {type(value).__name__}"
    for row in [*run.get("history", []), run.get("best_row") or {}]:
        if not isinstance(row, dict):
            return f"an epoch of it is of type {type(row).__name__}"
        for figure in row.values():
            if not isinstance(figure, (int, float, list, dict)):
                return f"an epoch of it holds a {type(figure).__name__}"
    best = run.get("best_row")
    if best is not None and not isinstance(best.get("epoch"), int):
        return "'best_row' does not say its 'epoch'"
    if not all(isinstance(place, int) and place >= 0 for place in run.get("offsets", {}).values()):
        return "'offsets' are no places in files"
    return None


def load_state_dict(path: str | Path, flag: str = "weights") -> dict[str, Tensor]:
    """The weights in a file: a bare state dict, or that of a checkpoint; without ``module.``.

    Raises:
        UsageError: as ``load``; or as ``weights_in``.
    """
    return weights_in(load(path, flag), path)


def weights_in(state: Mapping[str, object], source: object) -> dict[str, Tensor]:
    """The weights in what a file holds, see ``load_state_dict``.

    Raises:
        UsageError: there is no state dict in it.
    """
    weights = state.get("state_dict", state)
    check_state_dict(weights, source)
    return plain_keys(weights)


def check_classes(
    state: Mapping[str, object], classes: Sequence[str], source: object, cure: str = ""
) -> list[str]:
    """Refuse a checkpoint whose outputs are, as it says, other classes or in another order.

    Checkpoints of the originals say nothing. Numbers 0 to C-1 stand for classes without names,
    which cannot be held against names, in whatever order they are: arbloss sorts them by size.

    Args:
        classes: names of the data's classes, (C,). cure: what may be done besides.

    Returns: a note where only the checkpoint or only the data have names, else none.
    Raises:
        UsageError: names the first difference.
    """
    about = state.get("about")
    its = about.get("classes") if isinstance(about, Mapping) else None
    if not isinstance(its, (list, tuple)) or not all(isinstance(name, str) for name in its):
        return []
    if list(its) == list(classes):
        return []
    if len(its) != len(classes):
        raise UsageError(
            f"{source}: has {len(its)} classes, and the data {len(classes)}; give data of the same "
            f"classes{cure}"
        )
    numbers = {str(c) for c in range(len(classes))}
    if (set(its) == numbers) != (set(classes) == numbers):
        named = "the data name" if set(its) == numbers else "the checkpoint names"
        return [f"note: {source}: only {named} the classes; they are taken to be in the same order"]
    c = next(c for c in range(len(its)) if its[c] != classes[c])
    raise UsageError(
        f"{source}: its class {c} is {its[c]!r}, and that of the data {classes[c]!r}; give data of "
        f"the same classes in the same order{cure}"
    )


def download(url: str, cure: str) -> Path:
    """A published weight file, from torch's download cache or its server.

    Raises:
        UsageError: it cannot be had, which says what else is a ``cure``; or it is damaged: its name
            holds its SHA-256.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    launch.in_main(lambda: _fetch(url, path, cure))
    if not path.is_file():  # on another machine
        _fetch(url, path, cure)
    return path


def _fetch(url: str, path: Path, cure: str) -> None:
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    prefix = match[1] if match else None
    if not path.is_file():
        launch.say_download(url, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), prefix, progress=False)
        except (OSError, RuntimeError, HTTPException) as error:
            raise UsageError(
                f"cannot download {url} ({error}): fetch it elsewhere and give the file as "
                f"weights, or {cure}"
            ) from None
    elif prefix:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        if not digest.hexdigest().startswith(prefix):
            raise UsageError(f"{path}: damaged, its SHA-256 is not {prefix}…; delete it")


def plain_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict without the ``module.`` prefix that DataParallel and DDP put before every key."""
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def check_state_dict(state_dict: object, source: object) -> None:
    """Refuse what is no dictionary of finite tensors, naming the entry.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise UsageError(f"{source}: its state dict is a {kind}, not a dictionary of tensors")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UsageError(f"{source}: entry {key!r} of its state dict is no tensor, but {kind}")
        if not _dense_and_real(value):
            raise UsageError(
                f"{source}: entry {key!r} of its state dict is of {value.dtype}, {value.layout}; "
                "save it as dense real numbers"
            )
    if (key := first_non_finite(state_dict)) is not None:
        raise UsageError(
            f"{source}: {key} holds values that are not finite, the run that made it had "
            "diverged; take an earlier checkpoint"
        )


def _dense_and_real(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_complex() or value.is_quantized)


def load_weights(module: nn.Module, state_dict: Mapping[str, Tensor], source: object) -> None:
    """Load a state dict strictly, with or without ``module.`` prefixes.

    Raises:
        UsageError: it belongs to another architecture; says which entries differ.
    """
    check_state_dict(state_dict, source)
    state_dict = plain_keys(state_dict)
    own = module.state_dict()
    # Files from before batch norm counted its batches lack the counters.
    for key in own.keys() - state_dict.keys():
        if key.endswith("num_batches_tracked"):
            state_dict[key] = own[key]
    missing = sorted(own.keys() - state_dict.keys())
    unexpected = sorted(state_dict.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(state_dict[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own.keys() & state_dict.keys()
        if own[key].shape != state_dict[key].shape
    ]
    for what, entries in (("lacks", missing), ("has besides", unexpected), ("differs:", shapes)):
        if entries:
            more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
            raise UsageError(
                f"{source}: made with another architecture, classes or loss; "
                f"it {what} {sorted(entries)[0]}{more}"
            )
    module.load_state_dict(state_dict)


def load_optimizer(optimizer: torch.optim.Optimizer, state: object, source: object) -> None:
    """Give an optimiser the momentum of a checkpoint; its rates, decay and so on stay its own.

    Raises:
        UsageError: it belongs to an optimiser of another kind, or to another network.
    """
    own = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    kind = type(optimizer).__name__
    wrong = f"{source}: its 'optimizer' is not {kind}'s of this network"
    try:
        groups, entries = state["param_groups"], state["state"]
        found = [len(group["params"]) for group in groups]
        if found != sizes:
            raise UsageError(f"{wrong}: it has groups of {found} parameters, here are {sizes}")
        for key in ("momentum", "betas"):
            if (key in groups[0]) != (key in own[0]):
                raise UsageError(f"{wrong}: another kind, {key!r} is in only one of them")
        for index, entry in entries.items():
            shape = parameters[index].shape
            for key, value in entry.items():
                if not isinstance(value, (Tensor, int, float, type(None))):
                    kind = type(value).__name__
                    raise UsageError(f"{wrong}: {key} of parameter {index} is a {kind}")
                if isinstance(value, Tensor) and value.ndim and value.shape != shape:
                    raise UsageError(
                        f"{wrong}: {key} of parameter {index} is {tuple(value.shape)}, not "
                        f"{tuple(shape)}"
                    )
        if (name := first_non_finite(entries)) is not None:
            raise UsageError(f"{source}: {name} of its 'optimizer' is not finite; it had diverged")
        optimizer.load_state_dict(state)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{wrong} ({type(error).__name__}: {error})") from None
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def load_scaler(scaler: torch.amp.GradScaler, state: object, source: object) -> None:
    """Give a gradient scaler the scale of a checkpoint.

    Raises:
        UsageError: that is no state of a scaler.
    """
    try:
        if any(value < 0 for value in state.values()):
            raise ValueError("a negative scale")
        scaler.load_state_dict(state)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{source}: its 'scaler' is not that of amp fp16 ({error})") from None
