"""Checkpoints: written beside, flushed, renamed; read without running any code they may hold."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from common.training.errors import UsageError, writing

# Besides tensors and Python's own: what published checkpoints hold among them. Data, no code.
_SCALAR = np.float64(0).__reduce__()[0]
_ARRAY = np.zeros(0).__reduce__()[0]
SAFE_TYPES = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # before numpy 2
    _ARRAY,
    (_ARRAY, "numpy.core.multiarray._reconstruct"),
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgSU"},
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


def remove_parts(*folders: Path, of: str | None = None) -> None:
    """Remove what ``atomic_file`` left there where a kill cut it short.

    ``of``: only what is left of the file of this name, in a folder where others write, too.
    """
    pattern = ".*.part" if of is None else f".{glob.escape(of)}.*.part"
    for folder in folders:
        for part in folder.glob(pattern):
            part.unlink(missing_ok=True)


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


def load(path: str | Path, flag: str = "--resume") -> dict:
    """Read a checkpoint into memory. Its checksums are verified, code in it is never run.

    Args:
        flag: where the user named the file; for the message.
    Raises:
        UsageError: the file is missing, cut short, damaged, no checkpoint, or holds more than data.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{flag} {path}: {what}; give a file that exists")
    try:
        _verify(path)
        with torch.serialization.safe_globals(SAFE_TYPES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path}: {_refusal(path, error)}") from None
    except PermissionError:
        raise UsageError(f"{path}: no permission to read it") from None
    except UsageError:
        raise
    except Exception as error:  # whatever torch meets in a file of other bytes
        words = str(error).partition("\n")[0].partition(". ")[0]  # the rest is advice
        reason = f"{type(error).__name__}: {words}".removesuffix(": ")
        raise UsageError(f"{path}: not a complete checkpoint, cut short? ({reason})") from None
    if not isinstance(state, dict):
        raise UsageError(f"{path}: holds a {type(state).__name__}, not a checkpoint dictionary")
    return state


def _verify(path: Path) -> None:
    """Compare the checksums in a file of torch.save with its bytes, which torch itself does not.

    Files from before torch 1.6 have none.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # Torch leaves a tensor that is marked as a folder as it finds the memory.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & 0x10]
            damaged = next(iter(folders), None) or archive.testzip()
    except Exception:  # zipfile, zlib and struct have an error each
        damaged = "its directory"
    if damaged:
        raise UsageError(
            f"{path}: damaged, the checksum of {damaged} is wrong; take another copy, or an "
            "earlier checkpoint"
        )


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """What in a file is refused, and what helps; torch's own message tells how to run its code."""
    found = re.search(r"(?:GLOBAL|class|type) ([\w.]+\.\w+)", str(error))
    if found is None:
        return "damaged, or no checkpoint of torch.save"
    name = found[1]
    return (
        f"refused, {_where(path, name)} is of {name}, and to make one could run code; only "
        "tensors, numbers, text, lists and dictionaries are read. If you trust the file, read it "
        "with the program that wrote it, put plain values in that place, and torch.save it anew"
    )


def _where(path: Path, name: str) -> str:
    """The entry of a file that holds an object of the type ``name``, say ``entry 'args'``."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(pickled) as file:
                state = _Outline(file).load()
        return next(_find(state, name), "something in it")
    except Exception:  # only the message is less exact
        return "something in it"


class _Outline(pickle.Unpickler):
    """Reads the structure of a file; a class that it names becomes an empty one of that name."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        return type(f"{module}.{name}", (_Empty,), {})

    def persistent_load(self, _: object) -> None:
        return None


class _Empty:
    def __new__(cls, *_: object) -> _Empty:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def __setitem__(self, *_: object) -> None:
        pass


def _find(value: object, name: str, where: str = "") -> Iterator[str]:
    own = value if isinstance(value, type) else type(value)
    if own.__name__ == name:
        yield f"entry {where}" if where else "all of it"
    entries = value.items() if isinstance(value, dict) else ()
    if isinstance(value, (list, tuple)):
        entries = enumerate(value)
    for key, entry in entries:
        yield from _find(entry, name, f"{where}[{key!r}]" if where else repr(key))


def find(resume: str, latest: str | Path) -> Path | None:
    """The checkpoint that ``--resume`` names: a path, ``auto`` (``latest`` if present), or none."""
    if not resume:
        return None
    if resume == "auto":
        return Path(latest) if Path(latest).is_file() else None
    if not Path(resume).is_file():
        what = "a folder" if Path(resume).is_dir() else "no such file"
        raise UsageError(f"--resume {resume}: {what}; give a checkpoint, or 'auto' for {latest}")
    return Path(resume)
