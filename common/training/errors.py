"""What ends a program in one line instead of a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# How a training goes on from its last checkpoint; arbloss has settings in place of flags.
RESUME = "--resume auto (arbloss: resume auto)"


class UsageError(Exception):
    """What the user asked for cannot be done: one line that names flag or file, value and cure."""


class RunError(Exception):
    """A run that cannot go on, through no fault of the command: one line with the reason."""


class NonFiniteLoss(RunError):
    """A loss or a weight became NaN or infinite: the run has diverged."""


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Around what writes ``path``: a full disk, a folder in its place, … become one line.

    Raises:
        RunError: the operating system refused; names the file and its reason.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); fix that and start again, "
            f"a training with {RESUME}"
        ) from None
