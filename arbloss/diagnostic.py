"""How strongly the samples of each class pull and push the classifier weights."""

import torch
from torch import Tensor


@torch.no_grad()
def attraction_repulsion(
    logits: Tensor, features: Tensor, target: Tensor, class_cnt: Tensor | None = None
) -> Tensor:
    """Norms of the parts of the classifier's gradient in one batch.

    Entry (a, b) is || sum_{i: y_i = b} g_ia ||_2, the gradient that the samples of class b give to
    the weight of class a: g_ia = q_ia f_i for a != b (repulsion) and (1 - q_ib) f_i for a = b
    (attraction), with the balanced probabilities q = softmax(z + log n) of ARB-Loss, or the plain
    ones without counts. Logits are not clamped. Rows and columns of classes that are absent from
    the batch are 0.

    The norm is taken through the Gram matrix of the features, in float64, so that no (C, C, d)
    array and no loop over classes is needed.

    Args:
        logits: (B, C) outputs of the classifier.
        features: (B, d) inputs of the classifier; feature maps (B, d, h, w) are averaged over h, w.
        target: (B,) un-mixed labels.
        class_cnt: (C,) counts of the loss, or None.

    Returns:
        (C, C) float64.
    """
    z, f = logits.double(), features.double()
    if f.ndim == 4:
        f = f.mean(dim=(2, 3))
    g = torch.softmax(z if class_cnt is None else z + class_cnt.to(z).log(), dim=1)
    own = target.unsqueeze(1)
    g.scatter_(1, own, 1 - g.gather(1, own))
    gram = (f @ f.T) * (own == target)  # (B, B), only pairs of one class
    squares = g.new_zeros(g.shape[1], g.shape[1]).index_add_(0, target, g * (gram @ g))  # [b, a]
    present = torch.zeros(g.shape[1], dtype=torch.bool, device=g.device).index_fill_(
        0, target, True
    )
    return squares.clamp(min=0).sqrt().T * present.unsqueeze(1)
