"""What the end-to-end tests share: made-up data, real command lines, kills."""

from __future__ import annotations

import contextlib
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def make_image_folder(
    root: Path, counts: Sequence[int], *, test_per_class: int = 3, size: int = 32, seed: int = 0
) -> Path:
    """``root/{train,test}/<class>/*.jpg``: noisy images of a colour per class."""
    rng = np.random.RandomState(seed)
    colours = rng.randint(40, 216, (len(counts), 3))
    for split in ("train", "test"):
        for label, count in enumerate(counts):
            folder = root / split / f"class_{label:03d}"
            folder.mkdir(parents=True)
            for i in range(count if split == "train" else test_per_class):
                noise = rng.randint(-40, 40, (size, size, 3))
                pixels = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:04d}.jpg")
    return root


def environment(**extra: str) -> dict[str, str]:
    """One thread, no launcher variables: a fresh shell of a small machine."""
    launcher = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    env = {key: value for key, value in os.environ.items() if key not in launcher}
    return {**env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def free_port() -> str:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(
    command: Sequence[str | Path], cwd: Path, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess:
    """Run ``python COMMAND`` in ``cwd`` and capture its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _fork(command: Sequence[str | Path], cwd: Path, stdout: int, stderr: int, **env: str) -> int:
    """Run the program ``command[0]`` in a forked process, where torch is imported already.

    A process of its own, killed like any other, that starts in no time. Returns its id.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(env)
        os.chdir(cwd)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.argv = [str(part) for part in command]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_after_lines(
    command: Sequence[str | Path], cwd: Path, lines: int, containing: str = ""
) -> bool:
    """Start a program, kill -9 it after so many lines of its output; False if it ended first.

    Only lines that hold ``containing`` count.
    """
    read, write = os.pipe()
    pid = _fork(command, cwd, write, write)
    os.close(write)
    with open(read) as output:
        counted = (line for line in output if containing in line)
        for count, _ in enumerate(counted, start=1):
            if count == lines:
                break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def run_forked(command: Sequence[str | Path], cwd: Path, processes: int = 1) -> str:
    """Run a program to its end in forked processes; returns its output, fails with its errors.

    More than one process find the variables that torchrun would set.
    """
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    launcher |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        pids = [
            _fork(
                command,
                cwd,
                output.fileno(),
                errors.fileno(),
                **({**launcher, "RANK": str(i), "LOCAL_RANK": str(i)} if processes > 1 else {}),
            )
            for i in range(processes)
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        errors.seek(0)
        assert codes == [0] * processes, errors.read()
        output.seek(0)
        return output.read()


def run_with_kills(
    command: Sequence[str | Path], cwd: Path, *, kills: int, max_lines: int, seed: int
) -> None:
    """Kill a run several times at random lines of its output, resuming with ``--resume auto``.

    ``command[0]`` is the program's file. Choose ``max_lines`` below the lines of a whole run.
    """
    rng = random.Random(seed)
    command = [*command, "--resume", "auto"]
    killed = sum(
        kill_after_lines(command, cwd, rng.randint(max_lines // 4, max_lines)) for _ in range(kills)
    )
    assert killed, "the run ended before it could be killed: lower max_lines"
    run_forked(command, cwd)


def assert_same_weights(first: Path, second: Path, key: str = "state_dict") -> None:
    """Two checkpoints hold bit for bit the same tensors under ``key``."""
    a, b = (torch.load(path, weights_only=True)[key] for path in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
