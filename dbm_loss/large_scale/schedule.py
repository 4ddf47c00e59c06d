"""The learning rate of an epoch, and the epoch at which class weights set in."""

import math
from dataclasses import dataclass

from common.training.schedules import stretch

# The length of the published runs, for which the numbers below were made.
DESIGNED_FOR = {"imgnet": 90, "inat": 100, "imagefolder": 90}
WARMUP_EPOCHS = 5
PEAK = 4  # epoch (0-based) at which the cosine reaches its top
MILESTONES = (60, 80)
DRW_EPOCH, DRW_DESIGNED_FOR = 160, 200  # of the CIFAR recipe, as in the original


@dataclass(frozen=True)
class Schedule:
    """Rates of a run of ``epochs`` epochs, constant within each.

    ``cos``: half a cosine around its peak at epoch 4. The original announces five epochs of warm-up
    and means this shift: the run starts a little below ``lr`` and is at ``lr`` in epoch 4. A run of
    fewer than 5 epochs, for which that is undefined or erratic, gets the cosine without the shift.
    Otherwise: linear warm-up over 5 epochs, then a tenth of ``lr`` from epoch 60 and a hundredth
    from epoch 80 on (0-based).

    ``stretched`` moves peak and milestones to the fraction of ``epochs`` that they have in the
    published run.
    """

    dataset: str
    lr: float
    epochs: int
    cos: bool
    stretched: bool = False

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs (0-based) at which the step schedule divides the rate by 10."""
        if not self.stretched:
            return MILESTONES
        return tuple(stretch(step, self.epochs, DESIGNED_FOR[self.dataset]) for step in MILESTONES)

    @property
    def drw_epoch(self) -> int:
        """First epoch (0-based) with class weights, for ``ce_drw`` and ``ldam_drw``."""
        if not self.stretched:
            return DRW_EPOCH
        return stretch(DRW_EPOCH, self.epochs, DRW_DESIGNED_FOR)

    def __call__(self, epoch: int) -> float:
        """The learning rate of epoch ``epoch`` (0-based)."""
        if self.cos:
            peak = PEAK if self.epochs > PEAK else 0
            if self.stretched:
                peak = PEAK * self.epochs / DESIGNED_FOR[self.dataset]
            angle = math.pi * (epoch - peak) / (self.epochs - peak)
            return self.lr * 0.5 * (1.0 + math.cos(angle))
        if epoch < WARMUP_EPOCHS:
            return self.lr * (epoch + 1) / WARMUP_EPOCHS
        return self.lr * 0.1 ** sum(epoch >= step for step in self.milestones)
