"""Half precision, and the guard against losses and weights that are no numbers."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn

from common.training.errors import NonFiniteLoss
from common.training.launch import all_reduce_sum, unwrap

CURE = (
    "the run has diverged, what was saved before is kept. Lower the learning rate, or look for "
    "broken images"
)


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager:
    """Mixed precision for the forward pass: ``amp`` is ``none``, ``bf16`` or ``fp16``."""
    if amp == "none":
        return contextlib.nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return torch.autocast(device.type, dtype=dtype)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions; of a CPU torch knows it through oneDNN."""
    if device.type != "cpu":
        return True
    mkldnn = torch.backends.mkldnn.is_available()  # else the operator is not there
    return mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def grad_scaler(device: torch.device, amp: str) -> torch.amp.GradScaler:
    """Loss scaling for fp16; does nothing for the other precisions.

    Says so where bf16 was asked of a CPU that has to imitate it.
    """
    if amp == "bf16" and not has_bfloat16(device):
        warnings.warn(
            "amp bf16: this CPU has no bfloat16 instructions, float32 is faster here",
            stacklevel=2,
        )
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")


def first_non_finite(value: object, name: str = "") -> str | None:
    """Name of the first number or tensor in nested dictionaries and lists that is NaN or infinite.

    The tensors of a device are looked at together: it is waited for once.
    """
    found = list(_floats(value, name))
    if not found:
        return None
    # A finite sum has no term that is not, and takes a tenth of the time of looking at each.
    sums = defaultdict(list)
    for _, value in found:
        sums[value.device].append(value.sum().isfinite())
    if all(torch.stack(flags).all().cpu() for flags in sums.values()):
        return None
    return next((name for name, value in found if not value.isfinite().all()), None)


def _floats(value: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            yield name, value.detach()
    elif isinstance(value, float):
        yield name, torch.tensor(value)
    elif isinstance(value, (Mapping, list, tuple)):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in entries:
            yield from _floats(entry, f"{name}.{key}" if name else str(key))


class FiniteGuard:
    """Stops a run whose loss, weights or momentum became NaN or infinite, saying when.

    All processes stop at the same step. On a GPU the loss of a step is copied to the host behind
    the step's forward pass and read one step later, when it is there already: no stall.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._pending: tuple[torch.Tensor, torch.cuda.Event | None, str] | None = None
        self._where = "the start"

    def check(self, loss: torch.Tensor, *, epoch: int, step: int, lr: float) -> None:
        """Raises NonFiniteLoss; ``loss`` is a scalar, ``epoch`` and ``step`` count from 0."""
        self._where = f"epoch {epoch}, step {step}, learning rate {lr:g}"
        loss = loss.detach().double()
        if dist.is_initialized():  # one that is not finite makes the sum so
            loss = loss.clone()
            all_reduce_sum(loss)
        before, self._pending = self._pending, (*_to_host(loss), self._where)
        if loss.device.type == "cpu":
            before, self._pending = self._pending, None
        self._read(before)

    def close(self) -> None:
        """Look at the last loss and at what the steps made of the network (call after the loop).

        A checkpoint may be written afterwards.
        """
        last, self._pending = self._pending, None
        self._read(last)
        optimizer = {"optimizer": self._optimizer.state_dict()}
        name = first_non_finite({**unwrap(self._model).state_dict(), **optimizer})
        device = next(self._model.parameters()).device
        bad = torch.tensor(float(name is not None), device=device)
        all_reduce_sum(bad)
        if bad:
            raise NonFiniteLoss(f"{name or 'the model'} is not finite after {self._where}; {CURE}")

    @staticmethod
    def _read(pending: tuple[torch.Tensor, torch.cuda.Event | None, str] | None) -> None:
        if pending is None:
            return
        loss, copied, where = pending
        if copied is not None:
            copied.synchronize()
        if not math.isfinite(value := float(loss)):
            raise NonFiniteLoss(f"the loss is {value} at {where}; {CURE}")


def _to_host(value: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A scalar on the host, and the event after which it is there; None: it is there now."""
    if value.device.type != "cuda":
        return value, None
    copy = torch.empty_like(value, device="cpu", pin_memory=True)
    copy.copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return copy, copied
