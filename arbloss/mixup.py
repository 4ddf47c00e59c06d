"""Mixup of a batch and the loss on it (Zhang et al., ICLR 2018, https://arxiv.org/abs/1710.09412)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def mixup_data(x: Tensor, y: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mix every sample with another one of the batch: lam x + (1 - lam) x[index].

    One lam ~ Beta(alpha, alpha) per batch, from numpy's global generator (1 without a draw if
    ``alpha`` is 0); ``index`` is a permutation from torch's CPU generator.

    Returns:
        The mixed batch, the labels y, the labels y[index], and lam.
    """
    lam = float(np.random.beta(alpha, alpha)) if alpha > 0 else 1.0
    index = torch.randperm(len(x)).to(x.device, non_blocking=True)
    return lam * x + (1 - lam) * x[index], y, y[index], lam


def mixup_criterion(
    criterion: Callable[..., Tensor],
    logits: Tensor,
    y_a: Tensor,
    y_b: Tensor,
    lam: float,
    class_cnt: Tensor | None = None,
) -> Tensor:
    """lam criterion(logits, y_a) + (1 - lam) criterion(logits, y_b).

    Class counts, if given, go as third argument to both calls. Batch counts are those of the
    un-mixed labels; y_b is a permutation of y_a, so that no label of either has count 0.
    """
    counts = () if class_cnt is None else (class_cnt,)
    return lam * criterion(logits, y_a, *counts) + (1 - lam) * criterion(logits, y_b, *counts)
