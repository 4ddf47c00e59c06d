"""Accuracy, counted on the device: no loop over classes or samples, exact over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from common.training.errors import RunError
from common.training.launch import all_reduce_sum

# Beyond this many classes a confusion matrix is neither read nor held (8142² counts are 0.5 GB).
MAX_CONFUSION_CLASSES = 1000
GROUPS = ("many", "medium", "few")


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

    Classes without test images, whose accuracy is NaN, do not count.

    Returns: {"many", "medium", "few"}, in the unit of ``cls_acc``; NaN for a group without classes.
    """
    acc = np.asarray(cls_acc, dtype=np.float64)
    group = class_groups(cls_num_list, many, few)
    return {name: finite_mean(acc[group == name]) for name in GROUPS}


def class_groups(cls_num_list: Sequence[int], many: int = 100, few: int = 20) -> np.ndarray:
    """Group of each class, (C,) text: "many" with > ``many`` images, "few" with < ``few``."""
    count = np.asarray(cls_num_list)
    return np.select([count > many, count < few], ["many", "few"], default="medium")


def precision_recall_f1(
    total: np.ndarray, correct: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, as fractions (C,) float64.

    As in scikit-learn the precision of a class that is never predicted is 0. Without an image of
    the class its recall is NaN, and so are the others unless it is predicted all the same.

    Args:
        total, correct, predicted: images of the class, those of them that were recognised, and
            images taken for the class, (C,) each.
    """
    total, correct, predicted = (
        np.asarray(x, dtype=np.float64) for x in (total, correct, predicted)
    )
    nothing = (total == 0) & (predicted == 0)
    with np.errstate(invalid="ignore"):
        recall = correct / total
        f1 = 2 * correct / (total + predicted)
    precision = np.where(nothing, np.nan, correct / np.maximum(predicted, 1))
    return precision, recall, f1


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


class Running(NamedTuple):
    """A figure of the last batch, and its mean so far."""

    val: float
    avg: float


class Tally:
    """Counts over an evaluation pass: top-1, top-5, per class, confusion matrix, calibration, loss.

    ``update`` with every batch, ``reduce`` once (adds up over processes), then ``result``.

    Args:
        scale: what the loss multiplies the logits by: probabilities are softmax(scale * logits).

    Attributes, over all processes after ``reduce``:
        total, correct, predicted: images of each class, those of them that were recognised, and
            images taken for the class, (C,) int64.
        confusion: (C, C) int64, rows true; None beyond ``MAX_CONFUSION_CLASSES``.
        bins: of ``calibration_bins``.
        samples: (N, 3) float64, of each image in the order of the data set: true class, predicted
            class, probability of that; None before ``reduce``.
    """

    def __init__(
        self, num_classes: int, device: torch.device | str = "cpu", scale: float = 1.0
    ) -> None:
        self.num_classes, self.scale = num_classes, scale
        long = {"dtype": torch.int64, "device": device}
        self.total = torch.zeros(num_classes, **long)
        self.correct = torch.zeros(num_classes, **long)
        self.predicted = torch.zeros(num_classes, **long)
        self.top5 = torch.zeros((), **long)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(3, 15, dtype=torch.float64, device=device)
        self.confusion = None
        if num_classes <= MAX_CONFUSION_CLASSES:
            self.confusion = torch.zeros(num_classes, num_classes, **long)
        self.samples: torch.Tensor | None = None
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int] | None = None

    @torch.no_grad()
    def update(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        loss: torch.Tensor | float,
        index: torch.Tensor | None = None,
    ) -> None:
        """Count a batch: logits (N, C), labels (N,), mean loss of the batch.

        ``index``: which images of the data set they are, (N,) int64, each once; None: the next
        ones (with a single process).
        """
        logits = logits.float()
        confidence = (self.scale * logits).softmax(dim=1).amax(dim=1)
        predicted = logits.argmax(dim=1)
        hit = predicted == target
        ones = torch.ones_like(target)
        self.total.index_add_(0, target, ones)
        self.correct.index_add_(0, target, hit.long())
        self.predicted.index_add_(0, predicted, ones)
        in_top5 = _topk_hits(logits, target, (5,))[0].sum()
        self.top5 += in_top5
        loss = torch.as_tensor(loss, device=self.loss.device).double()
        self.loss += loss * len(target)
        self.bins += calibration_bins(confidence, hit)
        if self.confusion is not None:
            pairs = target * self.num_classes + predicted
            self.confusion.view(-1).index_add_(0, pairs, ones)
        if index is None:
            seen = sum(len(place) for place, _ in self._batches)
            index = torch.arange(seen, seen + len(target), device=target.device)
        self._batches.append((index, _rows(target, predicted, confidence, ones)))
        self._last = loss, hit.sum(), in_top5, len(target)

    def running(self) -> tuple[Running, Running, Running]:
        """Loss, top-1 and top-5 in percent: of the last batch, and of all of this process so far.

        For log lines: it waits for the device.
        """
        loss, hits, in_top5, count = (float(x) for x in self._last)
        seen = float(self.total.sum())
        return (
            Running(loss, float(self.loss) / seen),
            Running(hits / count * 100, float(self.correct.sum()) / seen * 100),
            Running(in_top5 / count * 100, float(self.top5) / seen * 100),
        )

    def reduce(self) -> None:
        """Add up over all processes.

        Raises:
            RunError: an image came twice, or not at all.
        """
        extra = [] if self.confusion is None else [self.confusion]
        all_reduce_sum(
            self.total, self.correct, self.predicted, self.top5, self.loss, self.bins, *extra
        )
        count = int(self.total.sum())
        # A last column of how often each image came, a last row for all numbers beyond.
        samples = self.bins.new_zeros(count + 1, 4)
        for index, rows in self._batches:
            samples.index_add_(0, index.clamp(max=count), rows)
        self._batches.clear()
        all_reduce_sum(samples)
        if not bool((samples[:count, 3] == 1).all()):
            raise RunError(
                f"of {count} images that were evaluated some came twice and others not at all; "
                "give all processes the same data"
            )
        self.samples = samples[:count, :3]

    def result(self, cls_num_list: Sequence[int] | None = None) -> dict:
        """The figures, as plain numbers.

        The balanced accuracy is the mean recall of the classes that have test images; macro
        precision and macro F1 are means over the classes that are tested or predicted. All three
        as in scikit-learn.

        Returns: {"top1", "top5", "balanced_acc", "macro_precision", "macro_f1", "ece" and the
        groups in percent, "loss", "cls_acc": list of fractions, NaN for a class without test
        images}; many/medium/few by the training counts.
        """
        n = max(float(self.total.sum()), 1.0)
        precision, recall, f1 = self.precision_recall_f1()
        result = {
            "top1": float(self.correct.sum()) / n * 100,
            "top5": float(self.top5) / n * 100,
            "balanced_acc": finite_mean(recall) * 100,
            "macro_precision": finite_mean(precision) * 100,
            "macro_f1": finite_mean(f1) * 100,
            "loss": float(self.loss) / n,
            "ece": expected_calibration_error(self.bins) * 100,
            "cls_acc": recall.tolist(),
        }
        if cls_num_list is not None:
            result |= many_medium_few(recall * 100, cls_num_list)
        return result

    def precision_recall_f1(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each class, as fractions: see the function of this name."""
        counts = self.total, self.correct, self.predicted
        return precision_recall_f1(*(count.cpu().numpy() for count in counts))


def _rows(*columns: torch.Tensor) -> torch.Tensor:
    return torch.stack([column.double() for column in columns], dim=1)


def finite_mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN without any."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def group_line(result: dict) -> str:
    """Accuracy of the classes with many (> 100), medium and few (< 20) training images."""
    return " ".join(f"{name} {result[name]:.3f}" for name in GROUPS)


def result_lines(result: dict, split: str = "val") -> str:
    """Two lines after a validation, as LDAM's descendants print them; classes as fractions.

    ``split``: what is evaluated; the originals call it ``val``, whatever it is.
    """
    cls_acc = np.array2string(
        np.asarray(result["cls_acc"]), separator=",", formatter={"float_kind": lambda x: f"{x:.3f}"}
    )
    return (
        f"{split} Results: Prec@1 {result['top1']:.3f} Prec@5 {result['top5']:.3f} "
        f"Loss {result['loss']:.5f}\n{split} Class Accuracy: {cls_acc}\n"
    )
