"""The losses that the paper puts its margin in front of.

Each takes logits (B, C) and integer labels (B,), computes in float32 under autocast (float64 stays
float64) and keeps its constants as float32 buffers, which follow the logits' device and are not in
its ``state_dict``. Class counts are a list, an array or a tensor (C,). Other shapes, integer
logits, labels that are no integers, constants out of their range and (on the CPU) labels outside
0..C-1 raise ValueError, labels that are no tensor TypeError.

``margin`` is a :class:`dbm_loss.margin.DBMargin` that turns the cosines of a normalised classifier
into logits first; without one the input is taken for logits as it is. ``epoch`` is 0-based and
matters to the deferred re-weighting (DRW) alone, which needs it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dbm_loss.margin import checked_labels, class_prior, full_precision


def effective_number_weights(
    cls_num_list: torch.Tensor | Sequence[int], beta: float = 0.9999
) -> torch.Tensor:
    """Class-balanced weights (Cui et al., CVPR 2019): float32 (C,), scaled to the sum C.

    Before scaling (1 − β) / (1 − β^n_c), one over the effective number of images of the class.
    ``common.imbalance`` has the same for the programs; a loss needs torch alone.
    """
    class_prior(cls_num_list)  # speaks up about empty classes
    counts = torch.as_tensor(cls_num_list, dtype=torch.float64)
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.sum() * len(counts)).float()


def _logits(margin: nn.Module | None, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return full_precision(x) if margin is None else margin(x, target)


class CrossEntropy(nn.Module):
    """Cross-entropy (CE); with ``drw_epoch``, class-weighted from that epoch on (CE-DRW).

    The weights are those of LDAM-DRW (arXiv 1906.07413): 1 / E_n, where E_n = (1 − β^n) / (1 − β)
    is the effective number of samples of a class, β = 0.9999, normalised to sum C. Before
    ``drw_epoch`` all classes weigh the same. The mean is divided by the weights of its targets.

    Args:
        cls_num_list: training images of each class (C,); needed with ``drw_epoch`` only.
        drw_epoch: first epoch (0-based) with weights; None never weighs.
        margin: applied to the input first.
    """

    class_weight: torch.Tensor | None

    def __init__(
        self,
        cls_num_list: torch.Tensor | Sequence[int] | None = None,
        drw_epoch: int | None = None,
        margin: nn.Module | None = None,
    ):
        super().__init__()
        weight = None
        if drw_epoch is not None:
            if cls_num_list is None:
                raise ValueError("drw_epoch needs cls_num_list, from which the class weights come")
            weight = effective_number_weights(cls_num_list)
        self.drw_epoch = drw_epoch
        self.margin = margin
        self.register_buffer("class_weight", weight, persistent=False)

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        epoch: int | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Loss of logits (B, C) and labels (B,) in ``epoch``: a scalar, or (B,) unreduced."""
        target = checked_labels(logits.shape, target, cls_num_list=self.class_weight)
        logits = _logits(self.margin, logits, target)
        weight = None
        if self.class_weight is not None:
            if epoch is None:
                raise ValueError(
                    "drw_epoch is set and epoch is not given; call loss(logits, target, epoch)"
                )
            if epoch >= self.drw_epoch:
                weight = self.class_weight.to(logits)
        return F.cross_entropy(logits, target, weight=weight, reduction=reduction)

    def extra_repr(self) -> str:
        return f"drw_epoch={self.drw_epoch}"


def drw_stage(criterion: nn.Module, epoch: int) -> int:
    """What a criterion wants to know of ``epoch``: 0, or the first epoch with its class weights.

    Two values instead of one an epoch: a compiled forward pass is compiled twice at most.
    """
    drw_epoch = getattr(criterion, "drw_epoch", None)
    return 0 if drw_epoch is None or epoch < drw_epoch else drw_epoch


