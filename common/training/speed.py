"""What makes a step fast without changing what it computes."""

from __future__ import annotations

import torch


def use_channels_last(asked: bool | None, device: torch.device, amp: str) -> bool:
    """Whether images and weights are stored channels-last: as asked, else where it is faster.

    That is on the CPU, and on a GPU in half precision, whose convolutions want it. The numbers are
    the same but for the order of sums.
    """
    return device.type == "cpu" or amp != "none" if asked is None else asked


def memory_format(channels_last: bool) -> torch.memory_format:
    """The memory format of images and convolution weights."""
    return torch.channels_last if channels_last else torch.contiguous_format
