"""Reproducible weights: the rules by which the golden runs filled their networks."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

Rule = Callable[[np.random.RandomState, str, tuple[int, ...]], np.ndarray]


def fill(module: nn.Module, seed: int, rule: Rule, through: type | None = None) -> nn.Module:
    """Fill every state entry in key order, counters with 0; ``through`` rounds to a dtype first."""
    rs = np.random.RandomState(seed)
    for key, entry in module.state_dict().items():
        if not entry.is_floating_point():
            entry.zero_()
        else:
            values = np.asarray(rule(rs, key, tuple(entry.shape)))
            entry.copy_(torch.from_numpy(values.astype(through) if through else values))
    return module


def fan_in(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def ib_loss(rs: np.random.RandomState, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) > 1:
        return rs.standard_normal(shape) * math.sqrt(2 / fan_in(shape))
    if key.endswith(("running_var", "weight")):
        return rs.uniform(0.5, 1.5, shape)
    return 0.1 * rs.standard_normal(shape)


def dbm_loss_cifar(rs: np.random.RandomState, key: str, shape: tuple[int, ...]) -> np.ndarray:
    z = rs.standard_normal(shape)
    if key.endswith("running_var"):
        return 0.5 + np.abs(z)
    if key.endswith(".queue"):  # NCL's keys, one a column
        return z / np.linalg.norm(z, axis=0)
    if len(shape) > 1:
        return z * math.sqrt(2 / fan_in(shape))
    return 1 + 0.1 * z if key.endswith("weight") else 0.1 * z


def dbm_loss_imagenet(rs: np.random.RandomState, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Of the large-scale programs and of GML."""
    if key.endswith("running_var"):
        return 0.5 + rs.rand(*shape)
    if key.endswith(("running_mean", "bias")):
        return 0.1 * rs.randn(*shape)
    if len(shape) == 1:
        return 0.5 + rs.rand(*shape)
    return rs.randn(*shape) * math.sqrt(1 / fan_in(shape))


def hmloss(rs: np.random.RandomState, key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("running_var"):
        return rs.uniform(0.5, 1.5, shape)
    z = 0.1 * rs.standard_normal(shape)
    return 1 + z if len(shape) == 1 and key.endswith("weight") else z


def arbloss(rs: np.random.RandomState, key: str, shape: tuple[int, ...]) -> np.ndarray:
    z = rs.standard_normal(shape)
    if key.endswith(("running_mean", "bias")):
        return 0.1 * z
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(z)
    if len(shape) == 1 or key.endswith("learned_norm"):
        return 1 + 0.1 * z
    return z / math.sqrt(fan_in(shape))
