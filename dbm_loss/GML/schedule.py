"""Learning rates of the GML programs, as the authors coded them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.training.schedules import stretch

DESIGNED_FOR = 200  # epochs that the step schedules were made for


@dataclass(frozen=True)
class StepSchedule:
    """CIFAR: linear warm-up, then a tenth and a hundredth of ``lr``; constant within each epoch.

    As in the original the last warm-up epoch overshoots (with lr 0.1 and 5 epochs: 0.02, 0.04, …,
    0.1, 0.12, then 0.1). 0 warm-up epochs, a division by zero there, start at ``lr``.

    Attributes:
        epochs, warmup: lengths of run and warm-up, ``--epoch-multiplier`` included.
        milestones: the last epoch (0-based) at ``lr`` and the last at a tenth of it, the multiplier
            included.
        stretched: the milestones move to the fraction of ``epochs`` that they have of 200 epochs
            times ``multiplier``.
    """

    lr: float
    epochs: int
    warmup: int = 5
    milestones: tuple[int, int] = (160, 180)
    multiplier: int = 1
    stretched: bool = False

    @property
    def steps(self) -> tuple[int, int]:
        """The milestones that hold."""
        if not self.stretched:
            return self.milestones
        designed_for = DESIGNED_FOR * self.multiplier
        first, second = (stretch(step, self.epochs, designed_for) for step in self.milestones)
        return first, second

    @property
    def drops(self) -> tuple[int, int]:
        """The first epochs (0-based) at a tenth and at a hundredth of ``lr``."""
        first, second = self.steps
        return first + 1, second + 1

    def __call__(self, epoch: int) -> float:
        """The learning rate of epoch ``epoch`` (0-based)."""
        if self.warmup and epoch <= self.warmup:
            return self.lr * (epoch + 1) / self.warmup
        first, second = self.drops
        if epoch >= second:
            return self.lr * 0.01
        return self.lr * 0.1 if epoch >= first else self.lr


@dataclass(frozen=True)
class Schedule:
    """ImageNet-LT and iNaturalist: linear warm-up, then half a cosine or steps of a tenth.

    The cosine starts one epoch down its slope: without warm-up the first epoch is below ``lr``.

    Attributes:
        milestones: epochs (0-based) from which on the rate is a tenth, without ``cos``.
        stretched: the milestones move to the fraction of ``epochs`` that they have of 200 epochs.
    """

    lr: float
    epochs: int
    warmup: int = 0
    cos: bool = True
    milestones: tuple[int, ...] = (120, 160)
    stretched: bool = False

    @property
    def drops(self) -> tuple[int, ...]:
        """The milestones that hold; none with ``cos``."""
        if self.cos:
            return ()
        if not self.stretched:
            return self.milestones
        return tuple(stretch(step, self.epochs, DESIGNED_FOR) for step in self.milestones)

    def __call__(self, epoch: int) -> float:
        """The learning rate of epoch ``epoch`` (0-based)."""
        if epoch < self.warmup:
            return self.lr * (epoch + 1) / self.warmup
        if self.cos:
            after = self.epochs - self.warmup + 1
            return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup + 1) / after))
        return self.lr * 0.1 ** sum(epoch >= drop for drop in self.drops)
