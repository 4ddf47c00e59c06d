"""Influence-Balanced Loss for Imbalanced Visual Classification (Park et al., ICCV 2021).

https://arxiv.org/abs/2110.02444. Where the paper and the authors' code disagree, the code decides.
Every loss is a plain module: logits (N, K) and integer labels (N,) in, a scalar out; any device;
float32 and float64; half precision is computed in float32, also inside autocast. Class weights and
class counts are lists, arrays or tensors (K,); weights, which are copied, and margins follow the
logits' device and dtype. Other shapes, integer logits, labels that are no integers, weights or
constants out of their range and (on the CPU) labels outside 0..K-1 raise ValueError, labels that
are no tensor TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _at_least_float32(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"expected floating-point logits and features, got {tensor.dtype}")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _class_weight(weight: Tensor | Sequence[float] | None) -> Tensor | None:
    """A copy, which no later change of the caller's weights reaches."""
    if weight is None:
        return None
    weight = torch.as_tensor(weight).detach().clone()
    fits = (weight >= 0) & (weight < torch.inf)
    if not fits.all():
        raise ValueError(f"class weights must be finite and not negative, got {weight[~fits][0]}")
    return weight


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Per-sample weighted cross entropy l_i = w_y · (−log p_y), (N,)."""
    weight = None if weight is None else weight.to(logits)
    return F.cross_entropy(logits, target, weight=weight, reduction="none")


def _checked_labels(logits: Tensor, target: Tensor, **per_class: Tensor | None) -> Tensor:
    """The labels in int64; ValueError says what does not fit, also of constants of the classes."""
    if not isinstance(target, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(target).__name__}")
    if logits.ndim != 2 or target.shape != logits.shape[:1] or target.is_floating_point():
        raise ValueError(
            "expected logits (N, K) and integer labels (N,), got logits "
            f"{tuple(logits.shape)} and labels {tuple(target.shape)} of {target.dtype}"
        )
    for name, values in per_class.items():
        if values is not None and values.shape != logits.shape[1:]:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, expected ({logits.shape[1]},) "
                "as the logits have that many columns"
            )
    target = target.long()  # of unsigned ones torch has no minimum
    # Elsewhere looking would wait for the device, and while compiling it would cut the graph.
    if target.device.type == "cpu" and len(target) and not torch.compiler.is_compiling():
        for label in (int(target.min()), int(target.max())):
            if not 0 <= label < logits.shape[1]:
                raise ValueError(f"label {label} with logits of {logits.shape[1]} classes")
    return target


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
        logits, target: (N, K) and integer labels (N,).
        features: H, (N,) or (N, 1), or the features h themselves, (N, D) with D > 1. A feature map
            (N, D, …) is averaged over its positions first: that is the h which a classifier behind
            global average pooling sees.
    Returns: (N,).
    """
    target = _checked_labels(logits, target)
    if features.shape[:1] != logits.shape[:1]:
        raise ValueError(
            f"expected features (N, D), norms (N, 1) or maps (N, D, …) for N = {len(logits)} "
            f"samples, got features {tuple(features.shape)}"
        )
    one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    u = (logits.softmax(dim=1) - one_hot).abs().sum(dim=1)
    if features.ndim > 2:
        norm = features.flatten(2).mean(dim=2).abs().sum(dim=1)
    else:
        is_norm = features.ndim == 1 or features.shape[1] == 1
        norm = features if is_norm else features.abs().sum(dim=1)
    return alpha / (u * norm.reshape(-1) + epsilon)


