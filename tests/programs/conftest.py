"""What a small run of a program need not do, and must not."""

import pytest
import torch

from common.training import pictures


@pytest.fixture(autouse=True, scope="module")
def no_gpu():
    """All programs here run on the CPU: a process that has used CUDA cannot fork one that does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        yield


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """A test's own runs draw nothing, in forked processes too: it takes longer than their epochs.

    Runs that the tests of a module share, and those of ``run_fresh``, draw all there is.
    """
    monkeypatch.setattr(pictures, "picture", lambda path, draw, *args: None)
