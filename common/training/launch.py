"""Where a run happens: devices and processes. One process a GPU, on one machine or many."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from common.training import allocator, interrupt, output, peers
from common.training.errors import RESUME, RunError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process among all processes of the run."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    def say(self, text: object) -> None:
        """Print a line, in the one process that prints."""
        if self.is_main:
            print(text, flush=True)


# What the last line of a program says of the way to go on.
OF_A_TRAINING = re.compile(rf"[;.,] [aA] training [^;]*{re.escape(RESUME)}$")


def run(main: Callable[[Sequence[str] | None], object], *, trains: bool = True) -> None:
    """Run a program's ``main``. Exit code: 2 bad usage, 1 a run that cannot go on, 130 Ctrl-C.

    A program that never ``trains`` says nothing of a training to go on with, and a reader of its
    output that goes away (``| head``) ends it without a word, as other tools: exit code 141.
    """
    output.prepare()
    code = 1
    try:
        interrupt.from_now_on_raised()
        main(None)
    except UsageError as error:
        _say(error, trains)
        code = 2
    except RunError as error:
        _say(error, trains)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once
        _say(f"interrupted; a training goes on from its last checkpoint with {RESUME}", trains)
        code = 130
    except OSError as error:
        reason = _explain_refusal(error)
        if reason is None:
            raise
        if not trains and isinstance(error, BrokenPipeError):
            code = 141  # a shell's number for SIGPIPE
            peers.first_to_fail(error)  # the others stay silent, too
        else:
            _say(reason, trains)
    except (RuntimeError, ValueError, MemoryError) as error:
        reason = _explain(error)
        if reason is None:
            raise
        _say(reason, trains)
    else:
        code = 0
    finally:
        output.finish()
        with_gloo = dist.is_initialized() and dist.get_backend() == "gloo"
        peers.part(failed=code != 0)
    if with_gloo:
        _leave(code)
    if code:
        sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process without the interpreter's last clean-up.

    Gloo's threads outlive their group, and one that lets go of a tensor while the interpreter
    shuts down aborts the process ("terminate called without an active exception").
    """
    if multiprocessing.parent_process() is None:  # a forked child inherits its parent's handlers
        atexit._run_exitfuncs()
    output.finish()
    os._exit(code)


def _say(message: object, trains: bool) -> None:
    """Say why the run ends, unless another process has done so."""
    if peers.first_to_fail(message):
        name = os.path.basename(sys.argv[0]) or "python"
        if not trains:
            message = OF_A_TRAINING.sub("", str(message))
        with contextlib.suppress(OSError):
            print(f"{name}: error: {message}", file=sys.stderr, flush=True)
        if _spoken is not None:
            _spoken.set()


def _explain_refusal(error: OSError) -> str | None:
    """What the operating system refuses; None for a missing file, which is the program's to name,
    and for all that are no files.
    """
    if output.refused(error):
        return (
            f"the output cannot be written any more ({error.strerror}); a training goes on from "
            f"its last checkpoint with {RESUME}"
        )
    if isinstance(error, FileNotFoundError) or not isinstance(error.filename, (str, bytes)):
        return None
    return (
        f"{os.fsdecode(error.filename)}: {error.strerror}; fix that and start again, a training "
        f"with {RESUME}"
    )


def _explain(error: Exception) -> str | None:
    """What torch's errors mean that are no fault of the program; None for all others."""
    text = str(error)
    if text.startswith("DataLoader worker"):
        if str(error.__cause__).startswith("DataLoader worker"):  # which names the signal
            text = str(error.__cause__)
        how = text.rpartition(") ")[2].split(". ")[0].removeprefix("is ").rstrip(". ")
        why = (
            f"a worker process of the data loader died ({how}): out of memory, or of shared memory "
            "(/dev/shm)? Fewer workers need less"
        )
    elif isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate" in text:
        found = re.search(r"(tried|unable) to allocate [\d.]+ \w+", text.lower())
        amount = f" ({found[0]})" if found else ""
        on_a_gpu = " or loader workers" if isinstance(error, torch.OutOfMemoryError) else ""
        why = (
            f"out of memory{amount}: a smaller batch needs less, and where all images are held in "
            f"memory a smaller image_size (of a new run){on_a_gpu}"
        )
    elif "Expected more than 1 value per channel" in text:
        return (
            "batch norm has a single value per channel in a process: it needs a larger batch, or "
            "images so large that the last features are more than one pixel"
        )
    else:
        why = peers.explain(error)
    return why and f"{why}. A training goes on from its last checkpoint with {RESUME}"


