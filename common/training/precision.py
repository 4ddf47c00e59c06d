"""Half precision, and the guard against a loss that is no number."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from common.training.errors import NonFiniteLoss


@contextlib.contextmanager
def autocast(device: torch.device, amp: str) -> Iterator[None]:
    """Mixed precision for the forward pass: ``amp`` is ``none``, ``bf16`` or ``fp16``."""
    if amp == "none":
        yield
        return
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    with torch.autocast(device.type, dtype=dtype):
        yield


def grad_scaler(device: torch.device, amp: str) -> torch.amp.GradScaler:
    """Loss scaling for fp16; does nothing for the other precisions.

    Says so where bf16 was asked of a CPU that has to imitate it.
    """
    if amp == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn(
            "--amp bf16: this CPU has no bfloat16 instructions, float32 is faster here",
            stacklevel=2,
        )
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")


class FiniteGuard:
    """Stops a run whose loss is NaN or infinite, naming epoch, step and learning rate.

    On a GPU the value of a step is read one step later, when it is there already: no stall.
    """

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, str] | None = None

    def check(self, loss: torch.Tensor, *, epoch: int, step: int, lr: float) -> None:
        """Raises NonFiniteLoss; ``loss`` is a scalar, ``epoch`` and ``step`` count from 0."""
        where = f"epoch {epoch}, step {step}, learning rate {lr:g}"
        if loss.device.type == "cpu":
            self._read(loss.detach(), where)
            return
        pending, self._pending = self._pending, (loss.detach(), where)
        if pending is not None:
            self._read(*pending)

    def close(self) -> None:
        """Look at the last step's value (call after the loop)."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._read(*pending)

    @staticmethod
    def _read(loss: torch.Tensor, where: str) -> None:
        value = float(loss)
        if value != value or value in (float("inf"), float("-inf")):
            raise NonFiniteLoss(
                f"the loss is {value} at {where}; the last good checkpoint is kept. "
                "Lower --lr, or look for broken images"
            )
