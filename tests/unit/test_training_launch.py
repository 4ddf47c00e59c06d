"""Exit codes, devices, seeds and the guard against a diverging loss."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from common.training import launch, precision, seeds
from common.training.errors import NonFiniteLoss, UsageError, writing
from datasets.loaders import WorkersLoader
from tests.programs import tools

ROOT = Path(__file__).resolve().parents[2]


def stop_with(error):
    def main(_):
        raise error

    return main


def test_exit_codes(capsys):
    cases = [
        (UsageError("--lr -1: must be positive"), 2, "error: --lr -1: must be positive"),
        (NonFiniteLoss("the loss is nan"), 1, "error: the loss is nan"),
        (KeyboardInterrupt(), 130, "interrupted; a training goes on from its last checkpoint"),
    ]
    for error, code, words in cases:
        with pytest.raises(SystemExit) as stop:
            launch.run(stop_with(error))
        assert stop.value.code == code
        assert words in capsys.readouterr().err


def test_one_process_of_a_machine_complains(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        launch.run(stop_with(UsageError("x")))
    assert capsys.readouterr().err == ""


def test_a_program_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        launch.run(lambda _: 1 / 0)
    with pytest.raises(RuntimeError, match="must match"):
        launch.run(lambda _: torch.ones(2) + torch.ones(3))


def test_what_a_file_system_refuses_is_one_line(capsys):
    for error, words in [
        (PermissionError(13, "Permission denied", "data/train"), "data/train: Permission denied"),
        (PermissionError(13, "Permission denied", b"a.jpg"), "a.jpg: Permission denied"),
        (OSError(5, "Input/output error", "a.jpg"), "a.jpg: Input/output error"),
        (IsADirectoryError(21, "Is a directory", "list"), "list: Is a directory"),
    ]:
        cure = "; fix that and start again, a training with --resume auto (arbloss: resume auto)\n"
        assert errors_of(stop_with(error), capsys).endswith(f": error: {words}{cure}")
    for error in (
        FileNotFoundError(2, "No such file", "x"),
        ConnectionRefusedError(111, "refused"),
    ):
        with pytest.raises(type(error)):
            launch.run(stop_with(error))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (PermissionError(13, "Permission denied", "a.jpg"),
         "a.jpg: Permission denied; fix that and start again"),
        (MemoryError(), "out of memory: a smaller batch needs less, and where all images are held "
         "in memory a smaller image_size (of a new run)"),
        (OSError(28, "No space left on device"),
         "the output cannot be written any more (No space left on device)"),
        (UsageError("--lr -1: must be positive"), "--lr -1: must be positive"),
    ],
)  # fmt: skip
def test_a_tool_that_trains_nothing_speaks_of_no_training(capsys, error, words):
    with pytest.raises(SystemExit):
        launch.run(stop_with(error), trains=False)
    assert capsys.readouterr().err.partition(": error: ")[2] == words + "\n"


def test_a_file_that_a_tool_cannot_write(tmp_path, capsys):
    def main(_):
        with writing(tmp_path / "out"):
            (tmp_path / "no" / "out").touch()

    with pytest.raises(SystemExit):
        launch.run(main, trains=False)
    assert capsys.readouterr().err.endswith(
        "out: cannot be written (No such file or directory); fix that and start again\n"
    )


def errors_of(main, capsys):
    """What a program that ends with exit code 1 writes to standard error."""
    with pytest.raises(SystemExit) as stop:
        launch.run(main)
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_batch_norm_with_one_value(capsys):
    layer = torch.nn.BatchNorm2d(2)
    error = errors_of(lambda _: layer(torch.ones(1, 2, 1, 1)), capsys)
    assert error.endswith(
        "error: batch norm has a single value per channel in a process: it needs a larger batch, "
        "or images so large that the last features are more than one pixel\n"
    )
    assert error.count("\n") == 1


def test_out_of_memory_is_one_line(capsys):
    def of_a_gpu():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …")

    cases = [
        (lambda: torch.empty(2**53).bool(), " (tried to allocate 36028797018963968 bytes)", ""),
        (lambda: np.empty(2**55), " (unable to allocate 256. pib)", ""),
        (lambda: bytearray(2**62), "", ""),
        (of_a_gpu, " (tried to allocate 2.50 gib)", " or loader workers"),
    ]
    for want, amount, on_a_gpu in cases:
        error = errors_of(lambda _: want(), capsys)
        assert error.endswith(
            f"error: out of memory{amount}: a smaller batch needs less, and where all images are "
            f"held in memory a smaller image_size (of a new run){on_a_gpu}. A training goes on "
            "from its last checkpoint with --resume auto (arbloss: resume auto)\n"
        )
        assert error.count("\n") == 1


class Killed(torch.utils.data.Dataset):
    """Samples whose fetching ends the worker process."""

    targets = (0,) * 4

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.how()


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


@pytest.mark.parametrize(("how", "words"), [
    (be_killed, "killed by signal: Killed"), (leave, "exited unexpectedly"),
])  # fmt: skip
def test_a_worker_of_the_loader_that_dies(how, words, capsys):
    if multiprocessing.get_start_method() != "fork":  # of a grandchild no signal is heard of
        words = "exited unexpectedly"
    loader = WorkersLoader(
        Killed(how), 2, workers=1, seed=0, process=launch.Process(torch.device("cpu"))
    )
    error = errors_of(lambda _: list(loader), capsys)
    loader.close()
    assert f"error: a worker process of the data loader died ({words}" in error
    assert error.endswith(
        "): out of memory, or of shared memory (/dev/shm)? Fewer workers need less. A training "
        "goes on from its last checkpoint with --resume auto (arbloss: resume auto)\n"
    )
    assert error.count("\n") == 1


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that so many GPUs are there; returns the list of those that are chosen."""

    def pretend(count):
        chosen = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
        return chosen

    return pretend


