"""Numbers that are not finite are found, and only those."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.training.precision import first_non_finite, grad_scaler


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_the_first_number_that_is_not_finite_is_named(bad, dtype):
    weight = torch.ones(3, 5, dtype=dtype)
    state = {"a": weight, "steps": torch.tensor([3]), "state": [{"exp": weight.clone()}, {}]}
    assert first_non_finite(state) is None
    state["state"][0]["exp"][2, 1] = bad
    assert first_non_finite(state) == "state.0.exp"
    assert first_non_finite({**state, "loss": bad}) == "state.0.exp"
    assert first_non_finite({"loss": bad}) == "loss"


def test_opposite_infinities_do_not_hide_each_other():
    assert first_non_finite({"w": torch.tensor([math.inf, -math.inf])}) == "w"


def test_a_sum_that_overflows_is_no_fault_of_its_terms():
    assert (
        first_non_finite({"w": torch.full((9,), 3e38), "h": torch.full((9,), 6e4).half()}) is None
    )


def test_empty_tensors_are_finite():
    assert first_non_finite({"w": torch.empty(0, 3)}) is None
    assert first_non_finite({}) is None


class Waits(TorchDispatchMode):
    """Counts the values that are read of the pretended GPU ``meta``; all of them are true."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_host = func is torch.ops.aten._to_copy.default and kwargs.get("device") != META
        if args and getattr(args[0], "device", None) == META and to_host:
            self.count += 1
            return torch.ones(args[0].shape, dtype=args[0].dtype)
        return func(*args, **kwargs)


META = torch.device("meta")


def test_a_gpu_is_waited_for_once_whatever_comes_first():
    of_gpu = {name: torch.ones(2, device=META) for name in "abc"}
    for state in (of_gpu, {"best": 0.5, **of_gpu}):
        with Waits() as waits:
            assert first_non_finite(state) is None
        assert waits.count == 1


def test_bfloat16_on_a_cpu_that_imitates_it_is_said_also_without_onednn(monkeypatch):
    """Where torch was built without it, its operator is not there either."""
    cpu = torch.device("cpu")
    for built, instructions in ((True, True), (True, False), (False, None)):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda built=built: built)
        operators = SimpleNamespace()
        if built:
            operators._is_mkldnn_bf16_supported = lambda said=instructions: said
        monkeypatch.setattr(torch.ops, "mkldnn", operators)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert not grad_scaler(cpu, "bf16").is_enabled()
            assert not grad_scaler(cpu, "none").is_enabled()
        texts = [str(warning.message) for warning in said]
        line = "amp bf16: this CPU has no bfloat16 instructions, float32 is faster here"
        assert texts == ([] if instructions else [line])
