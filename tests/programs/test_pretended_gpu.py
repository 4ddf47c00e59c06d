"""Every program trains and evaluates on a device that is not there.

The device ``meta`` stands for a GPU: its tensors have shapes and no values. A step that reads a
value, and so would wait for the GPU, raises there; so does an operation on tensors of two devices,
and from the second step on a copy to the GPU that does not let the CPU go on.
What autocast and the streams of a GPU do is left out.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.evaluation import Tally
from common.training import launch
from common.training.launch import Process
from common.training.logs import AverageMeter
from common.training.precision import FiniteGuard
from dbm_loss.GML.engine import Means
from dbm_loss.large_scale.engine import Sums
from dbm_loss.losses import BalancedSoftmax
from ib_loss import engine as ib_engine
from tests.programs import small_runs

META = torch.device("meta")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices; numbers of the CPU go with every device.

    Once ``steps`` is set it also refuses copies between them that wait.
    """

    steps = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.ndim or x.device != torch.device("cpu")}
        if len(devices) > 1 and func not in COPIES:
            raise AssertionError(f"{func} on tensors of {' and '.join(sorted(devices))}")
        if self.steps and func in COPIES and not (kwargs.get("non_blocking") or any(args[2:])):
            devices = {x.device for x in tensors} | {kwargs.get("device") or tensors[0].device}
            if len(devices) > 1:
                raise AssertionError(f"{func} between devices waits")
        return func(*args, **kwargs)


class Evaluated(Exception):
    """An epoch was trained, and the test set has been evaluated."""


class Pretended(Process):
    """A process that prints and writes nothing: log lines read values, which is what they cost."""

    is_main = False


@pytest.fixture
def here(tmp_path, monkeypatch):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_and_evaluate(name, monkeypatch):
    """Run a program on the pretended device, up to the end of the first evaluation."""
    program, argv = small_runs.command(name)

    def stop(self):
        raise Evaluated

    monkeypatch.setattr(launch, "start", lambda *_, **__: Pretended(META))
    monkeypatch.setattr(Tally, "reduce", stop)
    # Where a program reads what the device has computed: one step late, and after the last step.
    monkeypatch.setattr(FiniteGuard, "_read", lambda *_: None)
    monkeypatch.setattr(FiniteGuard, "close", lambda self: None)
    monkeypatch.setattr(AverageMeter, "reduce", lambda *_: None)
    monkeypatch.setattr(AverageMeter, "avg", 0.0)
    monkeypatch.setattr(Means, "row", lambda self: {})
    monkeypatch.setattr(Sums, "means", lambda self: {})
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    device, check = OneDevice(), FiniteGuard.check

    def check_and_go_on(*args, **kwargs):
        check(*args, **kwargs)
        device.steps = True

    monkeypatch.setattr(FiniteGuard, "check", check_and_go_on)
    with device, pytest.raises(Evaluated):
        program.main(argv)


@pytest.mark.parametrize("name", small_runs.PROGRAMS)
def test_no_step_mixes_devices_or_waits(here, name, monkeypatch):
    train_and_evaluate(name, monkeypatch)


def test_a_forgotten_buffer_is_found(here, monkeypatch):
    """The class frequencies of a loss, which do not move with it: each step would fetch them."""
    monkeypatch.setattr(BalancedSoftmax, "_apply", lambda self, *_: self)
    with pytest.raises(AssertionError, match=r"aten\._to_copy\.default between devices waits"):
        train_and_evaluate("dbm_cifar", monkeypatch)


def test_a_step_that_waits_is_found(here, monkeypatch):
    """The value of a loss, read in each step."""

    def impatient(logits, target, topk=(1,)):
        return [logits.amax().item() for _ in topk]

    monkeypatch.setattr(ib_engine, "accuracy", impatient)
    with pytest.raises(RuntimeError, match=r"Tensor.item\(\) cannot be called on meta tensors"):
        train_and_evaluate("ib_cifar", monkeypatch)
