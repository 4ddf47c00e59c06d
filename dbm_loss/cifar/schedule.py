"""Learning rate and stages of the CIFAR program, as the authors coded them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.training.schedules import stretch, unreached
from dbm_loss.flags import LDAM_STAGE

# 1-based epochs after which the step schedule multiplies by lr_decay, by the length of the run.
STEPS = {200: (160, 180), 400: (320, 360)}
BCL_STEPS = {200: (160, 180), 400: (360, 380)}
COSINE_EPOCHS = 200  # the only run length for which the authors honour --cos
DRW_EPOCH = 160  # of 200
LR_DECAY = 0.01


@dataclass(frozen=True)
class Schedule:
    """Learning rate of a run of ``epochs`` epochs, constant within each.

    ``scheduler == "cosine"`` is PyTorch's cosine from ``lr`` to 0, already moved on by one epoch.
    Otherwise: a linear warm-up of ``warmup`` epochs, then a cosine (``cos``, 200 epochs) or two
    steps (200 and 400 epochs), and for any other number of epochs a constant rate, without
    warm-up. The cosine starts at its second point, is 0 in the last epoch but one and rises again.

    ``stretched`` fits the schedule of the published run into ``epochs``: that is 400 epochs with
    steps for NCL, and 200 epochs with the cosine or steps for the others.
    """

    loss_fn: str
    lr: float
    epochs: int
    cos: bool = False
    scheduler: str = "warmup"
    warmup: int = 5
    lr_decay: float = LR_DECAY
    stretched: bool = False

    @property
    def kind(self) -> str:
        """``torch_cosine``, ``cosine``, ``steps`` or ``constant``."""
        if self.scheduler == "cosine":
            return "torch_cosine"
        if self.stretched:
            return "cosine" if self.cos and self.loss_fn != "ncl" else "steps"
        if self.cos and self.epochs == COSINE_EPOCHS:
            return "cosine"
        return "steps" if self.epochs in STEPS else "constant"

    @property
    def milestones(self) -> tuple[int, ...]:
        """1-based epochs after which the rate is multiplied by ``lr_decay``; none but for steps."""
        if self.kind != "steps":
            return ()
        steps = BCL_STEPS if self.loss_fn == "bcl" else STEPS
        if not self.stretched:
            return steps[self.epochs]
        published = 400 if self.loss_fn == "ncl" else 200
        return tuple(stretch(step, self.epochs, published) for step in steps[published])

    @property
    def drw_epoch(self) -> int | None:
        """First epoch (0-based) with class weights, None for losses that have none."""
        if self.loss_fn == "ldam":
            return LDAM_STAGE
        if self.loss_fn not in ("ce_drw", "ldam_drw"):
            return None
        return stretch(DRW_EPOCH, self.epochs, 200) if self.stretched else DRW_EPOCH

    def __call__(self, epoch: int) -> float:
        """The learning rate of 0-based ``epoch``."""
        e = epoch + 1
        if self.kind == "torch_cosine":
            return self.lr * (1 + math.cos(math.pi * e / self.epochs)) / 2
        if self.kind == "constant":
            return self.lr
        if e <= self.warmup:
            return self.lr * e / self.warmup
        if self.kind == "cosine":
            angle = math.pi * (e - self.warmup + 1) / (self.epochs - self.warmup)
            return self.lr * 0.5 * (1 + math.cos(angle))
        return self.lr * self.lr_decay ** sum(e > step for step in self.milestones)

    def notes(self) -> list[str]:
        """What of flags and schedule has no effect in this run, a sentence each."""
        found = []
        if self.kind == "constant":
            found.append(
                f"--epochs {self.epochs}: the learning rate is constant, no warm-up and no decay; "
                "the schedules are made for 200 and 400 epochs, --stretch_schedule fits them in"
            )
        if self.cos and self.kind != "cosine":
            why = f"it is made for {COSINE_EPOCHS} epochs, --stretch_schedule fits it in"
            if self.kind == "torch_cosine":
                why = "--scheduler cosine is another one"
            elif self.loss_fn == "ncl":
                why = "NCL's published 400 epochs have steps; --scheduler cosine has none"
            found.append(f"--cos has no effect with --epochs {self.epochs}: {why}")
        if self.lr_decay != LR_DECAY and self.kind != "steps":
            found.append(f"--lr_decay {self.lr_decay} has no effect: the schedule has no steps")
        found = [f"note: {note}" for note in found]
        steps = {*self.milestones, *([self.drw_epoch] if self.loss_fn.endswith("_drw") else [])}
        if note := unreached(sorted(steps), self.epochs, self.stretched):
            found.append(note)
        return found