class BalancedSoftmax(nn.Module):
    """Balanced softmax (arXiv 2007.10740): CE(z + τ log p, y), p_c = n_c / Σn.

    With another τ than 1 it is the logit-adjusted cross-entropy (arXiv 2007.07314). The prior is
    added behind the margin, to all classes and unscaled.

    Args:
        cls_num_list: training images of each class (C,).
        tau: weight of the log prior.
        margin: applied to the input first.
    """

    log_prior: torch.Tensor

    def __init__(
        self,
        cls_num_list: torch.Tensor | Sequence[int],
        tau: float = 1.0,
        margin: nn.Module | None = None,
    ):
        super().__init__()
        if isinstance(tau, nn.Module):
            name = type(tau).__name__
            raise TypeError(
                f"tau must be a number, got {name}; a margin is given by margin={name}(…)"
            )
        self.tau = tau
        self.margin = margin
        self.register_buffer("log_prior", tau * class_prior(cls_num_list).log(), persistent=False)

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        epoch: int | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Loss of logits (B, C) and labels (B,): a scalar, or (B,) unreduced; any ``epoch``."""
        target = checked_labels(logits.shape, target, cls_num_list=self.log_prior)
        logits = _logits(self.margin, logits, target)
        return F.cross_entropy(logits + self.log_prior.to(logits), target, reduction=reduction)

    def extra_repr(self) -> str:
        return f"num_classes={len(self.log_prior)}, tau={self.tau}"


class LDAM(nn.Module):
    """Label-distribution-aware margin loss (arXiv 1906.07413), with ``drw_epoch`` LDAM-DRW.

    CE(s · (x − Δ), y), Δ = δ_y at the target and 0 elsewhere, δ_c = K · n_c^(−1/4) / max n^(−1/4);
    equation 13 of the paper leaves the constant of δ open and has no s. Meant for the cosines of a
    normalised classifier; logits of a linear one are multiplied by s as well. This loss has a
    margin of its own and takes no other.

    Args:
        cls_num_list: training images of each class (C,).
        max_margin: K ≥ 0, the margin of the rarest class.
        scale: s > 0.
        drw_epoch: first epoch (0-based) with class weights; None never weighs.
    """

    class_margin: torch.Tensor

    def __init__(
        self,
        cls_num_list: torch.Tensor | Sequence[int],
        max_margin: float = 0.5,
        scale: float = 30.0,
        drw_epoch: int | None = None,
    ):
        super().__init__()
        class_prior(cls_num_list)  # speaks up about empty classes
        if not max_margin >= 0:
            raise ValueError(f"max_margin must not be negative, got {max_margin}")
        if not scale > 0:
            raise ValueError(f"the scale s must be positive, got {scale}")
        margin = torch.as_tensor(cls_num_list, dtype=torch.float64) ** -0.25
        margin = margin * (max_margin / margin.max())
        self.max_margin, self.scale, self.drw_epoch = max_margin, scale, drw_epoch
        self.cross_entropy = CrossEntropy(cls_num_list, drw_epoch)
        self.register_buffer("class_margin", margin.float(), persistent=False)

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        epoch: int | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Loss of cosines (B, C) and labels (B,) in ``epoch``: a scalar, or (B,) unreduced."""
        target = checked_labels(logits.shape, target, cls_num_list=self.class_margin)
        logits = full_precision(logits)
        column = target.unsqueeze(1)  # B x 1
        logits = logits.scatter_add(1, column, -self.class_margin.to(logits)[column])
        return self.cross_entropy(self.scale * logits, target, epoch, reduction)

    def extra_repr(self) -> str:
        return (
            f"num_classes={len(self.class_margin)}, max_margin={self.max_margin}, "
            f"scale={self.scale}, drw_epoch={self.drw_epoch}"
        )


