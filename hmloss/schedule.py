"""Learning rate and stages of the CIFAR and iNaturalist programs, as the authors coded them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.training.schedules import stretch

WARMUP_EPOCHS = 5


@dataclass(frozen=True)
class Schedule:
    """Milestones, made for a run of ``epochs`` epochs; every number counts epochs from 1.

    Attributes:
        milestones: after these the learning rate falls to a hundredth, then to a hundredth again.
        start_hm_epoch: so many epochs belong to the first stage.
    """

    epochs: int = 200
    milestones: tuple[int, int] = (160, 180)
    start_hm_epoch: int = 100

    def stretched(self, epochs: int) -> Schedule:
        """The same schedule for another run length: a faithful miniature (warm-up kept)."""

        def fit(milestone: int) -> int:
            return stretch(milestone, epochs, self.epochs)

        first, second = self.milestones
        return replace(
            self,
            epochs=epochs,
            milestones=(fit(first), fit(second)),
            start_hm_epoch=fit(self.start_hm_epoch),
        )


def in_hml_stage(epoch: int, loss_type: str, start_hm_epoch: int) -> bool:
    """Whether ``epoch`` trains with the second stage's loss; both count from 0, or both from 1."""
    return "HML" in loss_type and epoch >= start_hm_epoch


def learning_rate(epoch: int, lr: float, hml_stage: bool, schedule: Schedule) -> float:
    """Learning rate of 0-based ``epoch`` for the base rate ``lr``: linear warm-up, then steps.

    The second stage has no warm-up and starts at once with a hundredth of the rate.
    """
    t = epoch + 1
    if not hml_stage and t <= WARMUP_EPOCHS:
        return lr * t / WARMUP_EPOCHS
    first, second = schedule.milestones
    factors = (0.01, 0.0001, 0.000001) if hml_stage else (1.0, 0.01, 0.0001)
    return lr * factors[(t > first) + (t > second)]