def start(
    gpu: int | None = None,
    backend: str | None = None,
    *,
    use_cuda: bool = True,
    flag: str = "--gpu",
) -> Process:
    """Choose the device and, where a launcher started us, join the other processes.

    Under ``torchrun`` or ``torch.distributed.launch`` (``WORLD_SIZE`` is set) each process takes
    the GPU of its local rank, or the only one that it sees, or the CPU with gloo where there is
    none. Otherwise ``gpu`` is the GPU to use; None means the first GPU, or the CPU where there is
    none. ``backend`` replaces NCCL on GPUs; without ``use_cuda`` everything runs on the CPU.
    ``flag`` is where ``gpu`` came from. On the CPU, memory is kept from now on (see ``allocator``).

    Raises:
        UsageError: no such GPU, fewer GPUs than processes, or impossible or missing variables of
            the launcher.
        RunError: a process has not come (see ``peers``).
    """
    process = _join(gpu, backend, use_cuda, flag)
    if process.device.type == "cpu":
        allocator.keep_freed_memory()
    return process


def _join(gpu: int | None, backend: str | None, use_cuda: bool, flag: str) -> Process:
    if not ("WORLD_SIZE" in os.environ and "RANK" in os.environ):
        return Process(_pick_device(gpu, flag) if use_cuda else torch.device("cpu"))
    rank, world_size = peers.number("RANK"), peers.number("WORLD_SIZE")
    local_rank, local_world_size = peers.number("LOCAL_RANK"), peers.number("LOCAL_WORLD_SIZE", 1)
    if gpu not in (None, local_rank) and rank == 0:
        print(f"note: {flag} {gpu}: a launcher gives each process its own GPU", flush=True)
    gpus = torch.cuda.device_count() if use_cuda else 0
    device = torch.device("cpu")
    if gpus:
        if gpus > 1 and world_size > 1 and "LOCAL_RANK" not in os.environ:
            raise UsageError(
                f"WORLD_SIZE {world_size}, but no LOCAL_RANK, by which a process takes one of the "
                f"{gpus} GPUs: start with torchrun, or set LOCAL_RANK and LOCAL_WORLD_SIZE (with "
                "srun to $SLURM_LOCALID and $SLURM_NTASKS_PER_NODE)"
            )
        device = torch.device("cuda", _own_gpu(gpus, local_rank, local_world_size))
        torch.cuda.set_device(device)
    if world_size > 1 and not dist.is_initialized():
        peers.meet((backend or "nccl") if gpus else "gloo", rank, world_size)
    return Process(device, rank, world_size, local_rank, local_world_size)


def _own_gpu(gpus: int, local_rank: int, local_world_size: int) -> int:
    """The GPU of a launched process, among ``gpus`` that it sees."""
    if not 0 <= local_rank < local_world_size:  # a program would take each process for a machine
        raise peers.NoGpu(
            f"LOCAL_RANK {local_rank}, but LOCAL_WORLD_SIZE {local_world_size}: set it to the "
            "number of processes of a machine (with srun to $SLURM_NTASKS_PER_NODE)"
        )
    if gpus == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0  # Slurm's --gpus-per-task=1 shows each process its own alone
    if gpus < local_world_size:
        raise UsageError(
            f"{local_world_size} processes on a machine with {gpus} GPUs: start at most {gpus}, or "
            "all of them on the CPU with CUDA_VISIBLE_DEVICES="
        )
    return local_rank


def _pick_device(gpu: int | None, flag: str) -> torch.device:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus and gpu in (None, 0):  # the papers' commands say --gpu 0
        if gpu == 0:
            print(f"note: {flag} 0: no CUDA device here, running on the CPU", flush=True)
        return torch.device("cpu")
    if gpu is not None and not 0 <= gpu < gpus:
        here = f"GPUs 0 to {gpus - 1}" if gpus else f"no GPU; leave {flag} out to use the CPU"
        raise UsageError(f"{flag} {gpu}: this machine has {here}")
    device = torch.device("cuda", gpu or 0)
    torch.cuda.set_device(device)
    return device


