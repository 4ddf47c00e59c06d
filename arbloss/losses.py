"""Attraction-Repulsion-Balanced loss, its variants, and label-aware smoothing.

ARB-Loss: Xie, Yang, Cai and He, "Neural Collapse Inspired Attraction-Repulsion-Balanced Loss for
Imbalanced Learning", Neurocomputing 527 (2023), https://arxiv.org/abs/2204.08735.
Label-aware smoothing: Zhong, Cui, Liu and Jia, "Improving Calibration for Long-Tailed Recognition"
(MiSLAS), CVPR 2021, https://arxiv.org/abs/2104.00466.

Every loss is called with logits (B, C) of any floating dtype, integer labels (B,) and, where it
takes them, class counts (C,), a list, an array or a tensor. It computes in float32 at least
(float64 stays float64), also inside autocast, on the device of the logits, and returns a scalar.
Other shapes, integer logits, labels that are no integers, constants out of their range and (on the
CPU) labels outside 0..C-1 raise ValueError, labels that are no tensor TypeError.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGIT_BOUND = 30.0  # the authors clamp the logits before the exponential; no gradient beyond


def batch_class_counts(target: Tensor, num_classes: int) -> Tensor:
    """Number of samples of each class in a batch: float32 (C,), zeros for absent classes.

    Unlike ``torch.bincount`` this does not wait for the GPU. Raises IndexError for a label
    outside 0..C-1 (on CPU; a device assertion on GPU).
    """
    ones = torch.ones(target.shape, device=target.device)
    return torch.zeros(num_classes, device=target.device).index_add_(0, target.long(), ones)


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits in float32, others as they are; ValueError for integers."""
    if not logits.is_floating_point():
        raise ValueError(f"expected floating-point logits, got {logits.dtype}")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _checked_labels(logits: Tensor, target: Tensor, **per_class: Tensor | None) -> Tensor:
    """The labels in int64; ValueError says what does not fit, also of constants of the classes."""
    if not isinstance(target, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(target).__name__}")
    if logits.ndim != 2 or target.shape != logits.shape[:1] or target.is_floating_point():
        raise ValueError(
            "expected logits (B, C) and integer labels (B,), got logits "
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


def _checked_counts(
    class_cnt: Tensor | Sequence[float], target: Tensor, like: Tensor, validate: bool
) -> Tensor:
    """The counts in dtype and device of ``like``; refuses a label whose count is not positive."""
    counts = torch.as_tensor(class_cnt, dtype=like.dtype, device=like.device)
    if counts.shape != like.shape[1:]:
        raise ValueError(
            f"class_cnt has shape {tuple(counts.shape)}, expected ({like.shape[1]},) "
            "as the logits have that many columns"
        )
    looked_at = validate and not torch.compiler.is_compiling()  # looking would cut the graph
    if looked_at and not (counts[target] > 0).all():
        empty = torch.unique(target[~(counts[target] > 0)]).tolist()
        raise ValueError(f"class_cnt is not positive for classes that are in the batch: {empty}")
    return counts


class ARBLoss(nn.Module):
    """ARB-Loss: softmax cross-entropy whose class k repels with weight n_k / n_y.

        l_i = -log( e^{z_iy} / sum_k (n_k / n_y) e^{z_ik} ),   z clamped to [-30, 30]

    which is the cross-entropy of z + log n. So with the class counts of the training set it is
    exactly Balanced Softmax, and with those of the mini-batch it is the same with local counts: a
    class that is absent from the batch has n_k = 0, repels nothing, and its logit gets gradient
    exactly 0. Equal counts give plain cross-entropy on the clamped logits. The counts carry no
    gradient, and neither does a logit outside the clamp.

    The authors' code is followed. The clamp is its own. Although the paper argues with neural
    collapse, the classifier in front is an ordinary linear one with a bias: no fixed (simplex)
    weights, no normalisation, no scale.

    Args:
        reduction: ``"mean"`` over the batch or ``"sum"``.
        validate: raise ValueError when a label of the batch has no positive count. On a GPU the
            check waits for the device, so a program that counts the batch itself turns it off;
            a compiled loss leaves it out.
    """

    def __init__(self, reduction: str = "mean", validate: bool = True):
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        self.reduction = reduction
        self.validate = validate

    def forward(
        self, logits: Tensor, target: Tensor, class_cnt: Tensor | Sequence[float]
    ) -> Tensor:
        """Scalar loss of logits (B, C), labels (B,) and class counts (C,)."""
        target = _checked_labels(logits, target)
        with torch.autocast(device_type=logits.device.type, enabled=False):
            nll, _ = self._nll(logits, target, class_cnt)
            return self._reduced(nll)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, validate={self.validate}"

    def _nll(
        self, logits: Tensor, target: Tensor, class_cnt: Tensor | Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """l_i of every sample (B,), and the counts (C,) in the dtype of the computation."""
        z = full_precision(logits)
        counts = _checked_counts(class_cnt, target, z, self.validate)
        balanced = z.clamp(-LOGIT_BOUND, LOGIT_BOUND) + counts.log()  # log 0 = -inf: no repulsion
        return F.cross_entropy(balanced, target, reduction="none"), counts

    def _reduced(self, loss: Tensor) -> Tensor:
        return loss.mean() if self.reduction == "mean" else loss.sum()


class ARBFocalLoss(ARBLoss):
    """ARB-Loss with a focal factor: alpha (1 - p_i)^gamma l_i with p_i = e^{-l_i} (stage 2).

    Args:
        reduction, validate: as for ``ARBLoss``. alpha: a factor.
        gamma: γ ≥ 0; between 0 and 1 the gradient of a perfect sample is not finite.
    """

    def __init__(
        self,
        reduction: str = "mean",
        alpha: float = 1.0,
        gamma: float = 2.0,
        validate: bool = True,
    ):
        super().__init__(reduction, validate)
        if not gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self, logits: Tensor, target: Tensor, class_cnt: Tensor | Sequence[float]
    ) -> Tensor:
        """Scalar loss of logits (B, C), labels (B,) and class counts (C,)."""
        target = _checked_labels(logits, target)
        with torch.autocast(device_type=logits.device.type, enabled=False):
            nll, _ = self._nll(logits, target, class_cnt)
            one_minus_p = -torch.expm1(-nll)
            return self._reduced(self.alpha * one_minus_p**self.gamma * nll)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}, gamma={self.gamma}"


