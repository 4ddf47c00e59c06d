"""A network and what trains it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from common.training.speed import Forward


@dataclass(frozen=True)
class Learner:
    """What a step of training takes, besides images and their loss.

    Attributes:
        scaler: of the gradients, for fp16.
        forward: computes loss and logits of a batch; compiled, if asked for.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    forward: Forward
