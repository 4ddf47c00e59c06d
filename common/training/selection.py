"""Which set a report is about, and how the best epoch is chosen."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

SCORES = {"top1": "top-1", "balanced_acc": "balanced accuracy", "bacc": "bacc"}


@dataclass
class Selection:
    """The set that is reported, and the figure by which the best epoch is chosen.

    Attributes:
        split: the set that is reported, "test" or "val".
        chosen_on: the set on which each epoch is evaluated and the best chosen; "": ``split``.
        score: the figure that chooses; "": top-1, as in the papers, and on a set of its own, which
            may be as long-tailed as the training images, the balanced accuracy.
        later_of_equals: of epochs with the same score the last is the best, not the first.
    """

    split: str = "test"
    chosen_on: str = ""
    score: str = ""
    later_of_equals: bool = False

    def __post_init__(self) -> None:
        self.chosen_on = self.chosen_on or self.split
        self.score = self.score or ("balanced_acc" if self.validated else "top1")

    @property
    def validated(self) -> bool:
        """Whether the best epoch is chosen on another set than that of the report."""
        return self.chosen_on != self.split

    @property
    def name_of_test(self) -> str:
        """The reported set in the logs of the originals that call ``val`` what they evaluate on."""
        return self.split if self.validated else "val"

    @property
    def score_name(self) -> str:
        """The score as the original programs' logs call it."""
        return "Prec@1" if self.score == "top1" else SCORES[self.score]

    def beats(self, row: Mapping[str, object], best: float) -> bool:
        """Whether an epoch was evaluated, and its score makes it the best."""
        better = operator.ge if self.later_of_equals else operator.gt
        return self.score in row and better(row[self.score], best)

    def note(self) -> str:
        """A sentence for the report: what its "best" and "final" are."""
        split, chosen_on = full(self.split), full(self.chosen_on)
        if self.validated:
            return (
                f"best is the epoch of the highest {SCORES[self.score]} on the {chosen_on} set; "
                f"its figures and those of the last epoch, final, are of the {split} set"
            )
        return f"best is chosen on the {split} set, as in the papers; final is the last epoch"


def full(split: str) -> str:
    """The name of a set in words: ``val`` is the validation set."""
    return "validation" if split == "val" else split
