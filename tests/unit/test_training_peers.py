"""Processes that do not come, die or fail: one line, from one process."""

import multiprocessing
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from common.training import launch, peers
from common.training.errors import RunError, UsageError
from tests.programs import tools

pytestmark = pytest.mark.usefixtures("no_gpu")
SOON = timedelta(seconds=0.2)


def program(_):
    """Fails as HOW says, in the process that it names."""
    process = launch.start()
    launch.barrier()
    how, _, where = os.environ["HOW"].partition(" ")
    if where in ("everywhere", str(process.rank)):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "refused":
            raise UsageError("--root nowhere: no such folder")
        raise RunError("disk full")
    launch.barrier()


def child(rank, port, how, stderr):
    sys.stderr = open(stderr, "a", buffering=1)  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)  # torch's own reports, too
    sys.argv = ["train.py"]
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        RANK=str(rank), LOCAL_RANK=str(rank), HOW=how,
    )  # fmt: skip
    peers.FAREWELL = SOON if "killed" in how else timedelta(minutes=1)
    launch.run(program)


ENDED = (
    "train.py: error: another process of the run has ended and said why, or was killed (out of "
    "memory?). A training goes on from its last checkpoint with --resume auto (arbloss: resume "
    "auto)\n"
)


def test_the_first_process_that_fails_says_why(tmp_path):
    cases = [
        ("killed 1", [1, -9], ENDED),
        ("killed 0", [-9, 1], ENDED),
        ("refused everywhere", [2, 2], "train.py: error: --root nowhere: no such folder\n"),
        ("refused 0", [2, 1], "train.py: error: --root nowhere: no such folder\n"),
        ("refused 1", [1, 2], "train.py: error: --root nowhere: no such folder\n"),
        ("failed 1", [1, 1], "train.py: error: disk full\n"),
    ]
    for how, codes, words in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        context = multiprocessing.get_context("fork")
        place = tools.free_port(), how, folder / "stderr"
        processes = [context.Process(target=child, args=(rank, *place)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(tools.TIMEOUT)
        assert [process.exitcode for process in processes] == codes
        assert (folder / "stderr").read_text() == words


GOES_ON = "A training goes on from its last checkpoint with --resume auto (arbloss: resume auto)\n"


@pytest.mark.parametrize(("spoken", "killed_by", "exit_code", "code", "said"), [
    (False, "SIGKILL", -9, 1, f"process 1 terminated with signal SIGKILL (of 2): out of memory? "
                              f"{GOES_ON}"),
    (False, "SIGABRT", -6, 1, f"process 1 terminated with signal SIGABRT (of 2): another process "
                              f"did not answer for 10 minutes? {GOES_ON}"),
    (True, "SIGKILL", -9, 1, ""),
    (True, "SIGKILL", 2, 2, ""),
])  # fmt: skip
def test_one_command_for_all_gpus(monkeypatch, capsys, spoken, killed_by, exit_code, code, said):
    """It says what became of a process that was killed, if none of them has noticed."""

    def spawn(child, args, nprocs):
        if spoken:
            args[-1].set()
        raise ProcessExitedException(
            f"process 1 terminated with signal {killed_by}", 1, 0, exit_code, killed_by
        )

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stop:
        launch.run(lambda _: launch.fan_out(program, [], processes=2))
    assert stop.value.code == code
    assert capsys.readouterr().err == (said and f"train.py: error: {said}")


@pytest.fixture
def place(monkeypatch):
    """An address where nobody is; returns its port."""
    port = tools.free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(peers, "WAIT", SOON)
    return port


@pytest.mark.parametrize(("rank", "words"), [
    (0, "not all of the 2 processes came to {} within {}"), (1, "process 0 was not at {} for {}"),
])  # fmt: skip
def test_a_process_that_never_comes_is_given_up(place, capfd, rank, words):
    with pytest.raises(RunError) as error:
        peers.meet("gloo", rank, 2)
    words = words.format(f"127.0.0.1:{place}", "0.00333333 minutes")
    cure = "start all of them, with the same MASTER_ADDR and MASTER_PORT"
    assert str(error.value) == f"{words}; {cure}"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("rank", "local_rank", "missing", "speaks"), [
    (0, 0, RunError, True), (1, 1, RunError, False), (2, 0, RunError, True),
    (1, 1, peers.NoProcess0, True), (2, 2, peers.NoProcess0, False),  # beside process 0
    (2, 0, peers.NoProcess0, True), (3, 1, peers.NoProcess0, False),  # on another machine
])  # fmt: skip
def test_one_process_of_a_machine_says_who_has_not_come(
    monkeypatch, rank, local_rank, missing, speaks
):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert peers.first_to_fail(missing("…")) is speaks


def test_places_where_no_run_can_meet(place, monkeypatch):
    def refusal(rank=0):
        with pytest.raises(UsageError) as error:
            peers.meet("gloo", rank, 2)
        return str(error.value)

    assert refusal(rank=2) == "RANK 2: WORLD_SIZE 2 has ranks 0 to 1"
    with socket.socket() as other:
        other.bind(("", int(place)))
        other.listen()
        assert refusal() == f"MASTER_PORT {place}: in use, choose another one"
    monkeypatch.setenv("MASTER_PORT", "99999")
    assert refusal().startswith("MASTER_ADDR:MASTER_PORT 127.0.0.1:99999: ")
    monkeypatch.delenv("MASTER_ADDR")
    assert refusal() == "WORLD_SIZE 2, but no MASTER_ADDR: start with torchrun"


def test_what_torchs_errors_mean():
    cases = [
        (
            RuntimeError(
                "[/x/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1"
            ),
            "another process of the run has ended and said why, or was killed (out of memory?)",
        ),
        (
            RuntimeError(
                "[/x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv"
                " operation to complete"
            ),
            "another process of the run has not answered for 10 minutes",
        ),
        (
            dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
            "another process of the run has ended and said why, or was killed (out of memory?)",
        ),
        (
            dist.DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:94, invalid usage\nLast error:\nDuplicate GPU "
                "detected : rank 1 and rank 0 both on CUDA device 1b000"
            ),
            "two processes of the run have the same GPU: start one process a GPU, with torchrun",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ]
    for error, words in cases:
        assert peers.explain(error) == words
