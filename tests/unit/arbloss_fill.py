"""Weights and inputs of the golden runs, by the rules of their description."""

import math

import numpy as np
import torch


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Replace every state entry, in key order, by numbers of a seed."""
    random = np.random.RandomState(seed)
    for name, entry in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            entry.zero_()
            continue
        x = random.standard_normal(tuple(entry.shape))
        if name.endswith("running_mean"):
            x = 0.1 * x
        elif name.endswith("running_var"):
            x = 1 + 0.1 * np.abs(x)
        elif name.endswith("bias"):
            x = 0.1 * x
        elif name.endswith("learned_norm") or entry.ndim == 1:
            x = 1 + 0.1 * x
        else:
            x = x / math.sqrt(math.prod(entry.shape[1:]))
        entry.copy_(torch.as_tensor(x).to(entry.dtype))
    return module


def made_input(seed: int, shape: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal numbers, rounded to float32 whatever the dtype."""
    x = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    return torch.from_numpy(x).to(dtype)
