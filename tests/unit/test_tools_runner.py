"""The runner of programs side by side: locks, shares of the machine, the line of progress."""

import errno
import fcntl
import os
import runpy
import sys
from functools import partial

import pytest

from common.training import lock
from common.training.errors import RunError
from tools import runner
from tools.runner import Job


@pytest.fixture
def job(tmp_path):
    commands = [["python", "ib_loss/cifar_train.py", "--root", "{root}"]]
    return Job(0, commands, tmp_path / "run", tmp_path / "run.json", 3, store=lambda *_: None)


def test_a_run_that_another_process_trains_is_not_started(job):
    job.folder.mkdir()
    with open(job.folder / "lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not runner.start(job, 0, 1, "DIR", [])
        assert job.process is None


def test_where_nothing_can_be_locked_the_runs_are_trained(job, monkeypatch, capsys):
    """Lustre without flock; Windows, which has no fcntl."""
    passed = []
    monkeypatch.setattr(
        runner.subprocess, "Popen", lambda words, pass_fds, **_: passed.append(pass_fds)
    )

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert runner.start(job, 0, 1, "DIR", []) and passed == [[job.lock.fileno()]]
    assert capsys.readouterr().out == (
        f"note: {job.folder} cannot be locked (Function not implemented): start no second run "
        "there\n"
    )
    monkeypatch.setattr(lock, "fcntl", None)
    job.lock = None
    assert runner.start(job, 0, 1, "DIR", []) and passed[1:] == [[]]  # Windows refuses any
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for module in (lock, runner):
        runpy.run_path(module.__file__)


def test_the_command_line_of_several_commands_is_one_that_a_shell_takes(job):
    job.commands.append(["python", "b.py", "two words"])
    assert runner.command_line(job) == (
        "python ib_loss/cifar_train.py --root {root} && python b.py 'two words'"
    )


def test_processes_share_cores_and_take_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shares = [runner.environment(slot, 4, ["4", "5"]) for slot in range(4)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in shares] == ["4", "5", "4", "5"]
    assert {env["OMP_NUM_THREADS"] for env in shares} == {"4"}
    alone = partial(runner.environment, 0, 1, ["4", "5"])
    assert alone()["CUDA_VISIBLE_DEVICES"] == "4,5"  # all of them
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert alone()["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("jobs", "workers"), [(1, 16), (4, 8), (64, 1)])
def test_a_program_reads_its_images_with_its_share_of_the_cores(job, monkeypatch, jobs, workers):
    """Not with the papers' 16 workers for each of three loaders, wherever it runs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    started = []
    monkeypatch.setattr(runner.subprocess, "Popen", lambda words, **_: started.append(words))
    job.commands.append(["python", "arbloss/train_stage1.py", "workers", "16"])
    for step in (0, 1):
        job.step = step
        assert runner.start(job, 0, jobs, "DIR", [])
    assert started[0][-2:] == ["--workers", str(workers)]
    assert started[1][-2:] == ["workers", str(workers)]
    assert "--workers" not in runner.command_line(job)


def test_the_time_left_is_told_from_the_epochs_of_this_start(job, monkeypatch, capsys):
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    epochs = iter([1, 2])  # one finished before this start, one in its 100 seconds
    monkeypatch.setattr(Job, "done", lambda self: next(epochs))
    runner.Progress([job]).show(1)
    assert "epoch 2/3, 0:01 h left" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_one_line(job):
    job.folder.write_text("in its way")
    with pytest.raises(RunError, match=r"run: cannot be written \(File exists\)"):
        runner.start(job, 0, 1, "DIR", [])
