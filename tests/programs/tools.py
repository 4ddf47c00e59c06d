"""What the end-to-end tests share: made-up data, real command lines, kills."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def make_image_folder(
    root: Path, counts: Sequence[int], *, test_per_class: int = 3, size: int = 32, seed: int = 0
) -> Path:
    """``root/{train,test}/<class>/*.jpg``: noisy images of a colour per class."""
    rng = np.random.RandomState(seed)
    colours = rng.randint(40, 216, (len(counts), 3))
    for split in ("train", "test"):
        for label, count in enumerate(counts):
            folder = root / split / f"class_{label:03d}"
            folder.mkdir(parents=True)
            for i in range(count if split == "train" else test_per_class):
                noise = rng.randint(-40, 40, (size, size, 3))
                pixels = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:04d}.jpg")
    return root


def environment(**extra: str) -> dict[str, str]:
    """One thread, no launcher variables: a fresh shell of a small machine."""
    launcher = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    env = {key: value for key, value in os.environ.items() if key not in launcher}
    return {**env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def run(
    command: Sequence[str | Path], cwd: Path, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess:
    """Run ``python COMMAND`` in ``cwd`` and capture its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def kill_after_lines(command: Sequence[str | Path], cwd: Path, lines: int) -> bool:
    """Start ``python COMMAND`` and kill -9 it after so many lines of output; False if it ended first."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        for count, _ in enumerate(process.stdout, start=1):
            if count == lines:
                process.kill()
                break
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    return process.returncode == -9


def run_with_kills(
    command: Sequence[str | Path], cwd: Path, *, kills: int, max_lines: int, seed: int
) -> None:
    """Kill a run several times at random lines of its output, resuming with ``--resume auto``."""
    rng = random.Random(seed)
    command = [*command, "--resume", "auto"]
    for _ in range(kills):
        if not kill_after_lines(command, cwd, rng.randint(5, max_lines)):
            break
    done = run(command, cwd)
    assert done.returncode == 0, done.stderr


def assert_same_weights(first: Path, second: Path, key: str = "state_dict") -> None:
    """Two checkpoints hold bit for bit the same tensors under ``key``."""
    a, b = (torch.load(path, weights_only=True)[key] for path in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
