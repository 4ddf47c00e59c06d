"""What is faster is the default, and the user's word counts."""

import pytest
import torch

from common.training import speed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "amp", "expected"),
    [
        (None, CPU, "none", True),
        (None, CPU, "bf16", True),
        (None, GPU, "none", False),
        (None, GPU, "bf16", True),
        (None, GPU, "fp16", True),
        (False, CPU, "none", False),
        (True, GPU, "none", True),
    ],
)
def test_channels_last_where_it_is_faster_unless_the_user_says(asked, device, amp, expected):
    assert speed.use_channels_last(asked, device, amp) is expected
