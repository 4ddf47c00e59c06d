"""Checkpoints: written beside, flushed, renamed; read without running any code they may hold."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import nn

from common.training.errors import UsageError, writing

# Numpy numbers, which some published checkpoints hold among their tensors: data like the rest.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # before numpy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
]


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file that appears under its name complete or not at all, whenever the process is killed.

    Raises:
        RunError: it cannot be written (disk full, no permission, a folder of that name, …).
    """
    path = Path(path)
    with writing(path):
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".part", dir=path.parent
        )
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes private files
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        if os.name == "posix":  # the rename itself must reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def save(state: Mapping[str, object], *paths: str | Path) -> None:
    """Write a dictionary of plain data and tensors to each path, atomically.

    Raises:
        RunError: see ``atomic_file``.
    """
    for path in paths:
        with atomic_file(path) as file:
            try:
                torch.save(dict(state), file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # what torch's complaint came from
                    raise error.__context__ from None
                raise


def load(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """Read a checkpoint. Pickled code in it is never run.

    Raises:
        UsageError: the file is missing, cut short, no checkpoint, or holds more than data.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"--resume {path}: no such file; give a checkpoint that exists")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{path}: refused, it is damaged or holds more than tensors and numbers ({reason})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: not a complete checkpoint, cut short? ({reason})") from None
    if not isinstance(state, dict):
        raise UsageError(f"{path}: holds a {type(state).__name__}, not a checkpoint dictionary")
    return state


def find(resume: str, latest: str | Path) -> Path | None:
    """The checkpoint that ``--resume`` names: a path, ``auto`` (``latest`` if present), or none."""
    if not resume:
        return None
    if resume == "auto":
        return Path(latest) if Path(latest).is_file() else None
    if not Path(resume).is_file():
        raise UsageError(
            f"--resume {resume}: no such file; give a checkpoint, or 'auto' for {latest}"
        )
    return Path(resume)


def plain_keys(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dict without the ``module.`` prefix that DataParallel and DDP put before every key."""
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def load_weights(module: nn.Module, state_dict: Mapping[str, torch.Tensor], source: object) -> None:
    """Load a state dict strictly, with or without ``module.`` prefixes.

    Raises:
        UsageError: it belongs to another architecture; says which entries differ.
    """
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
