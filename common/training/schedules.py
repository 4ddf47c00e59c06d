"""Milestones are fixed numbers in the papers' programs; here is how they fit another run length."""

from __future__ import annotations

from collections.abc import Iterable


def stretch(milestone: int, epochs: int, designed_for: int) -> int:
    """A milestone of a ``designed_for``-epoch schedule, at the same fraction of ``epochs``."""
    return max(1, round(milestone * epochs / designed_for))


def unreached(milestones: Iterable[int], epochs: int, stretched: bool) -> str | None:
    """A sentence for the log when the run ends before a milestone of its schedule, else None.

    Of a schedule that is ``stretched`` already, that is not advised.
    """
    late = sorted({milestone for milestone in milestones if milestone >= epochs})
    if not late:
        return None
    names = ", ".join(map(str, late))
    cure = "" if stretched else "; --stretch_schedule fits the whole schedule into the run"
    return (
        f"note: the schedule's step at epoch {names} is never reached with --epochs {epochs}{cure}"
    )
