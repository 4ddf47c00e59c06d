"""Standard output and standard error, wherever they lead: a pipe, a full disk, nowhere."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

# What the operating system says of a stream that takes no more: no reader, no room, no device.
REFUSALS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def prepare() -> None:
    """Make printing safe: closed streams lead to the null device, and any text can be encoded.

    A closed file descriptor would be given to the next file that is opened, and what a library
    writes to standard error would end up in a log or checkpoint.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _lead_nowhere(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # "±" in ASCII: \xb1


def refused(error: OSError) -> bool:
    """Whether an error came from printing; those of files carry the file's name."""
    return error.filename is None and error.errno in REFUSALS


def finish() -> None:
    """Flush; a stream that cannot be written leads nowhere from now on, so that all stay silent."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                _lead_nowhere(stream.fileno())


def _lead_nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    if null != descriptor:
        os.close(null)
