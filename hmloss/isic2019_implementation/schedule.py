"""The cyclic learning rate of the ISIC program."""

import math

STEP_SIZE = 2000  # torch's default half cycle, which the original leaves as it is
PAPER_EPOCHS, START_HM_EPOCH = 100, 50


def cyclic_lr(max_lr: float, step: int, step_size: int = STEP_SIZE) -> float:
    """``triangular2``: from max_lr/100 up to max_lr and down, each cycle half as high.

    The original steps it once an epoch (step = epoch − 1), so that a run of 100 epochs only climbs
    from max_lr/100 to 0.059 max_lr. Its authors evidently meant iterations: ``--step_size_up``.

    Args:
        step: epochs, or iterations, so far; from 0.
        step_size: half a cycle, in the same unit.
    """
    base_lr = max_lr / 100
    cycle = math.floor(1 + step / (2 * step_size))
    x = 1 + step / (2 * step_size) - cycle
    scale = 2 * x if x <= 0.5 else 2 * (1 - x)
    return base_lr + (max_lr - base_lr) * scale * 2.0 ** -(cycle - 1)
