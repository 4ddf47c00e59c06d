"""Long-tailed class counts, the choice of a subset, class and sample weights."""

from collections.abc import Sequence

import numpy as np

Counts = Sequence[int] | np.ndarray


def class_counts(
    num_images: int, num_classes: int, imb_type: str = "exp", imb_factor: float = 0.01
) -> list[int]:
    """Images to keep of each class; class 0 is the largest.

    With ``n = num_images / num_classes`` (CIFAR-10: 5000) and ``f = imb_factor`` (smallest /
    largest class):

    - ``exp``: ``int(n * f ** (c / (num_classes - 1)))``, the long tail of Cui et al. (CVPR 2019);
    - ``step``: ``int(n)`` in the first half of the classes, ``int(n * f)`` in the second;
    - anything else: ``int(n)``, balanced.

    A count may be 0 when ``f < 1 / n``; the class weights below refuse that.

    Raises:
        ValueError: ``step`` with an odd number of classes, which has no halves.
    """
    n_max = num_images / num_classes
    if imb_type == "exp":
        # A single class keeps all its images.
        span = max(num_classes - 1.0, 1.0)
        return [int(n_max * imb_factor ** (c / span)) for c in range(num_classes)]
    if imb_type == "step":
        if num_classes % 2:
            raise ValueError(
                f"imb_type step halves the classes, and {num_classes} is odd: "
                "use imb_type exp or an even number of classes"
            )
        half = num_classes // 2
        return [int(n_max)] * half + [int(n_max * imb_factor)] * half
    return [int(n_max)] * num_classes


def choose_subset(targets: Counts, cls_num_list: Counts, rand_number: int = 0) -> np.ndarray:
    """Positions in ``targets`` of the images to keep, class by class, as LDAM-DRW chooses them.

    For every class in ascending order all its positions are shuffled, and the first
    ``cls_num_list[c]`` kept, so subsets with other counts are nested. The generator is numpy's
    legacy one, private, seeded with ``rand_number``.

    Args:
        targets: labels 0..C-1 of all N images.
        cls_num_list: how many images of each of the C classes to keep.

    Returns:
        int64 array of length ``sum(cls_num_list)``.

    Raises:
        ValueError: a class has fewer images than asked for, or a label is not in 0..C-1.
    """
    targets = np.asarray(targets, dtype=np.int64)
    available = _counts_of(targets, len(cls_num_list))
    for c, (has, wants) in enumerate(zip(available, cls_num_list, strict=True)):
        if wants > has:
            raise ValueError(f"class {c} has {has} images, but {wants} are asked for")
    by_class = np.split(np.argsort(targets, kind="stable"), np.cumsum(available)[:-1])
    rng = np.random.RandomState(rand_number)
    kept = []
    for positions, wants in zip(by_class, cls_num_list, strict=True):
        rng.shuffle(positions)  # the whole class, also when all of it is kept
        kept.append(positions[:wants])
    return np.concatenate(kept)


def effective_number_weights(cls_num_list: Counts, beta: float = 0.9999) -> np.ndarray:
    """Class-balanced weights (Cui et al., CVPR 2019), scaled to the sum C.

    Before scaling ``(1 - beta) / (1 - beta ** n_c)``, one over the effective number of images.

    Returns:
        float64 array (C,).

    Raises:
        ValueError: a class has no image.
    """
    return _sum_to_length(_effective_number(cls_num_list, beta))


def inverse_frequency_weights(cls_num_list: Counts) -> np.ndarray:
    """Weights ``1 / n_c``, scaled to the sum C.

    Returns:
        float64 array (C,).

    Raises:
        ValueError: a class has no image.
    """
    return _sum_to_length(_effective_number(cls_num_list, beta=1.0))


def sample_weights(targets: Counts, beta: float = 0.9999) -> np.ndarray:
    """Weight of each image for sampling with replacement, not normalised.

    ``(1 - beta) / (1 - beta ** n_c)`` for an image of class c; ``beta=1`` is the limit ``1 / n_c``.
    The counts are those of ``targets``, labels 0..C-1.

    Returns:
        float64 array (N,), as ``torch.utils.data.WeightedRandomSampler`` takes it.
    """
    targets = np.asarray(targets, dtype=np.int64)
    return _effective_number(_counts_of(targets), beta)[targets]


def _counts_of(targets: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    counts = np.bincount(targets, minlength=num_classes or 0)
    if num_classes is not None and len(counts) > num_classes:
        raise ValueError(f"label {targets.max()} found, but there are {num_classes} classes")
    return counts


def _refuse_empty(counts: np.ndarray) -> None:
    empty = np.flatnonzero(counts <= 0)
    if len(empty):
        some = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise ValueError(f"classes without images have no weight: {some}; use a larger imb_factor")


def _effective_number(cls_num_list: Counts, beta: float) -> np.ndarray:
    counts = np.asarray(cls_num_list, dtype=np.float64)
    _refuse_empty(counts)
    return 1.0 / counts if beta == 1.0 else (1.0 - beta) / (1.0 - np.power(beta, counts))


def _sum_to_length(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum() * len(weights)
