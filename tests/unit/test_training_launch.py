"""Exit codes, devices, seeds and the guard against a diverging loss."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.training import launch, precision, seeds
from common.training.errors import NonFiniteLoss, UsageError

ROOT = Path(__file__).resolve().parents[2]


def stop_with(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(("error", "code", "words"), [
    (UsageError("--lr -1: must be positive"), 2, "error: --lr -1: must be positive"),
    (NonFiniteLoss("the loss is nan"), 1, "error: the loss is nan"),
    (KeyboardInterrupt(), 130, "interrupted; a training goes on from its last checkpoint"),
])  # fmt: skip
def test_exit_codes(error, code, words, capsys):
    with pytest.raises(SystemExit) as stop:
        launch.run(stop_with(error))
    assert stop.value.code == code
    assert words in capsys.readouterr().err


def test_only_the_first_process_complains(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        launch.run(stop_with(UsageError("x")))
    assert capsys.readouterr().err == ""


def test_a_program_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        launch.run(lambda _: 1 / 0)


def test_finite_guard_names_the_place():
    model = torch.nn.Linear(1, 1)
    guard = precision.FiniteGuard(model, torch.optim.SGD(model.parameters(), 0.1))
    guard.check(torch.tensor(1.5), epoch=0, step=0, lr=0.1)
    with pytest.raises(NonFiniteLoss, match=r"inf at epoch 3, step 7, learning rate 0\.1"):
        guard.check(torch.tensor(float("inf")), epoch=3, step=7, lr=0.1)


def test_seeds_depend_on_every_key_and_nothing_else():
    keys = ((1, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), (2, "a", 0), (1, "a", 0, 0), (10, "a", 0))
    assert len({seeds.derive(*key) for key in keys}) == len(keys)
    assert seeds.derive(1, "order", 3) == 574597892146731766
    draws = []
    for _ in range(2):
        seeds.seed_everything(5, "training", 2)
        draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert draws[0] == draws[1]
    seeds.seed_everything(5, "training", 3)
    assert float(torch.rand(())) != draws[0][2]


def test_a_given_seed_is_kept_and_a_missing_one_is_drawn():
    assert seeds.choose_seed(7) == 7
    assert len({seeds.choose_seed(None) for _ in range(4)}) == 4


def test_float16_and_bfloat16_autocast():
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    for amp, dtype in (("none", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with precision.autocast(torch.device("cpu"), amp):
            assert layer(x).dtype == dtype
    assert not precision.grad_scaler(torch.device("cpu"), "bf16").is_enabled()
    assert precision.grad_scaler(torch.device("cpu"), "fp16").is_enabled()


def test_torch_distributed_launch_passes_its_rank(tmp_path):
    """Two gloo processes: exact sums, rank 0's buffers everywhere, DDP around the model."""
    (tmp_path / "program.py").write_text(
        "import atexit, sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch\n"
        "from torch import nn\n"
        "from common.training import launch, seeds\n"
        "def main(_):\n"
        "    process = launch.start()\n"
        "    value = torch.tensor([1.0 + process.rank])\n"
        "    launch.all_reduce_sum(value)\n"
        "    model = launch.distribute(nn.BatchNorm1d(2), process)\n"
        "    model(torch.randn(4, 2, generator=torch.Generator().manual_seed(process.rank)))\n"
        "    launch.sync_buffers(model)\n"
        "    mean = launch.unwrap(model).running_mean.clone()\n"
        "    other = mean.clone(); launch.all_reduce_sum(other)\n"
        "    seed = seeds.choose_seed(None)\n"
        "    total = torch.tensor([float(seed % 9973)]); launch.all_reduce_sum(total)\n"
        "    same = torch.equal(other, 2 * mean) and float(total) == 2 * (seed % 9973)\n"
        "    facts = process.rank, process.world_size, float(value), same\n"
        "    sys.stdout.write(' '.join(map(str, ('R', *facts))) + '\\n')\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        print('the interpreter shuts down, gloo may abort it')\n"
        "last = Last()\n"
        "atexit.register(sys.stdout.write, 'at exit\\n')\n"
        "launch.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "program.py", str(ROOT)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("R"))
    assert lines == ["R 0 2 3.0 True", "R 1 2 3.0 True"]
    assert done.stdout.count("at exit") == 2
    assert "shuts down" not in done.stdout
