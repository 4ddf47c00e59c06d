"""Shared fixtures: one thread, so that the golden numbers and the kill tests are exact."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)


class Golden:
    """Numbers of an original program: ``golden["name"]`` is an array, ``golden.facts`` the JSON."""

    def __init__(self, name: str):
        self.arrays = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    def tensor(self, key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.as_tensor(self.arrays[key], dtype=dtype)


@pytest.fixture(scope="session")
def golden():
    """``golden("ib_loss")`` loads ``tests/golden/ib_loss.{npz,json}`` once per session."""
    loaded: dict[str, Golden] = {}

    def load(name: str) -> Golden:
        if name not in loaded:
            loaded[name] = Golden(name)
        return loaded[name]

    return load


@pytest.fixture(scope="module")
def no_gpu():
    """The tests of a module run on the CPU, and so do the processes that they fork.

    Other devices sum in another order and draw other random numbers. And a process that has used
    CUDA cannot fork one that does; nor does CUDA_VISIBLE_DEVICES count in one that it has forked.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        yield


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config, items):
    # The longest file first: started last, one worker would wait for it.
    items.sort(key=lambda item: item.path.name != "test_short.py")
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