def test_a_gpu_that_is_not_there(gpus):
    cases = [
        (2, 2, "--gpu 2: this machine has GPUs 0 to 1"),
        (2, -1, "--gpu -1: this machine has GPUs 0 to 1"),
        (0, 99, "--gpu 99: this machine has no GPU; leave --gpu out to use the CPU"),
        (0, -1, "--gpu -1: this machine has no GPU; leave --gpu out to use the CPU"),
    ]
    for count, gpu, words in cases:
        gpus(count)
        with pytest.raises(UsageError) as error:
            launch.start(gpu)
        assert str(error.value) == words


def test_a_gpu_that_is_there(gpus, capsys):
    chosen = gpus(2)
    assert launch.start(1).device == torch.device("cuda", 1) and chosen == [1]
    assert launch.start(None).device == torch.device("cuda", 0)
    assert launch.start(1, use_cuda=False).device == torch.device("cpu")
    gpus(0)
    assert launch.start(None).device == torch.device("cpu")
    assert capsys.readouterr().out == ""
    assert launch.start(0).device == torch.device("cpu")
    assert capsys.readouterr().out == "note: --gpu 0: no CUDA device here, running on the CPU\n"


@pytest.fixture
def launched(monkeypatch):
    """Rank 1 of two that a launcher started on this machine; returns how it met the other."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    met = []
    monkeypatch.setattr(launch.peers, "meet", lambda *args: met.append(args))
    return met


@pytest.fixture
def srun(launched, monkeypatch):
    """Rank 3 of four that were started with or without local variables; sets them."""

    def start(local_rank, local_world_size):
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "4")
        for name, value in (("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", local_world_size)):
            monkeypatch.delenv(name)
            if value is not None:
                monkeypatch.setenv(name, str(value))

    return start


@pytest.mark.parametrize(("count", "device", "backend"), [
    (2, "cuda:1", "nccl"), (3, "cuda:1", "nccl"), (0, "cpu", "gloo"),
])  # fmt: skip
def test_each_process_has_its_gpu(gpus, launched, count, device, backend):
    gpus(count)
    assert launch.start() == launch.Process(torch.device(device), 1, 2, 1, 2)
    assert launched == [(backend, 1, 2)]


def test_what_a_launcher_cannot_have_said(gpus, launched, monkeypatch):
    gpus(0)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "two")
            with pytest.raises(UsageError) as error:
                launch.start()
        assert str(error.value) == f"{name} 'two': not a whole number; start with torchrun"


def test_more_processes_than_gpus(gpus, launched, monkeypatch):
    gpus(1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError) as error:
        launch.start()
    assert str(error.value) == (
        "2 processes on a machine with 1 GPUs: start at most 1, or all of them on the CPU with "
        "CUDA_VISIBLE_DEVICES="
    )
    assert launch.start(use_cuda=False).device == torch.device("cpu")


@pytest.mark.parametrize(("count", "local_rank", "local_world_size", "device"), [
    (1, 3, 4, 0),  # srun --gpus-per-task=1: each sees its own alone
    (1, None, None, 0), (1, 0, None, 0), (4, 3, 4, 3), (4, 0, 4, 0),
])  # fmt: skip
def test_the_gpu_of_a_process_of_another_launcher(
    gpus, srun, count, local_rank, local_world_size, device
):
    chosen = gpus(count)
    srun(local_rank, local_world_size)
    place = 3, 4, local_rank or 0, local_world_size or 1
    assert launch.start() == launch.Process(torch.device("cuda", device), *place)
    assert chosen == [device]


@pytest.mark.parametrize(("count", "local_rank", "local_world_size", "words"), [
    (2, None, None, "WORLD_SIZE 4, but no LOCAL_RANK, by which a process takes one of the 2 GPUs: "
                    "start with torchrun, or set LOCAL_RANK and LOCAL_WORLD_SIZE (with srun to "
                    "$SLURM_LOCALID and $SLURM_NTASKS_PER_NODE)"),
    (2, 2, None, "LOCAL_RANK 2, but LOCAL_WORLD_SIZE 1: set it to the number of processes of a "
                 "machine (with srun to $SLURM_NTASKS_PER_NODE)"),
    (1, 1, 1, "LOCAL_RANK 1, but LOCAL_WORLD_SIZE 1: set it to the number of processes of a "
              "machine (with srun to $SLURM_NTASKS_PER_NODE)"),
    (2, -1, 2, "LOCAL_RANK -1, but LOCAL_WORLD_SIZE 2: set it to the number of processes of a "
               "machine (with srun to $SLURM_NTASKS_PER_NODE)"),
])  # fmt: skip
def test_a_process_that_cannot_know_its_gpu_says_so(
    gpus, srun, capsys, count, local_rank, local_world_size, words
):
    gpus(count)
    srun(local_rank, local_world_size)
    with pytest.raises(SystemExit) as stop:
        launch.run(lambda _: launch.start())
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f": error: {words}\n")
    gpus(0)
    assert launch.start().device == torch.device("cpu")


def test_a_launcher_of_one_process_needs_no_local_rank(gpus, srun, monkeypatch):
    gpus(2)
    srun(None, None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launch.start() == launch.Process(torch.device("cuda", 0))


def test_options_of_ddp_are_no_warning(tmp_path, recwarn):
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        process = launch.Process(torch.device("cpu"), world_size=2)
        launch.distribute(torch.nn.Linear(1, 1), process, broadcast_buffers=False)
    finally:
        dist.destroy_process_group()
    assert [str(warning.message) for warning in recwarn] == []


def test_processes_wait_on_their_gpus_without_a_warning(monkeypatch):
    """NCCL's, which guesses a GPU that it is not told, and says so."""
    waited = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "barrier", lambda **options: waited.append(options))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for backend in ("nccl", "gloo"):
        monkeypatch.setattr(dist, "get_backend", lambda backend=backend: backend)
        launch.barrier()
    assert waited == [{"device_ids": [3]}, {"device_ids": None}]


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
        cwd=tmp_path, env=tools.environment(), capture_output=True, text=True,
        timeout=tools.TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("R"))
    assert lines == ["R 0 2 3.0 True", "R 1 2 3.0 True"]
    assert done.stdout.count("at exit") == 2
    assert "shuts down" not in done.stdout
