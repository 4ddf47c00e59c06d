"""What makes a step fast without changing what it computes: memory format and compilation."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.training.launch import Process, smallest

# A forward pass with the loss: (model, criterion, images, labels, …) -> loss, what else is needed.
Forward = Callable[..., tuple[Tensor, ...]]

# For torch.compile. On a GPU small networks wait for the launches of their kernels: one CUDA graph
# launches them all.
COMPILER = {"cpu": {}, "cuda": {"mode": "reduce-overhead"}}
MOST_AT_ONCE = 4096  # images of an evaluation batch; more find no idle hardware


def use_channels_last(asked: bool | None, device: torch.device, amp: str) -> bool:
    """Whether images and weights are stored channels-last: as asked, else where it is faster.

    That is on the CPU, and on a GPU in half precision, whose convolutions want it. The numbers are
    the same but for the order of sums.
    """
    return device.type == "cpu" or amp != "none" if asked is None else asked


def memory_format(channels_last: bool) -> torch.memory_format:
    """The memory format of images and convolution weights."""
    return torch.channels_last if channels_last else torch.contiguous_format


def evaluation_batch(nominal: int, device: torch.device, side: int) -> int:
    """Images of a batch to evaluate: a multiple of ``nominal``, as many as the memory suggests.

    On a CPU that is ``nominal``: larger batches leave its caches and are slower. A GPU takes what
    fits in a sixteenth of its memory, at some 400 bytes a pixel. It is the memory of the device,
    not what is free of it, so that a run can be repeated. The smallest GPU decides for all
    processes: they take turns with the batches, and have to cut the images at the same places.

    Args:
        side: of the images, in pixels.
    """
    if device.type != "cuda":
        return nominal
    memory = smallest(torch.cuda.get_device_properties(device).total_memory)
    fits = min(memory // 16 // (400 * side * side), MOST_AT_ONCE)
    return nominal * max(1, fits // nominal)


def compiled(forward: Forward, wanted: bool, process: Process, full_batch: int) -> Forward:
    """``forward`` compiled by torch.compile for batches of ``full_batch`` images, if ``wanted``.

    The last batch of an epoch, if it is shorter, is not worth a compilation of its own and runs as
    it is. The optimiser's step is not compiled: no learning rate is baked in. Without a working
    compiler a line says so, and ``forward`` is returned.
    """
    if not wanted:
        return forward
    options = COMPILER[process.device.type]
    try:
        torch.compile(torch.sin, **options)(torch.ones(1, device=process.device))
    except Exception as error:  # whatever a compiler that is missing or broken raises
        reason = " ".join(str(error).split("\n")[:2]) or type(error).__name__
        process.say(f"note: compile has no effect, there is no working compiler ({reason})")
        return forward
    _stopwatch.watch()
    return _Compiled(forward, process.device, full_batch, options)


class _Compiled:
    def __init__(
        self, forward: Forward, device: torch.device, full_batch: int, options: dict
    ) -> None:
        self._forward, self._device, self._full_batch = forward, device, full_batch
        self._compiled = torch.compile(forward, dynamic=False, **options)

    def __call__(
        self, model: nn.Module, criterion: nn.Module, images: object, target: Tensor, *rest: object
    ) -> tuple[Tensor, ...]:
        if len(target) != self._full_batch:
            return self._forward(model, criterion, images, target, *rest)
        # A number that differs from step to step would be compiled in, and compiled anew.
        rest = [
            torch.full((), value, device=self._device) if isinstance(value, float) else value
            for value in rest
        ]
        if self._device.type != "cuda":
            return self._compiled(model, criterion, images, target, *rest)
        torch.compiler.cudagraph_mark_step_begin()
        results = self._compiled(model, criterion, images, target, *rest)
        return tuple(x.clone() for x in results)  # the next step's graph writes over them


class _Stopwatch:
    """Seconds that the compiler has taken since they were last asked for."""

    def __init__(self) -> None:
        self._seconds, self._since = 0.0, 0.0

    def watch(self) -> None:
        handler = torch._dynamo.callback.callback_handler
        if self._start not in handler.start_callbacks:
            handler.register_start_callback(self._start)
            handler.register_end_callback(self._stop)

    def _start(self, *_: object) -> None:
        self._since = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._since

    def read(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


_stopwatch = _Stopwatch()


def compile_seconds(process: Process) -> float:
    """Seconds of compilation since this was last asked, which is said: they are no training."""
    seconds = _stopwatch.read()
    if seconds:
        process.say(f"compiled in {seconds:.1f} s")
    return seconds
