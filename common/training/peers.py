"""How the processes of a run meet, and how they part when one of them fails."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from common.training.errors import RunError, UsageError

WAIT = timedelta(minutes=10)  # for a process that does not come, or does not answer
FAREWELL = timedelta(seconds=5)  # process 0 keeps the store: the others shall still learn of it

# Before torch 2.9 a gloo group that goes waits for its threads with Python's lock in hand, and a
# thread that has just finished may wait for that lock to free its tensor: both for ever.
SETTLE = 0.1  # seconds


class NoProcess0(RunError):
    """The process at which all others meet is not there."""


class NoGpu(UsageError):
    """A process has no GPU, while others of its machine have theirs and know of nothing."""


def number(name: str, default: int = 0) -> int:
    """A variable of the launcher.

    Raises:
        UsageError: it is no whole number.
    """
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} {text!r}: not a whole number; start with torchrun") from None


def require_place(world_size: int) -> None:
    """Refuse to start without the place where the processes meet."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE {world_size}, but no {missing[0]}: start with torchrun")


def meet(backend: str, rank: int, world_size: int) -> None:
    """Join the other processes at MASTER_ADDR and MASTER_PORT.

    Raises:
        UsageError: the launcher's variables cannot be.
        RunError: somebody has not come within ``WAIT``.
    """
    if not 0 <= rank < world_size:
        raise UsageError(f"RANK {rank}: WORLD_SIZE {world_size} has ranks 0 to {world_size - 1}")
    require_place(world_size)
    place = ":".join(_place())
    cure = "start all of them, with the same MASTER_ADDR and MASTER_PORT"
    try:
        if rank and not _somebody_there():  # torch would print a page for each vain attempt
            raise NoProcess0(f"process 0 was not at {place} for {minutes()}; {cure}")
        dist.init_process_group(backend, timeout=WAIT)
    except ValueError as error:
        raise UsageError(f"MASTER_ADDR:MASTER_PORT {place}: {error}") from None
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):  # no DistError before torch 2.7
            raise UsageError(f"MASTER_PORT {_place()[1]}: in use, choose another one") from None
        if not isinstance(error, dist.DistError):
            raise
        raise RunError(
            f"not all of the {world_size} processes came to {place} within {minutes()}; {cure}"
        ) from None


def explain(error: Exception) -> str | None:
    """Why another process has to do with an error, or None if none has."""
    text = str(error)
    if "gloo" not in text and not isinstance(error, dist.DistError):
        return None
    if "Duplicate GPU" in text:
        return "two processes of the run have the same GPU: start one process a GPU, with torchrun"
    if "Timed out" in text or "timeout" in text:
        return f"another process of the run has not answered for {minutes()}"
    return "another process of the run has ended and said why, or was killed (out of memory?)"


def first_to_fail(error: object = None) -> bool:
    """Whether this process is to say why the run ends: what the others meet then is no news."""
    if isinstance(error, NoGpu):
        return True
    if not dist.is_initialized():
        local_rank = os.environ.get("LOCAL_RANK", "0")
        its_machine = isinstance(error, NoProcess0) and os.environ["RANK"] == local_rank
        return local_rank == ("1" if its_machine else "0")
    try:
        with _torch_silent():
            return _store().add("failed", 1) == 1
    except RuntimeError:
        return True  # process 0, which keeps the store, was killed


def part(failed: bool) -> None:
    """Leave the other processes, if there are any.

    One that has ``failed`` and keeps the store of all waits a while for the others to fail, too.
    """
    if not dist.is_initialized():
        return
    store, rank, world_size = _store(), dist.get_rank(), dist.get_world_size()
    time.sleep(SETTLE)
    dist.destroy_process_group()  # who waits for this process is told so
    if failed and rank == 0:
        end = time.monotonic() + FAREWELL.total_seconds()
        with contextlib.suppress(RuntimeError):
            while store.add("failed", 0) < world_size and time.monotonic() < end:
                time.sleep(0.02)


@contextlib.contextmanager
def _torch_silent() -> Iterator[None]:
    """Without torch's page of C++ frames on standard error about a store that is gone."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def _place() -> tuple[str, str]:
    return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


def _somebody_there() -> bool:
    end = time.monotonic() + WAIT.total_seconds()
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(_place(), timeout=5).close()
            return True
        time.sleep(0.1)
    return False


def minutes() -> str:
    """How long a process is waited for, in words."""
    return f"{WAIT.total_seconds() / 60:g} minutes"
