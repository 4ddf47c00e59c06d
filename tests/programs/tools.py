"""What the end-to-end tests share: made-up data, real command lines, kills."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from typing import NoReturn

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401 - here, once for all the forked programs
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300  # seconds, of one program


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


def readme_commands(readme: Path, start: str) -> list[list[str]]:
    """The words behind ``python PROGRAM`` of the README's lines that start so."""
    lines = readme.read_text().splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith(start)]


def environment(**extra: str) -> dict[str, str]:
    """One thread, no launcher variables: a fresh shell of a small machine."""
    launcher = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    env = {key: value for key, value in os.environ.items() if key not in launcher}
    return {**env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


_ports = itertools.count()


def free_port() -> str:
    """A port of this machine that nothing listens on.

    It is let go before it is used. So that no other gets it meanwhile, each process of pytest has
    fifty of its own, below those that a system gives to whoever asks for any.
    """
    while True:
        port = 10_000 + os.getpid() % 400 * 50 + next(_ports) % 50
        with socket.socket() as probe, contextlib.suppress(OSError):  # in use
            probe.bind(("127.0.0.1", port))
            return str(port)


def run_fresh(command: Sequence[str | Path], cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run ``python COMMAND`` in ``cwd`` as a shell does and capture its output as text.

    A new interpreter imports torch and torchvision for seconds: ``run`` does without.
    """
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Where a shell would see it; pytest keeps warnings to itself."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _become(command: Sequence[str | Path], cwd: Path, out: int, err: int, env: dict) -> NoReturn:
    """Turn this forked process into the program ``command[0]``."""
    code = 1
    try:
        os.environ.update(env)
        os.chdir(cwd)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.argv = [str(part) for part in command]
        warnings.showwarning = _show_warning
        warnings.simplefilter("ignore", DeprecationWarning)
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _start(
    command: Sequence[str | Path], cwd: Path, out: int, err: int, **env: str
) -> multiprocessing.Process:
    """Start a program in a forked process, where torch is imported already.

    A process of its own, killed like any other, that starts in no time.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_become, args=(command, cwd, out, err, env)
    )
    process.start()
    return process


def run_together(
    commands: Sequence[Sequence[str | Path]], cwd: Path, envs: Sequence[dict[str, str]]
) -> subprocess.CompletedProcess:
    """Run programs side by side in forked processes; their outputs and errors are one text each.

    The first that fails gives the exit code, and the others are killed; so are all that hang.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        running = [
            _start(command, cwd, output.fileno(), errors.fileno(), **env)
            for command, env in zip(commands, envs, strict=True)
        ]
        code = 0
        while running:
            ended = connection.wait([process.sentinel for process in running], TIMEOUT)
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                running.remove(process)
                code = code or process.exitcode
            if code or not ended:
                for process in running:
                    process.kill()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(commands, code, output.read(), errors.read())


def run(
    command: Sequence[str | Path], cwd: Path, processes: int = 1, **env: str
) -> subprocess.CompletedProcess:
    """Run the program ``command[0]`` to its end in forked processes and capture its output.

    More than one process find the variables that torchrun would set.
    """
    envs = [env]
    if processes > 1:
        launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        launcher |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        ranks = map(str, range(processes))
        envs = [{**env, **launcher, "RANK": rank, "LOCAL_RANK": rank} for rank in ranks]
    return run_together([command] * processes, cwd, envs)


def kill_after_lines(
    command: Sequence[str | Path], cwd: Path, lines: int, containing: str = ""
) -> bool:
    """Start a program, kill -9 it after so many lines of its output; False if it ended first.

    Only lines that hold ``containing`` count.
    """
    read, write = os.pipe()
    process = _start(command, cwd, write, write)
    os.close(write)
    with open(read) as output:
        before = []
        for line in output:
            before.append(line)
            if sum(containing in line for line in before) == lines:
                break
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "".join(before)
    return process.exitcode != 0


def run_to_the_end(command: Sequence[str | Path], cwd: Path, processes: int = 1) -> str:
    """Like ``run`` of a program that must succeed; returns its output."""
    done = run(command, cwd, processes)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    run_to_the_end(command, cwd)


def assert_same_weights(first: Path, second: Path, key: str = "state_dict") -> None:
    """Two checkpoints hold bit for bit the same tensors under ``key``."""
    a, b = (torch.load(path, weights_only=True)[key] for path in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
