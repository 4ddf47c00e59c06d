"""Names of classes, and classes without images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.training.errors import UsageError


def read_names(path: str | Path) -> list[str]:
    """Class names, one a line, in the order of the labels; blank lines do not count.

    Raises:
        UsageError: no such file, not text, no names, or one twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable ({error}); expected a class name a line") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UsageError(f"{path}: no names in it; expected a class name a line")
    require_distinct(names, path)
    return names


def require_distinct(names: Sequence[str], where: object) -> None:
    """Refuse a name of several classes: their figures would be added up."""
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise UsageError(f"{where}: {name!r} names {times} classes; give each its own name")


def lacking(targets: np.ndarray, classes: Sequence[object], where: object) -> list[str]:
    """A note if some of the classes have no image among ``targets``, else none."""
    absent = np.flatnonzero(np.bincount(targets, minlength=len(classes)) == 0)
    if not len(absent):
        return []
    names = some([str(classes[c]) for c in absent])
    return [
        f"note: {where} has no image of {len(absent)} of the {len(classes)} classes ({names}): "
        "they have no accuracy"
    ]


def some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
