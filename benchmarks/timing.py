"""What the benchmarks share: functions timed in turn, rows of a table, facts of the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from common.training.precision import has_bfloat16


@dataclass(frozen=True)
class Row:
    """A comparison: what it is of, what the plain way gives, what ours, and the ratio."""

    what: str
    plain: str
    ours: str
    ratio: str


def in_turn(
    runs: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each function, after a round that warms up; all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run, device)
            if turn:
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def rates(what: str, plain: float, ours: float) -> Row:
    """A row of images per second."""
    digits = 0 if min(plain, ours) >= 100 else 1
    return Row(what, f"{plain:,.{digits}f}", f"{ours:,.{digits}f}", f"{ours / plain:.2f}×")


def machine(device: torch.device) -> str:
    """Processor, threads and GPU, and the versions that matter, in a line."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            s.split(":")[1].strip() for s in cpuinfo.read_text().splitlines() if "model n" in s
        ]
        processor = next((name for name in names if not name.isdigit()), processor)
    facts = [f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if device.type == "cuda":
        facts.append(torch.cuda.get_device_name(device))
    elif not has_bfloat16(device):
        facts.append("no bfloat16 instructions")
    return "; ".join(
        [*facts, f"PyTorch {torch.__version__}", f"Python {platform.python_version()}"]
    )


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| what | plain | ours | ratio |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r.what} | {r.plain} | {r.ours} | {r.ratio} |" for r in rows)])