class FocalLoss(nn.Module):
    """Focal loss (Lin et al., ICCV 2017) with the authors' factor 10.

    L = mean 10 · (1 − q)^γ · l with l the weighted cross entropy and q = exp(−l) = p_y^{w_y}:
    the class weight also acts inside q, where Lin et al. have p_y. The mean divides by N, not by
    the sum of weights.

    Args:
        weight: class weights (K,), or None.
        gamma: γ ≥ 0; between 0 and 1 the gradient of a perfect sample is not finite.
    """

    def __init__(self, weight: Tensor | Sequence[float] | None = None, gamma: float = 0.0) -> None:
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.gamma = gamma
        self.register_buffer("weight", _class_weight(weight), persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, K) and labels (N,) -> scalar."""
        with torch.autocast(input.device.type, enabled=False):
            target = _checked_labels(input, target, weight=self.weight)
            input = _at_least_float32(input)
            return focal_loss(_cross_entropy(input, target, self.weight), self.gamma)

    def extra_repr(self) -> str:
        return f"weighted={self.weight is not None}, gamma={self.gamma}"


class LDAMLoss(nn.Module):
    """Label-distribution-aware margin loss (Cao et al., NeurIPS 2019, equation 13).

    The logit of the true class loses the margin m_c = max_m · n_c^{−1/4} / max_k n_k^{−1/4}, all
    logits are multiplied by s, then weighted-mean cross entropy. Equation 13 leaves the constant
    above n_c^{1/4} open and has no s. Margins are float32 also for float64 logits, as in the
    original.

    Args:
        cls_num_list: training images per class, none of them 0.
        max_m: largest margin, at least 0. weight: class weights (K,), or None. s: scale > 0.
    """

    def __init__(
        self,
        cls_num_list: Tensor | Sequence[int],
        max_m: float = 0.5,
        weight: Tensor | Sequence[float] | None = None,
        s: float = 30,
    ) -> None:
        super().__init__()
        if not max_m >= 0:
            raise ValueError(f"max_m must not be negative, got {max_m}")
        if not s > 0:
            raise ValueError(f"the scale s must be positive, got {s}")
        counts = torch.as_tensor(cls_num_list, dtype=torch.float64)
        if counts.numel() == 0 or not (counts > 0).all():
            raise ValueError("cls_num_list: a class without training images has no margin")
        margins = counts**-0.25
        margins = margins * (max_m / margins.max())
        self.max_m, self.s = max_m, s
        self.register_buffer("m_list", margins.float(), persistent=False)
        self.register_buffer("weight", _class_weight(weight), persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Logits or cosines (N, K) and labels (N,) -> scalar."""
        with torch.autocast(x.device.type, enabled=False):
            target = _checked_labels(x, target, weight=self.weight, cls_num_list=self.m_list)
            x = _at_least_float32(x)
            margin = F.one_hot(target, x.shape[1]) * self.m_list.to(x)[target, None]
            weight = None if self.weight is None else self.weight.to(x)
            return F.cross_entropy(self.s * (x - margin), target, weight=weight)

    def extra_repr(self) -> str:
        weighted, num_classes = self.weight is not None, len(self.m_list)
        return f"weighted={weighted}, num_classes={num_classes}, max_m={self.max_m}, s={self.s}"


class IBLoss(nn.Module):
    """Influence-balanced loss: L = mean l · r, with r from ``influence_factor``.

    l is the cross entropy times the class weight. The paper's class factors λ_k, as we read it, sum
    to α; in the authors' programs, and in ours, the weights sum to K and α stands in r, so the loss
    is K times the paper's. ε = 0.001 is the authors'.

    With H the feature norm, a sample that pulls the boundary hard (large u · H) counts less. The
    loss of a well-classified sample tends to w · α / (2H), not to 0: choose α so that the loss has
    about the size that it had before (1000 on CIFAR).

    Args:
        weight: class weights (K,), or None for ones.
        alpha: α > 0. The training programs use 1000.
    """

    epsilon = 0.001

    def __init__(
        self, weight: Tensor | Sequence[float] | None = None, alpha: float = 10000.0
    ) -> None:
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha = alpha
        self.register_buffer("weight", _class_weight(weight), persistent=False)

    def forward(self, input: Tensor, target: Tensor, features: Tensor) -> Tensor:
        """Logits (N, K), labels (N,), features as in ``influence_factor`` -> scalar.

        Raises ValueError where their shapes do not fit.
        """
        with torch.autocast(input.device.type, enabled=False):
            target = _checked_labels(input, target, weight=self.weight)
            input, features = _at_least_float32(input), _at_least_float32(features)
            factor = influence_factor(input, target, features, self.alpha, self.epsilon)
            return ib_loss(_cross_entropy(input, target, self.weight), factor)

    def extra_repr(self) -> str:
        return f"weighted={self.weight is not None}, alpha={self.alpha}"


class IB_FocalLoss(nn.Module):
    """Influence-balanced focal loss: L = mean (1 − q)^γ · l · r, without the focal factor 10.

    Args:
        weight, alpha: as for ``IBLoss``.
        gamma: γ ≥ 0; the training programs use 1. Between 0 and 1 the gradient of a perfect sample
            is not finite.
    """

    epsilon = 0.001

    def __init__(
        self,
        weight: Tensor | Sequence[float] | None = None,
        alpha: float = 10000.0,
        gamma: float = 0.0,
    ) -> None:
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if not gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.alpha, self.gamma = alpha, gamma
        self.register_buffer("weight", _class_weight(weight), persistent=False)

    def forward(self, input: Tensor, target: Tensor, features: Tensor) -> Tensor:
        """Logits (N, K), labels (N,), features as in ``influence_factor`` -> scalar.

        Raises ValueError where their shapes do not fit.
        """
        with torch.autocast(input.device.type, enabled=False):
            target = _checked_labels(input, target, weight=self.weight)
            input, features = _at_least_float32(input), _at_least_float32(features)
            factor = influence_factor(input, target, features, self.alpha, self.epsilon)
            losses = _cross_entropy(input, target, self.weight)
            return ib_focal_loss(losses, factor, self.gamma)

    def extra_repr(self) -> str:
        return f"weighted={self.weight is not None}, alpha={self.alpha}, gamma={self.gamma}"