def fan_out(
    main: Callable[[Sequence[str] | None], object],
    argv: Sequence[str] | None,
    gpu: int | None = None,
    processes: int | None = None,
    per_machine: bool = False,
) -> bool:
    """Run ``main(argv)`` once per visible GPU, as DataParallel users expect of one command.

    Does nothing and returns False inside a launched process, with ``gpu`` given, or with fewer
    than two GPUs; otherwise returns True when all processes are done, so the caller returns too.
    ``processes`` overrides the number of GPUs (two processes on a CPU, say). ``per_machine``: a
    launcher that started one process on this machine counts machines in ``WORLD_SIZE`` and
    ``RANK``, and the GPUs of each are fanned out to.
    """
    launched = "WORLD_SIZE" in os.environ
    alone = launched and peers.number("LOCAL_WORLD_SIZE", 1) == 1
    if gpu is not None or (launched and not (per_machine and alone)):
        return False
    processes = processes or torch.cuda.device_count()
    if processes < 2:
        return False
    argv = list(sys.argv[1:] if argv is None else argv)
    if launched:
        machines, machine = peers.number("WORLD_SIZE"), peers.number("RANK")
        peers.require_place(machines)
        address, port = os.environ["MASTER_ADDR"], peers.number("MASTER_PORT")
    else:
        machines, machine, address = 1, 0, "127.0.0.1"
        with socket.socket() as probe:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
    place = (machines, machine, processes, address, port)
    spoken = torch.multiprocessing.get_context("spawn").Event()
    # It would report each process that it ends after one has failed.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        torch.multiprocessing.spawn(_child, (main, argv, place, spoken), nprocs=processes)
    except torch.multiprocessing.ProcessExitedException as error:
        if not spoken.is_set():
            why = "out of memory"
            if error.signal_name == "SIGABRT":  # by NCCL's watchdog, which raises nothing
                why = f"another process did not answer for {peers.minutes()}"
            raise RunError(
                f"{error} (of {processes}): {why}? A training goes on from its last checkpoint "
                f"with {RESUME}"
            ) from None
        sys.exit(max(error.exit_code, 1))
    return True


# Of a process that was fanned out to: whether any of them has said why the run ends.
_spoken: Event | None = None


def _child(
    local_rank: int,
    main: Callable,
    argv: list[str],
    place: tuple[int, int, int, str, int],
    spoken: Event,
) -> None:
    global _spoken
    _spoken = spoken
    machines, machine, processes, address, port = place
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        WORLD_SIZE=str(machines * processes),
        LOCAL_WORLD_SIZE=str(processes),
        RANK=str(machine * processes + local_rank),
        LOCAL_RANK=str(local_rank),
    )
    run(lambda _: main(argv))


def distribute(model: nn.Module, process: Process, **ddp_options: object) -> nn.Module:
    """Move a model to the process's device and, with several processes, wrap it for DDP.

    DDP adds up the gradients of a process's first step in another order than those of the later
    ones, in which it knows in what order they come; from three processes on that rounds otherwise.
    With ``find_unused_parameters`` it does not.
    """
    model = model.to(process.device)
    if not process.distributed:
        return model
    device_ids = [process.device.index] if process.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Its new name means something else, and torch before 2.14 does not know it.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return nn.parallel.DistributedDataParallel(model, device_ids=device_ids, **ddp_options)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without its DDP wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@torch.no_grad()
def sync_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers (batch-norm statistics): all evaluate one model."""
    if dist.is_initialized():
        for buffer in unwrap(model).buffers():
            dist.broadcast(buffer, src=0)


def all_reduce_sum(*tensors: torch.Tensor) -> None:
    """Add tensors over all processes, in place; nothing to do in a single process."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def smallest(value: int) -> int:
    """The smallest of all processes' values, in every process."""
    if not dist.is_initialized():
        return value
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return min(values)


def broadcast_object(value: object) -> object:
    """Rank 0's value, in every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def in_main(action: Callable[[], T]) -> T:
    """Do something in process 0; the others wait for it, and a ``UsageError`` ends all of them.

    Returns: what it returned, in every process.
    """
    message = value = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            value = action()
        except UsageError as error:
            message = str(error)
    message, value = broadcast_object((message, value))
    if message is not None:
        raise UsageError(message)
    return value


def say_download(url: str, path: Path) -> None:
    """Print what is fetched, and what to do if that takes longer than other processes wait."""
    waited_for = ""
    if dist.is_initialized():
        waited_for = "; should the other processes give up waiting, fetch it with one process first"
    print(f"downloading {url} to {path}{waited_for}", flush=True)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        on_gpus = dist.get_backend() == "nccl"  # which warns if it is not told the GPU
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpus else None)
