"""Learning rate and phases of the influence-balanced programs, as the authors coded them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.training.schedules import stretch

WARMUP_EPOCHS = 5


@dataclass(frozen=True)
class Schedule:
    """Milestones, made for a run of ``epochs`` epochs.

    Attributes:
        plain: (epoch t, factor on --lr after it), t counted from 1, outside the IB phase.
        ib: the same within the IB phase.
        start_ib_epoch: the paper's first epoch, from 0, with the influence-balanced loss.
        drw_epoch: first epoch, from 0, with deferred class weights.
    """

    epochs: int
    plain: tuple[tuple[int, float], ...]
    ib: tuple[tuple[int, float], ...]
    start_ib_epoch: int
    drw_epoch: int = 160

    def stretched(self, epochs: int) -> Schedule:
        """The same schedule for another run length: a faithful miniature (warm-up kept)."""

        def fit(milestone: int) -> int:
            return stretch(milestone, epochs, self.epochs)

        return replace(
            self,
            epochs=epochs,
            plain=tuple((fit(t), factor) for t, factor in self.plain),
            ib=tuple((fit(t) if t else 0, factor) for t, factor in self.ib),
            start_ib_epoch=fit(self.start_ib_epoch),
            drw_epoch=fit(self.drw_epoch),
        )


CIFAR = Schedule(
    epochs=200,
    plain=((160, 0.01), (180, 0.0001)),
    ib=((0, 0.01), (160, 0.0001), (180, 0.000001)),
    start_ib_epoch=100,
)
TINY_IMAGENET = Schedule(
    epochs=100, plain=((90, 0.1),), ib=((0, 0.01), (90, 0.001)), start_ib_epoch=50
)


def in_ib_phase(epoch: int, loss_type: str, start_ib_epoch: int) -> bool:
    """Whether 0-based ``epoch`` trains with the influence-balanced loss."""
    return "IB" in loss_type and epoch >= start_ib_epoch


def learning_rate(epoch: int, lr: float, ib_phase: bool, schedule: Schedule) -> float:
    """Learning rate of 0-based ``epoch`` for the base rate ``lr``: linear warm-up, then steps.

    The IB phase has no warm-up and starts at once with a hundredth of the rate.
    """
    t = epoch + 1
    if not ib_phase and t <= WARMUP_EPOCHS:
        return lr * t / WARMUP_EPOCHS
    factor = 1.0
    for milestone, value in schedule.ib if ib_phase else schedule.plain:
        if t > milestone:
            factor = value
    return lr * factor
