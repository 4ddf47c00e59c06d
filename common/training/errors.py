"""What ends a program in one line instead of a traceback."""

from __future__ import annotations


class UsageError(Exception):
    """What the user asked for cannot be done: one line that names flag or file, value and cure."""


class NonFiniteLoss(Exception):
    """The training loss became NaN or infinite."""
