"""Seeds. All randomness of an epoch derives from (seed, epoch): any epoch can be replayed."""

from __future__ import annotations

import hashlib
import os
import random

import numpy as np
import torch

from common.training.launch import broadcast_object


def choose_seed(seed: int | None) -> int:
    """The user's seed, or one drawn from the operating system; the same in every process."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little") >> 1
    return int(broadcast_object(seed))


def derive(seed: int, stream: str, *keys: int) -> int:
    """A 63-bit seed that depends on ``seed``, ``stream`` and the keys (epoch, step, …) alone.

    ``stream`` says what is drawn: without it the order of an epoch and what the program draws in it
    would be the same random numbers.
    """
    text = ",".join((str(int(seed)), stream, *(str(int(key)) for key in keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int, stream: str | None = None, *keys: int) -> None:
    """Seed torch (all devices), numpy's legacy generator and ``random``; with a stream, derived."""
    if stream is not None:
        seed = derive(seed, stream, *keys)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_kernels(device: torch.device, deterministic: bool) -> None:
    """On a GPU: deterministic kernels (slower), or the fastest that cuDNN finds by trying."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True, warn_only=True)
