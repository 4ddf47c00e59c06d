"""Influence-Balanced Loss for Imbalanced Visual Classification (Park et al., ICCV 2021).

https://arxiv.org/abs/2110.02444. Where the paper and the authors' code disagree, the code decides.
Every loss is a plain module: logits (N, K) in, a scalar out; any device; float32 and float64;
computed in float32 under autocast. Class weights and margins follow the logits' device and dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Per-sample weighted cross entropy l_i = w_y · (−log p_y), (N,)."""
    weight = None if weight is None else weight.to(logits)
    return F.cross_entropy(logits, target, weight=weight, reduction="none")


def _check_target(target: Tensor, num_classes: int) -> None:
    """On the CPU, where it costs nothing, name a label that the logits have no column for."""
    if target.device.type == "cpu" and len(target) and int(target.max()) >= num_classes:
        raise ValueError(f"label {int(target.max())} with logits of only {num_classes} classes")


def focal_loss(input_values: Tensor, gamma: float) -> Tensor:
    """Mean of 10 · (1 − q)^γ · l with q = exp(−l), over per-sample losses l of shape (N,).

    The constant factor 10 is the authors'; LDAM-DRW's focal loss has none.
    """
    q = torch.exp(-input_values)
    return (10 * (1 - q) ** gamma * input_values).mean()


def ib_loss(input_values: Tensor, ib: Tensor) -> Tensor:
    """Mean of l · r over per-sample losses l and influence factors r, both (N,)."""
    return (input_values * ib).mean()


def ib_focal_loss(input_values: Tensor, ib: Tensor, gamma: float) -> Tensor:
    """Mean of (1 − q)^γ · l · r with q = exp(−l), over losses l and factors r, both (N,)."""
    q = torch.exp(-input_values)
    return ((1 - q) ** gamma * input_values * ib).mean()


def influence_factor(
    logits: Tensor, target: Tensor, features: Tensor, alpha: float, epsilon: float
) -> Tensor:
    """r_i = α / (u_i · H_i + ε): the inverse of a sample's influence on the decision boundary.

    u_i = ‖softmax(z_i) − e_y‖₁ is the gradient of cross entropy with respect to the logits, and
    H_i = ‖h_i‖₁ the penultimate feature's norm; their product is the influence (section 3.3).
    Nothing is detached: gradients reach the logits through u and the backbone through H.

    Args:
        features: H, (N,) or (N, 1), or the features h themselves, (N, D) with D > 1.
    Returns: (N,).
    """
    one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    u = (logits.softmax(dim=1) - one_hot).abs().sum(dim=1)
    norm = features.abs().sum(dim=1) if features.dim() == 2 and features.shape[1] > 1 else features
    return alpha / (u * norm.reshape(-1) + epsilon)


class FocalLoss(nn.Module):
    """Focal loss (Lin et al., ICCV 2017) with the authors' factor 10.

    L = mean 10 · (1 − q)^γ · l with l the weighted cross entropy and q = exp(−l) = p_y^{w_y}:
    the class weight also acts inside q. The mean divides by N, not by the sum of weights.

    Args:
        weight: class weights (K,), or None. gamma: γ ≥ 0.
    """

    def __init__(self, weight: Tensor | None = None, gamma: float = 0.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.gamma = gamma
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, K) and labels (N,) -> scalar."""
        with torch.autocast(input.device.type, enabled=False):
            _check_target(target, input.shape[1])
            input = _at_least_float32(input)
            return focal_loss(_cross_entropy(input, target, self.weight), self.gamma)


class LDAMLoss(nn.Module):
    """Label-distribution-aware margin loss (Cao et al., NeurIPS 2019, equation 13).

    The logit of the true class loses the margin m_c = max_m · n_c^{−1/4} / max_k n_k^{−1/4}, all
    logits are multiplied by s, then weighted-mean cross entropy. Margins are float32 also for
    float64 logits, as in the original.

    Args:
        cls_num_list: training images per class, none of them 0.
        max_m: largest margin. weight: class weights (K,), or None. s: scale > 0.
    """

    def __init__(
        self,
        cls_num_list: Sequence[int],
        max_m: float = 0.5,
        weight: Tensor | None = None,
        s: float = 30,
    ) -> None:
        super().__init__()
        if s <= 0:
            raise ValueError(f"the scale s must be positive, got {s}")
        if min(cls_num_list) <= 0:
            raise ValueError("a class without training images has no margin")
        margins = 1.0 / np.sqrt(np.sqrt(np.asarray(cls_num_list, dtype=np.float64)))
        margins = torch.from_numpy(margins * (max_m / margins.max())).float()
        self.s = s
        self.register_buffer("m_list", margins, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Logits or cosines (N, K) and labels (N,) -> scalar."""
        with torch.autocast(x.device.type, enabled=False):
            _check_target(target, x.shape[1])
            x = _at_least_float32(x)
            margin = F.one_hot(target, x.shape[1]) * self.m_list.to(x)[target, None]
            weight = None if self.weight is None else self.weight.to(x)
            return F.cross_entropy(self.s * (x - margin), target, weight=weight)


class IBLoss(nn.Module):
    """Influence-balanced loss: L = mean l · r, with r from ``influence_factor``.

    With H the feature norm, a sample that pulls the boundary hard (large u · H) counts less. The
    loss of a well-classified sample tends to w · α / (2H), not to 0: choose α so that the loss has
    about the size that it had before (1000 on CIFAR).

    Args:
        weight: class weights (K,) (the paper's λ_k), or None.
        alpha: α > 0. The training programs use 1000.
    """

    epsilon = 0.001

    def __init__(self, weight: Tensor | None = None, alpha: float = 10000.0) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha = alpha
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, input: Tensor, target: Tensor, features: Tensor) -> Tensor:
        """Logits (N, K), labels (N,), feature norms (N, 1) or features (N, D) -> scalar."""
        with torch.autocast(input.device.type, enabled=False):
            _check_target(target, input.shape[1])
            input, features = _at_least_float32(input), _at_least_float32(features)
            factor = influence_factor(input, target, features, self.alpha, self.epsilon)
            return ib_loss(_cross_entropy(input, target, self.weight), factor)


class IB_FocalLoss(nn.Module):
    """Influence-balanced focal loss: L = mean (1 − q)^γ · l · r, without the focal factor 10.

    Args:
        weight, alpha: as for ``IBLoss``. gamma: γ ≥ 0; the training programs use 1.
    """

    epsilon = 0.001

    def __init__(
        self, weight: Tensor | None = None, alpha: float = 10000.0, gamma: float = 0.0
    ) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha, self.gamma = alpha, gamma
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, input: Tensor, target: Tensor, features: Tensor) -> Tensor:
        """Logits (N, K), labels (N,), feature norms (N, 1) or features (N, D) -> scalar."""
        with torch.autocast(input.device.type, enabled=False):
            _check_target(target, input.shape[1])
            input, features = _at_least_float32(input), _at_least_float32(features)
            factor = influence_factor(input, target, features, self.alpha, self.epsilon)
            losses = _cross_entropy(input, target, self.weight)
            return ib_focal_loss(losses, factor, self.gamma)
