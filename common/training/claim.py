"""Whether a run may write into its folders: not while another one does, nor over its results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from common.training import checkpoint, launch, peers, restore
from common.training.errors import UsageError
from common.training.files import Files
from common.training.flags import spelled

# How often torchrun or Slurm has started this command anew, and its id. torchrun's may be "none",
# as that of others, unless --rdzv_id gives it one: with --master_port, say.
LAUNCHERS = {
    "TORCHELASTIC_RESTART_COUNT": "TORCHELASTIC_RUN_ID",
    "SLURM_RESTART_COUNT": "SLURM_JOB_ID",
}
STARTS = ("resume", "weights", "path_t")  # settings that name a checkpoint to begin with


def claim(
    files: Files, settings: Mapping[str, object], flag: str, dashes: str = "--"
) -> list[TextIO]:
    """Lock the folders of a run until the returned files are closed.

    With ``--resume`` of a file in these folders, or ``auto``, the run in them may go on; with
    ``--overwrite`` it may be replaced, which happens later, as it does with ``auto`` and a run that
    was killed in its first epoch.

    Args:
        settings: the flags of the run. flag: ``--resume``. dashes: see ``spelled``.

    Raises:
        UsageError: they cannot be written, another process writes them, or they hold a run, with
            ``auto`` one that has lost its latest checkpoint; or the file with which this run
            begins, which would be removed; or, with ``--overwrite``, a launcher that repeats its
            commands has made the run that they hold.
    """
    own = flag == "auto" or (flag and files.has(Path(flag)))
    overwrite = settings.get("overwrite")
    if overwrite and own:
        raise UsageError(
            f"{spelled('overwrite', dashes)} with {spelled('resume', dashes, flag)}: start again "
            "or go on, leave one of them out"
        )
    begins = flag == "auto" and not files.latest.is_file()
    locks = []

    def lock() -> None:
        if overwrite or begins:
            _refuse_to_remove_its_start(files, settings, dashes)
        locks.extend(files.lock())
        if overwrite:
            _refuse_to_repeat(files, dashes)
        if not (own or overwrite):
            refuse_a_run(files, dashes)
        if begins and files.hold_more_than_an_epoch():
            raise UsageError(
                f"{spelled('resume', dashes, 'auto')}: {files.latest} is not there, and the rest "
                "of its run would be removed; put it back, go on with another of its checkpoints, "
                f"begin again with {spelled('overwrite', dashes)} instead, or give this run "
                "another folder"
            )

    launch.in_main(lock)
    return locks


def launchers() -> list[str]:
    """``VARIABLE ID`` of each launcher that has started this process."""
    return [f"{name} {os.environ[name]}" for name in LAUNCHERS.values() if name in os.environ]


def refuse_a_run(files: Files, dashes: str) -> None:
    """Refuse folders that hold a run.

    Raises:
        UsageError: they do; says what to do about it.
    """
    if files.hold_a_run():
        raise UsageError(
            f"{files.model_dir}: holds a run already; go on with "
            f"{spelled('resume', dashes, 'auto')}, replace it with "
            f"{spelled('overwrite', dashes)}, or give this run another folder"
        )


def _refuse_to_remove_its_start(files: Files, settings: Mapping[str, object], dashes: str) -> None:
    own = {file.resolve() for file in files.weights()}
    for name in STARTS:
        path = settings.get(name)
        if path and Path(path).resolve() in own:
            raise UsageError(
                f"{spelled(name, dashes, path)}: this run begins with a file that it would remove; "
                "copy it elsewhere, or give the run another folder"
            )


def _refuse_to_repeat(files: Files, dashes: str) -> None:
    counts = [count for count in LAUNCHERS if peers.number(count)]
    if not counts or not files.latest.is_file():
        return
    its: list[str] = []
    with contextlib.suppress(UsageError):  # a damaged checkpoint is replaced as well
        state = checkpoint.load(files.latest)
        restore.check_checkpoint(state, files.latest, weights_alone=True)
        its = state.get("run", {}).get("launchers", [])
    for count in counts:
        name = LAUNCHERS[count]
        id_ = os.environ.get(name)
        if f"{name} {id_}" in its:
            raise UsageError(
                f"{spelled('overwrite', dashes)}: {count} is {os.environ[count]}, and "
                f"{files.model_dir} holds a run of the same {name}, {id_}: if the launcher repeats "
                "this command, what its first start wrote would be removed; go on with "
                f"{spelled('resume', dashes, 'auto')}, or remove that folder to begin again"
            )
