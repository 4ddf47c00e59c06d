"""Accuracy, counted on the device: no loop over classes or samples, exact over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.training.launch import all_reduce_sum

# Beyond this many classes a confusion matrix is neither read nor held (8142² counts are 0.5 GB).
MAX_CONFUSION_CLASSES = 1000


def accuracy(
    output: torch.Tensor, target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Percent of samples whose label is among the k largest logits, for each k.

    Args:
        output: logits, (N, C). target: labels, (N,) int64. topk: each k, cut to C.
    Returns: one 0-dim float32 tensor per k, on the device of ``output``.
    """
    hits = _topk_hits(output, target, topk)
    return [hit.float().sum() * (100.0 / max(len(target), 1)) for hit in hits]


def _topk_hits(
    output: torch.Tensor, target: torch.Tensor, topk: Sequence[int]
) -> list[torch.Tensor]:
    largest = min(max(topk), output.shape[1])
    ranked = output.detach().topk(largest, dim=1).indices  # (N, largest)
    matches = ranked == target[:, None]
    return [matches[:, : min(k, largest)].any(dim=1) for k in topk]


def many_medium_few(
    cls_acc: Sequence[float], cls_num_list: Sequence[int], many: int = 100, few: int = 20
) -> dict[str, float]:
    """Mean class accuracy of the classes with > ``many``, ``few``..``many`` and < ``few`` images.

    Returns: {"many", "medium", "few"}, in the unit of ``cls_acc``; NaN for a group without classes.
    """
    acc = np.asarray(cls_acc, dtype=np.float64)
    count = np.asarray(cls_num_list)
    groups = {
        "many": count > many,
        "medium": (count >= few) & (count <= many),
        "few": count < few,
    }
    return {
        name: float(acc[mask].mean()) if mask.any() else float("nan")
        for name, mask in groups.items()
    }


def calibration_bins(
    confidence: torch.Tensor, correct: torch.Tensor, num_bins: int = 15
) -> torch.Tensor:
    """Sums per confidence bin for the expected calibration error.

    Bin k holds confidences in (k/num_bins, (k+1)/num_bins]; 0, and values beyond 1, are in no bin.

    Args:
        confidence: largest softmax probability, (N,). correct: (N,) bool.
    Returns: (3, num_bins) float64: count, sum of correct, sum of confidence.
    """
    confidence = confidence.double()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64, device=confidence.device)
    index = torch.bucketize(confidence, edges)  # edges[index - 1] < confidence <= edges[index]
    rows = torch.stack([torch.ones_like(confidence), correct.double(), confidence])
    sums = confidence.new_zeros(3, num_bins + 2)
    sums.index_add_(1, index, rows)
    return sums[:, 1 : num_bins + 1]


def expected_calibration_error(bins: torch.Tensor) -> float:
    """ECE as a fraction from ``calibration_bins`` (Guo et al., 2017); NaN without samples."""
    count, correct, confidence = bins.double()
    gaps = (correct - confidence).abs()  # count * |accuracy - confidence| of each bin
    return float(gaps.sum() / count.sum()) if count.sum() > 0 else float("nan")


class Tally:
    """Counts over an evaluation pass: top-1, top-5, per class, confusion matrix, calibration, loss.

    ``update`` with every batch, ``reduce`` once (adds up over processes), then ``result``.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        long = {"dtype": torch.int64, "device": device}
        self.total = torch.zeros(num_classes, **long)
        self.correct = torch.zeros(num_classes, **long)
        self.top5 = torch.zeros((), **long)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(3, 15, dtype=torch.float64, device=device)
        self.confusion = None
        if num_classes <= MAX_CONFUSION_CLASSES:
            self.confusion = torch.zeros(num_classes, num_classes, **long)

    @torch.no_grad()
    def update(
        self, logits: torch.Tensor, target: torch.Tensor, loss: torch.Tensor | float
    ) -> None:
        """Count a batch: logits (N, C), labels (N,), mean loss of the batch."""
        logits = logits.float()
        confidence = logits.softmax(dim=1).amax(dim=1)
        predicted = logits.argmax(dim=1)
        hit = predicted == target
        self.total.index_add_(0, target, torch.ones_like(target))
        self.correct.index_add_(0, target, hit.long())
        self.top5 += _topk_hits(logits, target, (5,))[0].sum()
        self.loss += torch.as_tensor(loss, device=self.loss.device).double() * len(target)
        self.bins += calibration_bins(confidence, hit)
        if self.confusion is not None:
            pairs = target * self.num_classes + predicted
            self.confusion.view(-1).index_add_(0, pairs, torch.ones_like(target))

    def reduce(self) -> None:
        """Add up over all processes."""
        extra = [] if self.confusion is None else [self.confusion]
        all_reduce_sum(self.total, self.correct, self.top5, self.loss, self.bins, *extra)

    def result(self, cls_num_list: Sequence[int] | None = None) -> dict:
        """The figures, as plain numbers.

        Returns: {"top1", "top5", "ece" and the groups in percent, "loss", "cls_acc": list of
        fractions, NaN for a class without test images}; many/medium/few by the training counts.
        """
        total = self.total.double().cpu().numpy()
        n = max(float(total.sum()), 1.0)
        with np.errstate(invalid="ignore"):
            cls_acc = self.correct.double().cpu().numpy() / total
        result = {
            "top1": float(self.correct.sum()) / n * 100,
            "top5": float(self.top5) / n * 100,
            "loss": float(self.loss) / n,
            "ece": expected_calibration_error(self.bins) * 100,
            "cls_acc": cls_acc.tolist(),
        }
        if cls_num_list is not None:
            result |= many_medium_few(cls_acc * 100, cls_num_list)
        return result
