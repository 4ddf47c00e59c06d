"""Learning rates of the two stages, per 0-based epoch."""

import math
from collections.abc import Sequence

PI = 3.1415926535  # the authors' digits: the rates are theirs to the last one


def cosine_lr(epoch: int, num_epochs: int, lr: float) -> float:
    """Half a cosine from ``lr`` towards 0, which epoch ``num_epochs`` would reach."""
    return 0.5 * lr * (1 + math.cos(epoch / num_epochs * PI))


def step_lr(epoch: int, lr: float, milestones: Sequence[int] = (160, 240)) -> float:
    """Linear warm-up over five epochs, then a tenth and a hundredth after the two milestones.

    The second milestone of the authors, 240, lies beyond their 200 epochs and is never reached;
    MiSLAS has it at 180.
    """
    if epoch < 5:
        return lr * (epoch + 1) / 5
    if epoch >= milestones[1]:
        return lr * 0.01
    if epoch >= milestones[0]:
        return lr * 0.1
    return lr