class WARBLoss(ARBLoss):
    """ARB-Loss with each sample weighted by m / n_y (stage 2).

    m is the mean count: over the classes present in the batch for batch counts (``ugcc=False``),
    over all C classes for the counts of the training set (``ugcc=True``). ``"mean"`` divides by the
    batch size, not by the sum of the weights.
    """

    def __init__(self, reduction: str = "mean", ugcc: bool = False, validate: bool = True):
        super().__init__(reduction, validate)
        self.ugcc = ugcc

    def forward(
        self, logits: Tensor, target: Tensor, class_cnt: Tensor | Sequence[float]
    ) -> Tensor:
        """Scalar loss of logits (B, C), labels (B,) and class counts (C,)."""
        target = _checked_labels(logits, target)
        with torch.autocast(device_type=logits.device.type, enabled=False):
            nll, counts = self._nll(logits, target, class_cnt)
            mean_count = counts.mean() if self.ugcc else len(target) / (counts > 0).sum()
            return self._reduced(mean_count / counts[target] * nll)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ugcc={self.ugcc}"


class LabelAwareSmoothing(nn.Module):
    """MiSLAS, equation 5: cross-entropy with more label smoothing for the larger classes.

    With t = (n - n_min) / (n_max - n_min), h = ``smooth_head`` and l = ``smooth_tail`` the factor
    of a class of n images (equation 6) is

        concave  l + (h - l) sin(pi t / 2)        linear  l + (h - l) t
        convex   h + (h - l) sin(pi (3 + t) / 2)  exp     l + (h - l) t^power

    and the loss is the mean of (1 - s_y)(-log p_y) + s_y mean_k(-log p_k). Called with class counts
    it uses the balanced probabilities of ARB-Loss, p_k = e^{z_k} / sum_j (n_j / n_y) e^{z_j} with
    clamped z, in both terms (ARB-Loss where s = 0): our reading, as the authors' file with this
    combination was never published. Classes of equal size all get ``smooth_head``.
    """

    def __init__(
        self,
        cls_num_list: Tensor | Sequence[int],
        smooth_head: float,
        smooth_tail: float,
        shape: str = "concave",
        power: float | None = None,
        validate: bool = True,
    ):
        super().__init__()
        if smooth_head is None or smooth_tail is None:
            raise ValueError("label-aware smoothing needs smooth_head and smooth_tail")
        if shape == "exp" and power is None:
            raise ValueError("label-aware smoothing of shape 'exp' needs power")
        counts = torch.as_tensor(cls_num_list, dtype=torch.float64)
        if not ((counts >= 0).all() and counts.sum() > 0):
            raise ValueError("cls_num_list must be the number of training images of each class")
        spread = counts.max() - counts.min()
        t = (counts - counts.min()) / spread if spread > 0 else torch.ones_like(counts)
        step = smooth_head - smooth_tail
        if shape == "concave":
            smooth = smooth_tail + step * torch.sin(t * math.pi / 2)
        elif shape == "linear":
            smooth = smooth_tail + step * t
        elif shape == "convex":
            smooth = smooth_head + step * torch.sin((3 + t) * math.pi / 2)
        elif shape == "exp":
            smooth = smooth_tail + step * t**power
        else:
            raise ValueError(f"shape must be concave, linear, convex or exp, got {shape!r}")
        self.smooth_head, self.smooth_tail = smooth_head, smooth_tail
        self.shape, self.power = shape, power
        self.validate = validate
        self.register_buffer("smooth", smooth.float(), persistent=False)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        class_cnt: Tensor | Sequence[float] | None = None,
    ) -> Tensor:
        """Mean loss of logits (B, C) and labels (B,); balanced as ARB-Loss by class counts (C,)."""
        target = _checked_labels(logits, target, cls_num_list=self.smooth)
        with torch.autocast(device_type=logits.device.type, enabled=False):
            z = full_precision(logits)
            if class_cnt is None:
                log_p = F.log_softmax(z, dim=1)
            else:
                z = z.clamp(-LOGIT_BOUND, LOGIT_BOUND)
                log_n = _checked_counts(class_cnt, target, z, self.validate).log()
                log_p = z - (torch.logsumexp(z + log_n, dim=1) - log_n[target]).unsqueeze(1)
            smooth = self.smooth.to(z)[target]
            nll = -log_p.gather(1, target.unsqueeze(1)).squeeze(1)
            return ((1 - smooth) * nll - smooth * log_p.mean(dim=1)).mean()

    def extra_repr(self) -> str:
        return (
            f"num_classes={len(self.smooth)}, smooth_head={self.smooth_head}, "
            f"smooth_tail={self.smooth_tail}, shape={self.shape!r}, power={self.power}, "
            f"validate={self.validate}"
        )
