"""The difficulty-aware balancing margin: a layer between a cosine classifier and any loss."""

from collections.abc import Sequence

import torch
from torch import nn


def class_prior(cls_num_list: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """Class frequencies ``n_c / sum(n)`` (C,), float32.

    Raises ``ValueError`` for an empty list or a class without training images: every constant of
    this paper divides by the class count or takes its logarithm.
    """
    counts = torch.as_tensor(cls_num_list, dtype=torch.float32)
    if counts.ndim != 1 or counts.numel() == 0:
        raise ValueError(f"cls_num_list must be a non-empty list of counts, got {cls_num_list!r}")
    if not bool((counts > 0).all()):
        empty = int((counts > 0).int().argmin())
        raise ValueError(
            f"cls_num_list: class {empty} has {cls_num_list[empty]} training images; every class "
            "needs at least one (lower the imbalance ratio, or drop the class)"
        )
    return counts / counts.sum()


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float32 if it is float16 or bfloat16, else unchanged (float64 stays float64).

    Raises ``ValueError`` for integers.
    """
    if not x.is_floating_point():
        raise ValueError(f"expected floating-point logits or features, got {x.dtype}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def checked_labels(
    shape: Sequence[int], target: torch.Tensor, **per_class: torch.Tensor | None
) -> torch.Tensor:
    """The labels (B,) in int64, for logits of ``shape`` (B, C).

    Raises ``ValueError`` for another shape, constants ``per_class`` of another than (C,), labels
    that are no integers and, on the CPU, labels outside 0..C-1; ``TypeError`` for labels that are
    no tensor.
    """
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"labels must be a tensor, got {type(target).__name__}")
    if len(shape) != 2 or target.shape != shape[:1] or target.is_floating_point():
        raise ValueError(
            "expected logits (B, C) and integer labels (B,), got logits "
            f"{tuple(shape)} and labels {tuple(target.shape)} of {target.dtype}"
        )
    for name, values in per_class.items():
        if values is not None and values.shape != shape[1:]:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, expected ({shape[1]},) "
                "as the logits have that many columns"
            )
    target = target.long()  # of unsigned ones torch has no minimum
    # Elsewhere looking would wait for the device, and while compiling it would cut the graph.
    if target.device.type == "cpu" and len(target) and not torch.compiler.is_compiling():
        for label in (int(target.min()), int(target.max())):
            if not 0 <= label < shape[1]:
                raise ValueError(f"label {label} with logits of {shape[1]} classes")
    return target


def check_cosines(x: torch.Tensor) -> None:
    """Raise ``ValueError`` if ``x``, on the CPU, holds what is no cosine, as a linear layer gives.

    Cosines of half precision are rounded up to 1.008. As with labels, a look at another device
    would wait for it, and while compiling it would cut the graph.
    """
    if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
        furthest = max(map(float, x.detach().aminmax()), key=abs)
        if abs(furthest) > 1.01:
            raise ValueError(
                f"expected cosines in [-1, 1], got {furthest:.4g}; the margin needs a classifier "
                "that normalises features and weights"
            )


class DBMargin(nn.Module):
    """Difficulty-aware balancing margin (arXiv 2412.15477): scaled cosines with an angular margin.

    With θ = arccos x of the target class y,

        z_y = s · cos(θ + M),   M = m_y · (1 + λ · h · (1 − x_y) / 2),   z_j = s · x_j  (j ≠ y)

    m_c = K · (n_last / n_c)^τ is the class-wise margin. The instance-wise part is there for hard
    positives only: h = 1 where the plain cosine classifier is wrong about the sample, else 0.

    Where the authors' code, which is followed, and their formula differ: the reference is the class
    of the highest index, in the paper the rarest one, which is the same on CIFAR-LT but not on
    ImageNet-LT and iNaturalist; λ is the code's, 1 in the paper; and the gradient flows through
    the difficulty, of which the formula says nothing. There is no fallback for θ + M > π.

    The cosine of the sum is expanded, cos θ cos M − sin θ sin M, so that the value is exact for
    every x in [−1, 1], a cosine that rounding puts just outside is no trouble, and the gradient is
    finite everywhere: at ±1, where that of the arccosine is not, sin θ counts as a constant.

    Args:
        cls_num_list: training images of each class (C,).
        max_margin: K ≥ 0, the margin of the reference class, in radians.
        tau: exponent of the class frequency, at least 0.
        scale: s > 0.
        lambda_inst: λ, the weight of the instance-wise margin; 0 leaves the class-wise one.
        use_dbm: False leaves the cosine classifier alone, ``s · x``.
        margin_norm: the reference class: "last", that of the highest index, as in the authors'
            code, or "rarest", so that no margin is above K whatever the order of the classes.
    """

    class_margin: torch.Tensor

    def __init__(
        self,
        cls_num_list: torch.Tensor | Sequence[int],
        max_margin: float = 0.1,
        tau: float = 1.0,
        scale: float = 32.0,
        lambda_inst: float = 1.0,
        use_dbm: bool = True,
        margin_norm: str = "last",
    ):
        super().__init__()
        for name, value in (("max_margin", max_margin), ("tau", tau)):
            if not 0 <= value < torch.inf:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        self.max_margin = max_margin
        self.tau = tau
        self.scale = scale
        self.lambda_inst = lambda_inst
        self.use_dbm = use_dbm
        self.margin_norm = margin_norm
        inverse = 1.0 / class_prior(cls_num_list) ** tau
        if margin_norm not in ("last", "rarest"):
            raise ValueError(f"margin_norm must be last or rarest, got {margin_norm!r}")
        if not scale > 0:
            raise ValueError(f"the scale s must be positive, got {scale}")
        reference = inverse[-1] if margin_norm == "last" else inverse.max()
        # In this order, to match the original's float32 margins to the last bit.
        self.register_buffer("class_margin", max_margin * (inverse / reference), persistent=False)

    def forward(self, cosine: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) for a softmax cross-entropy.

        Args:
            cosine: (B, C) cosines in [−1, 1]; float16 and bfloat16 are computed in float32.
            target: (B,) class indices.
        Raises:
            ValueError: ``target`` does not fit, see ``checked_labels``, or ``cosine`` holds other
                numbers than cosines, see ``check_cosines``.
        """
        target = checked_labels(cosine.shape, target, cls_num_list=self.class_margin)
        cosine = full_precision(cosine)
        check_cosines(cosine)
        logits = self.scale * cosine
        if not self.use_dbm:
            return logits

        column = target.unsqueeze(1)  # B x 1; all that follows touches the target entries alone
        x = cosine.gather(1, column)
        hard = cosine.argmax(dim=1, keepdim=True) != column
        difficulty = hard * ((1 - x) / 2)
        margin = self.class_margin.to(x)[column] * (1 + self.lambda_inst * difficulty)

        # (1 − x)(1 + x) is exact near ±1; the floor is far below the rounding of the result.
        floor = torch.finfo(x.dtype).eps ** 2
        sine = ((1 - x) * (1 + x)).clamp_min(floor).sqrt()
        shifted = x * margin.cos() - sine * margin.sin()
        return logits.scatter(1, column, self.scale * shifted)

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.class_margin.numel()}, max_margin={self.max_margin}, "
            f"tau={self.tau}, scale={self.scale}, lambda_inst={self.lambda_inst}, "
            f"use_dbm={self.use_dbm}, margin_norm={self.margin_norm!r}"
        )
