"""Ctrl-C during the seconds in which a program imports its libraries; none is imported here."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def during_imports(name: str) -> None:
    """Let Ctrl-C end a program in one line and with exit code 130, until it runs.

    Args:
        name: ``__name__`` of the program; nothing happens where it is only imported.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default and name in ("__main__", "__mp_main__"):  # the latter in processes that it starts
        signal.signal(signal.SIGINT, _exit if name == "__main__" else _exit_silently)


def from_now_on_raised() -> None:
    """Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) in (_exit, _exit_silently):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(*_: object) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{os.path.basename(sys.argv[0])}: error: interrupted\n".encode())
    _exit_silently()


def _exit_silently(*_: object) -> NoReturn:
    os._exit(130)
