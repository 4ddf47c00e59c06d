"""Losses of HMLoss (GRETSI 2022, https://hal.science/hal-03725510) and those it is compared with.

In every loss ``l_i = w_{y_i} · (logsumexp(z_i) − z_{i,y_i})`` is the per-sample cross-entropy with
the class weight inside. Logits are (N, C) of any floating type on any device, labels (N,) integers;
the result is a scalar in float32 (float64 for float64 logits), also inside autocast. Class weights
and class counts are lists, arrays or tensors (C,); the weights are copied. Other shapes, integer
logits, labels that are no integers, weights or constants out of their range and (on the CPU) labels
outside 0..C-1 raise ValueError, labels that are no tensor TypeError.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST, HIGHEST = 1e-10, 1 - 1e-10  # bounds of the probability inside HML


def focal_loss(input_values: Tensor, gamma: float) -> Tensor:
    """Mean of ``(1 − q)^γ · l`` with ``q = exp(−l)``; `input_values` are the l_i, shape (N,)."""
    q = torch.exp(-input_values)
    return ((1 - q) ** gamma * input_values).mean()


def softmax_hard_mining_loss(input_values: Tensor, delta: float) -> Tensor:
    """Mean of ``10 · m(p) · l`` with ``p = exp(−l)``; `input_values` are the l_i, shape (N,).

    ``m(p) = sin(πp)/(πp) − exp(−δp)·sin(πδp)/(πδp)``: the first term fades easy samples out, the
    second one outliers. p is kept in [1e-10, 1 − 1e-10]; beyond that only the factor l carries
    gradient.
    """
    p = torch.exp(-input_values).clamp(LOWEST, HIGHEST)
    outlier = p * delta
    modulation = torch.sinc(p) - torch.exp(-outlier) * torch.sinc(outlier)  # sinc x = sin(πx)/(πx)
    return (modulation * input_values * 10).mean()


def _full_precision(logits: Tensor) -> Tensor:
    if not logits.is_floating_point():
        raise ValueError(f"expected floating-point logits, got {logits.dtype}")
    return logits if logits.dtype == torch.float64 else logits.float()


def _checked_labels(logits: Tensor, target: Tensor, **per_class: Tensor | None) -> Tensor:
    """The labels in int64; ValueError says what does not fit, also of constants of the classes."""
    if not isinstance(target, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(target).__name__}")
    if logits.ndim != 2 or target.shape != logits.shape[:1] or target.is_floating_point():
        raise ValueError(
            "expected logits (N, C) and integer labels (N,), got logits "
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


class _ClassWeighted(nn.Module):
    """A copy of the class weights, a buffer outside the state dict; the l_i in full precision."""

    def __init__(self, weight: Tensor | Sequence[float] | None = None):
        super().__init__()
        if weight is not None:
            weight = torch.as_tensor(weight).detach().clone()
            fits = (weight >= 0) & (weight < torch.inf)
            if not fits.all():
                raise ValueError(
                    f"class weights must be finite and not negative, got {weight[~fits][0]}"
                )
        self.register_buffer("weight", weight, persistent=False)

    def cross_entropy(self, logits: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
        """Weighted cross-entropy in float32, or float64 for float64 logits."""
        target = _checked_labels(logits, target, weight=self.weight)
        logits = _full_precision(logits)
        weight = None if self.weight is None else self.weight.to(logits)
        return F.cross_entropy(logits, target, weight=weight, reduction=reduction)

    def extra_repr(self) -> str:
        return f"weighted={self.weight is not None}"


class CELoss(_ClassWeighted):
    """Cross-entropy; with weights the weighted mean ``Σ l_i / Σ w_{y_i}``, as torch defines it."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C) and labels (N,) -> scalar."""
        return self.cross_entropy(input, target, reduction="mean")