class BalSCL(nn.Module):
    """Balanced supervised contrastive loss (arXiv 2207.09052): class averaging and
    class complement.

    The images of both views are anchors and are contrasted with each other and with one centre for
    each class, so that every class is in every batch. In the denominator each class counts with the
    mean over its entries, without the anchor itself, instead of their sum. Memory is that of the
    (2B, 2B + C) similarities.

    Args:
        temperature: of the similarities, above 0.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"the temperature must be positive, got {temperature}")
        self.temperature = temperature

    def forward(
        self, features: torch.Tensor, centers: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Mean over the 2B anchors, a scalar; gradients flow into features and centres.

        Args:
            features: (B, 2, D), unit vectors of the two views.
            centers: (C, D), unit vectors.
            target: (B,) labels.
        Raises:
            ValueError: the shapes do not fit.
        """
        if features.ndim != 3 or features.shape[1] != 2 or centers.shape[1:] != features.shape[2:]:
            raise ValueError(
                "expected features (B, 2, D) of two views and centers (C, D), got features "
                f"{tuple(features.shape)} and centers {tuple(centers.shape)}"
            )
        num_classes, device = len(centers), centers.device
        target = checked_labels((len(features), num_classes), target)
        with torch.autocast(device.type, enabled=False):
            anchors = full_precision(features).transpose(0, 1).flatten(0, 1)  # 2B x D, view by view
            contrast = torch.cat([anchors, full_precision(centers)])  # (2B + C) x D
            similarity = anchors @ contrast.T / self.temperature  # 2B x (2B + C)

        label = torch.cat([target, target, torch.arange(num_classes, device=device)])
        count = torch.zeros(num_classes, dtype=torch.int64, device=device)
        count = count.scatter_add(0, label, torch.ones_like(label))  # 2 n_c in the batch + 1 centre
        itself = torch.eye(*similarity.shape, dtype=torch.bool, device=device)
        positive = (label[: len(anchors), None] == label) & ~itself

        # Σ_{j≠i} exp(s_ij) / w_ij, where w_ij is the number of entries of j's class besides i
        size = count[label].to(similarity.dtype)
        log_weight = torch.where(positive, (size - 1).log(), size.log())
        log_denominator = (similarity - log_weight).masked_fill(itself, -torch.inf).logsumexp(1)
        num_positive = positive.sum(1)  # at least 2: the other view and the centre
        mean_positive = similarity.masked_fill(~positive, 0).sum(1) / num_positive
        return (log_denominator - mean_positive).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class BCLLoss(nn.Module):
    """Balanced contrastive learning (arXiv 2207.09052): α · logit adjustment + β · BalSCL.

    The defaults are those of the DBM authors for all data sets; the BCL release has α = 1,
    β = 0.35 and temperature 0.07 on ImageNet-LT.

    Args:
        cls_num_list: training images of each class (C,).
        margin: applied to the logits of the classification term first.
        alpha: weight of the classification term.
        beta: weight of the contrastive term.
        temperature: of the contrastive term.
    """

    def __init__(
        self,
        cls_num_list: torch.Tensor | Sequence[int],
        margin: nn.Module | None = None,
        alpha: float = 2.0,
        beta: float = 0.6,
        temperature: float = 0.1,
    ):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.logit_adjustment = BalancedSoftmax(cls_num_list, margin=margin)
        self.contrastive = BalSCL(temperature)

    def forward(
        self,
        logits: torch.Tensor,
        features: torch.Tensor,
        centers: torch.Tensor,
        target: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted sum of both terms, a scalar.

        Args:
            logits: (B, C) of the classification view.
            features: (B, 2, D), unit vectors of the two contrastive views.
            centers: (C, D), unit vectors.
            target: (B,) labels.
        Raises:
            ValueError: the shapes do not fit.
        """
        if logits.shape[1:] != centers.shape[:1]:
            raise ValueError(
                "expected a center for each class, got logits "
                f"{tuple(logits.shape)} and centers {tuple(centers.shape)}"
            )
        classification = self.logit_adjustment(logits, target)
        return self.alpha * classification + self.beta * self.contrastive(features, centers, target)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}"


def nbod(logits: torch.Tensor, factor: float = 0.6) -> torch.Tensor:
    """Nested balanced online distillation (arXiv 2203.15359) among n networks.

    factor / (n − 1) · Σ_{i≠j} KL(p_j ‖ p_i), averaged over the batch; gradients flow into both
    sides. ``logits`` is (n, B, C); one network has nobody to learn from and gives 0.
    """
    n, batch, _ = logits.shape
    prob, log_prob = logits.softmax(-1), logits.log_softmax(-1)
    # log(p + 1e-9) on one side only, as in the authors' code
    smooth = (prob + 1e-9).log()
    loss = logits.new_zeros(())
    for shift in range(1, n):  # every ordered pair of networks once
        loss = loss + (prob * (log_prob - smooth.roll(shift, dims=0))).sum()
    return loss * factor / (max(n - 1, 1) * batch)


class NCLLoss(nn.Module):
    """Classification part of nested collaborative learning (NCL, arXiv 2203.15359).

    Sum over the networks of the balanced softmax on all categories and on the hard ones, plus the
    distillation among the networks on both. Hard categories are the target and the
    ``num_hard`` − 1 highest scores of the first network before any margin; the logits of the others
    are set to 0, as in the authors' code, and stay in the softmax. The prior is log n_c here, not
    log p_c: it decides how the zeros compare with the rest.

    Args:
        cls_num_list: training images of each class (C,).
        num_hard: hard categories; the authors take 3 of 10, 30 of 100, 300 of 1000 classes. None is
            three tenths of the classes, rounded down.
        margin: applied to the logits of each network first.
        factor: weight of both distillation terms.
    """

    log_count: torch.Tensor

    def __init__(
        self,
        cls_num_list: torch.Tensor | Sequence[int],
        num_hard: int | None = None,
        margin: nn.Module | None = None,
        factor: float = 0.6,
    ):
        super().__init__()
        class_prior(cls_num_list)  # speaks up about empty classes
        num_classes = len(cls_num_list)
        self.num_hard = max(1, 3 * num_classes // 10) if num_hard is None else num_hard
        if not 1 <= self.num_hard <= num_classes:
            raise ValueError(f"num_hard must be within 1 and {num_classes}, got {num_hard}")
        self.margin = margin
        self.factor = factor
        log_count = torch.as_tensor(cls_num_list, dtype=torch.float32).log()
        self.register_buffer("log_count", log_count, persistent=False)

    def hard_categories(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mask (B, C) of the target and the highest other scores of ``logits`` (B, C)."""
        score = logits.detach().scatter(1, target.unsqueeze(1), torch.inf)
        hard = score.topk(self.num_hard, dim=1).indices
        return torch.zeros_like(score, dtype=torch.bool).scatter(1, hard, True)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of the logits (n, B, C) of n networks and labels (B,): a scalar."""
        if logits.ndim != 3:
            raise ValueError(f"expected logits (n, B, C) of n networks, got {tuple(logits.shape)}")
        n, batch, num_classes = logits.shape
        target = checked_labels(logits.shape[1:], target, cls_num_list=self.log_count)
        targets = target.repeat(n)
        full = _logits(self.margin, logits.flatten(0, 1), targets)
        hard = self.hard_categories(logits[0], target)
        full = (full + self.log_count.to(full)).view(n, batch, num_classes)
        loss = full.new_zeros(())
        for scores in (full, full * hard):
            cross_entropy = F.cross_entropy(scores.flatten(0, 1), targets, reduction="sum") / batch
            loss = loss + cross_entropy + nbod(scores, self.factor)
        return loss

    def extra_repr(self) -> str:
        num_classes = len(self.log_count)
        return f"num_classes={num_classes}, num_hard={self.num_hard}, factor={self.factor}"
