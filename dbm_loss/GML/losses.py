"""Gaussian mixture likelihood (GML) loss: balanced softmax, contrast by class, distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dbm_loss.margin import checked_labels, full_precision

CLASSIFIER_TEMPERATURE = 1 / 30  # T_s: a cosine classifier's logits are 30 cos


def class_scores(
    similarity: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    exclude: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log of the class-mean of exponentials over the keys, for each query and class.

    S_bc = log [ Σ_{k: l_k = c} w_kb exp(u_kb) / Σ_{k: l_k = c} w_kb ], where w_kb is 0 for a key to
    ``exclude`` and else 1. A class all of whose keys are excluded is scored over all of them.
    The exponentials are taken relative to each class's largest, so that none underflows.

    Args:
        similarity: u, (K, B): keys in rows.
        labels: l, (K,) classes of the keys, integers.
        exclude: (K, B) bool, keys that a query must not see.
    Returns:
        (B, C); -inf for a class without any key, through which no gradient flows.
    """
    labels = labels.long()
    zeros = similarity.new_zeros(num_classes, similarity.shape[1])
    count = zeros.index_add(0, labels, torch.ones_like(similarity))
    if exclude is not None:
        kept = count - zeros.index_add(0, labels, exclude.to(zeros.dtype))
        exclude = exclude & (kept > 0)[labels]
        count = torch.where(kept > 0, kept, count)
        similarity = similarity.masked_fill(exclude, -torch.inf)
    row = labels.unsqueeze(1).expand_as(similarity)
    largest = torch.full_like(zeros, -torch.inf)
    largest = largest.scatter_reduce(0, row, similarity.detach(), "amax")
    empty = count == 0
    total = zeros.index_add(0, labels, (similarity - largest[labels]).exp())
    # An empty class: log(1 / 1) and, as its largest exponent, -inf.
    return ((total.masked_fill(empty, 1) / count.clamp_min(1)).log() + largest).T


def distillation(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 4.0
) -> torch.Tensor:
    """T² · KL(teacher ‖ student) of the softmax outputs at temperature T, averaged over the batch.

    Both are (B, C) logits. The gradient also reaches the teacher's logits, if they carry one.
    """
    log_prob = F.log_softmax(student / temperature, dim=1)
    prob = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_prob, prob, reduction="sum") * (temperature**2 / len(student))