class FocalLoss(_ClassWeighted):
    """Focal loss (Lin et al., ICCV 2017) with the class weight inside the exponent: ``q = p^w``.

    The mean divides by N, not by the weights. Nothing is detached. The CIFAR program uses γ = 0,
    with which this is cross-entropy, the ISIC program γ = 1.

    Args:
        weight: (C,) class weights, or None for ones.
        gamma: exponent, at least 0; below 1 the gradient of a perfect sample is not finite.
    """

    def __init__(self, weight: Tensor | Sequence[float] | None = None, gamma: float = 0.0):
        super().__init__(weight)
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        self.gamma = gamma

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C) and labels (N,) -> scalar."""
        return focal_loss(self.cross_entropy(input, target), self.gamma)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma}"


class HMLoss(_ClassWeighted):
    """Hard mining loss: ``L = (1/N) Σ 10 · m(p_i) · l_i`` with ``p_i = exp(−l_i)`` and

    ``m(p) = sin(πp)/(πp) − exp(−δp) · sin(πδp)/(πδp)``.

    Three zones of the true-class probability p (weights of 1):

    * easy, p above 0.6: m ≈ 1 − p, the loss is about ``10 (1 − p)²``;
    * informative: m close to 1, the loss follows ten times the cross-entropy;
    * outliers, p below the peak p*: the loss falls towards 0, descent pushes them further away.

    Where the peak lies: p* ≈ 1.1/δ to 1.3/δ for δ ≥ 100 and the height is m·l at p*:

    ======  ==========  ==============  ====================================
    δ       p*          peak of 10·m·l  m ≥ 1/2 for p between
    ======  ==========  ==============  ====================================
    10      0.094       22.7            0.041 and 0.603
    100     0.011       46.4            4.1e-3 and 0.603
    1e3     1.2e-3      70.4            4.1e-4 and 0.603
    1e4     1.2e-4      94.5            4.1e-5 and 0.603 (the programs)
    1e7     1.3e-7      167             4.1e-8 and 0.603
    1e10    none        –               0 and 0.603 (this class's default)
    ======  ==========  ==============  ====================================

    Choosing δ: decide below which probability a training sample shall count as an outlier and take
    δ ≈ 1.2 divided by it. The figure in the paper's abstract shows a peak near p = 0.007, that is
    a δ of 100 to 170, and is drawn without the factor 10.

    Class weights act in the exponent: p_i is the true-class probability to the power w_y. A rare
    class (w > 1) looks harder and reaches its outlier zone earlier, a frequent one looks easier.
    This is what the authors' code does; the mean divides by N, not by the weights.

    The factor 10 is the authors' code as well and stands in no figure of theirs. It multiplies the
    gradient by ten at the moment when the programs divide the learning rate by a hundred, so that
    the step at the stage switch falls about tenfold.

    The result is computed in float32 inside autocast: in half precision the lower bound 1e-10
    would be 0 and the loss NaN.

    Args:
        weight: (C,) class weights, or None for ones.
        delta: position of the outlier zone, above 0.

    Shape: input (N, C) logits, target (N,) int64; returns a scalar.

    Raises:
        ValueError: delta is not above 0 (the second term would be 0/0).
    """

    def __init__(
        self, weight: Tensor | Sequence[float] | None = None, delta: float = 10_000_000_000
    ):
        super().__init__(weight)
        if not delta > 0:
            raise ValueError(f"delta must be above 0, got {delta}")
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C) and labels (N,) -> scalar."""
        return softmax_hard_mining_loss(self.cross_entropy(input, target), self.delta)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, delta={self.delta}"


SoftmaxHardMiningLoss = HMLoss  # the name in the authors' code


class LDAMLoss(_ClassWeighted):
    """Label-distribution-aware margin loss (Cao et al., NeurIPS 2019).

    ``m_j ∝ n_j^(−1/4)``, the largest being `max_m`; the true class's logit becomes ``z_y − m_y``,
    then weighted cross-entropy (weighted mean) of `s` times the logits. The paper's equation 13
    has no `s`. It is meant for the cosines of a normalised classifier, which the CIFAR program has;
    the ISIC program keeps its linear one, as the authors' does.

    Args:
        cls_num_list: training images of each class, all above 0.
        max_m: margin of the rarest class, at least 0.
        weight: (C,) class weights, or None for ones.
        s: scale of the logits, above 0.
    """

    def __init__(
        self,
        cls_num_list: Tensor | Sequence[int],
        max_m: float = 0.5,
        weight: Tensor | Sequence[float] | None = None,
        s: float = 30,
    ):
        super().__init__(weight)
        if not max_m >= 0:
            raise ValueError(f"max_m must be at least 0, got {max_m}")
        if not s > 0:
            raise ValueError(f"s must be above 0, got {s}")
        counts = torch.as_tensor(cls_num_list, dtype=torch.float64)
        if counts.numel() == 0 or not (counts > 0).all():
            raise ValueError(
                "cls_num_list: every class needs at least one image, its margin divides by them"
            )
        margins = counts**-0.25
        margins = margins * (max_m / margins.max())
        # float32 whatever the logits are, as in the authors' code.
        self.register_buffer("m_list", margins.float(), persistent=False)
        self.max_m, self.s = max_m, s

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Logits or cosines (N, C) and labels (N,) -> scalar."""
        target = _checked_labels(x, target, cls_num_list=self.m_list)
        x = _full_precision(x)
        margin = self.m_list.to(x)[target].unsqueeze(1)
        true_class = F.one_hot(target, x.shape[1]).bool()
        return self.cross_entropy(self.s * torch.where(true_class, x - margin, x), target, "mean")

    def extra_repr(self) -> str:
        num_classes = len(self.m_list)
        return f"{super().extra_repr()}, num_classes={num_classes}, max_m={self.max_m}, s={self.s}"
