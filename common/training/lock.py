"""A run's folders belong to it alone while it lives, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from common.training.errors import RunError, UsageError, writing

try:
    import fcntl
except ImportError:  # Windows: nothing locks there
    fcntl = None


def lock_folders(folders: Iterable[Path]) -> list[TextIO]:
    """Lock folders until the returned files are closed or the process ends.

    Record locks of POSIX: the workers that a process forks do not inherit them, and none that
    outlives a killed run by some seconds keeps out the run that goes on. A process that locks a
    folder twice unlocks it when it closes the first of the two files.

    Raises:
        UsageError: another run has locked one of them; says which process.
        RunError: there can be no lock file.
    """
    files = []
    try:
        for folder in sorted(set(folders)):
            with writing(folder / ".lock"):
                files.append(open(folder / ".lock", "a+"))  # noqa: SIM115 (closed by the caller)
            _lock(files[-1], folder)
    except (UsageError, RunError):
        for file in files:
            file.close()
        raise
    return files


def lock_file(file: TextIO, folder: Path, *, inherited: bool = False) -> bool:
    """Lock the file that stands for a folder; False while another process holds it.

    Where nothing can be locked, that is said, and True.

    Args:
        inherited: by the processes that are started with the file open, too (else by none).
    """
    if fcntl is None:
        return True
    lock = fcntl.flock if inherited else fcntl.lockf
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        print(
            f"note: {folder} cannot be locked ({error.strerror}): start no second run there",
            flush=True,
        )
    return True


def _lock(file: TextIO, folder: Path) -> None:
    if not lock_file(file, folder):
        file.seek(0)
        raise UsageError(
            f"{folder}: another run is writing there, {file.read() or 'an unknown process'}; wait "
            "until it has ended, or give this run another folder"
        )
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} of {socket.gethostname()}".encode())