class GMLLoss(nn.Module):
    """Loss of "Long-Tailed Recognition by Mutual Information Maximization" (GML, ICML 2023).

    It is the authors' code that is followed; the paper's own formulas were not compared.

        L = γ · L_sup + β · (L_con + L_con_T) + α · L_div

    | term    | definition                                              | gradient reaches  |
    |---------|---------------------------------------------------------|-------------------|
    | L_sup   | CE(s / T_s + log π, y), the balanced softmax            | s                 |
    | L_con   | CE(S(q·a / T_c) + log π, y), T_c constant               | q and a           |
    | L_con_T | the same over keys of other images, q·a constant        | T_c               |
    | L_div   | 4² KL(softmax(t / 4 T_s) ‖ softmax(s / 4 T_s))          | s (and t)         |

    S are the class scores of :func:`class_scores`, π the class frequencies. The temperature T_c is
    learned, from L_con_T alone, which leaves out the keys that are the query's own image; T_s is
    1/30. Terms of weight 0 are not computed. A class without a key cannot be scored: it is left
    out of the contrastive softmax, and a query of such a class adds 0 to the contrastive terms.

    Following the names of the authors, parameters with ``__no_wd__`` in their name are meant to go
    without weight decay.

    Args:
        cls_num_list: training images of each class (C,); 0 gives the class log π = -inf.
        alpha: weight of the distillation.
        beta: weight of the contrastive terms.
        gamma: weight of the supervised term.
        temperature: T_c at the start, above 0.
        margin: a :class:`dbm_loss.margin.DBMargin` of scale 30, whose output replaces s / T_s in
            L_sup (and nowhere else). This combination is our reading of "DBM-GML": the code that
            its authors published holds plain GML.
    """

    cls_weight: torch.Tensor
    log_prior: torch.Tensor

    def __init__(
        self,
        cls_num_list: torch.Tensor | Sequence[int],
        alpha: float = 0.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        margin: nn.Module | None = None,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"the temperature must be positive, got {temperature}")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.margin = margin
        self.log_T_c__no_wd__ = nn.Parameter(torch.tensor([math.log(temperature)]))
        # Kept as a float32 logarithm, and saved, to match the original's numbers and files.
        self.register_buffer("log_T_s__no_wd__", torch.tensor([math.log(CLASSIFIER_TEMPERATURE)]))
        counts = torch.as_tensor(cls_num_list, dtype=torch.float32)
        if not ((counts >= 0).all() and counts.sum() > 0):
            raise ValueError("cls_num_list must be the number of training images of each class")
        self.register_buffer("cls_weight", counts / counts.sum(), persistent=False)
        self.register_buffer("log_prior", self.cls_weight.log(), persistent=False)

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        t_logits: torch.Tensor | None = None,
        query: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        key: torch.Tensor | None = None,
        k_labels: torch.Tensor | None = None,
        k_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted sum of the terms, a scalar.

        Args:
            logits: s, (B, C) cosines of the classifier.
            target: y, (B,) labels.
            t_logits: t, (B, C) cosines of the teacher; None: nothing to distil from.
            query: q, (B, d) unit vectors. index: (B,) integers, which image each is.
            key: a, (K, d) unit vectors. k_labels, k_index: (K,) integers, their classes and images.
                Query and key sides are needed with β > 0 only.
        Raises:
            ValueError: ``target`` does not fit the logits, or β > 0 and one of them is missing.
        """
        total = self.gamma * self.supervised(logits, target)
        if self.beta > 0:
            if any(x is None for x in (query, index, key, k_labels, k_index)):
                raise ValueError("beta > 0 needs query, index, key, k_labels and k_index")
            con, con_T = self.contrastive(query, target, index, key, k_labels, k_index)
            total = total + self.beta * (con + con_T)
        if self.alpha > 0 and t_logits is not None:
            total = total + self.alpha * self.divergence(logits, t_logits)
        return total

    def supervised(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """L_sup: balanced softmax on the scaled cosines, with the margin where there is one."""
        target = checked_labels(logits.shape, target, cls_num_list=self.log_prior)
        if self.margin is not None:
            logits = self.margin(logits, target)
        else:
            logits = self._scaled(logits)
        return F.cross_entropy(logits + self.log_prior.to(logits), target)

    def divergence(self, logits: torch.Tensor, t_logits: torch.Tensor) -> torch.Tensor:
        """L_div: distillation between scaled cosines at temperature 4."""
        return distillation(self._scaled(logits), self._scaled(t_logits))

    def contrastive(
        self,
        query: torch.Tensor,
        target: torch.Tensor,
        index: torch.Tensor,
        key: torch.Tensor,
        k_labels: torch.Tensor,
        k_index: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """L_con and L_con_T."""
        num_classes = self.cls_weight.numel()
        target = checked_labels((len(query), num_classes), target)
        with torch.autocast(query.device.type, enabled=False):
            similarity = full_precision(key) @ full_precision(query).T  # K x B
        T_c = self.log_T_c__no_wd__.to(similarity).exp()
        own = k_index.unsqueeze(1) == index  # K x B
        score = class_scores(similarity / T_c.detach(), k_labels, num_classes)
        score_T = class_scores(similarity.detach() / T_c, k_labels, num_classes, exclude=own)
        return self._adjusted_ce(score, target), self._adjusted_ce(score_T, target)

    def _scaled(self, cosine: torch.Tensor) -> torch.Tensor:
        cosine = full_precision(cosine)
        return cosine / self.log_T_s__no_wd__.to(cosine).exp()

    def _adjusted_ce(self, score: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        missing = score.gather(1, target.unsqueeze(1)).squeeze(1) == -torch.inf
        loss = F.cross_entropy(
            score + self.log_prior.to(score), target.masked_fill(missing, -100), reduction="sum"
        )
        return loss / len(target)

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.cls_weight.numel()}, alpha={self.alpha}, beta={self.beta}, "
            f"gamma={self.gamma}"
        )
