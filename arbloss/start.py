"""How a run begins: its processes, its folder, and the checkpoint that it goes on from."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
from yacs.config import CfgNode

from arbloss import opts
from common.training import changes, checkpoint, launch, peers, restore
from common.training.errors import UsageError
from common.training.launch import Process
from datasets.data import Data

# Keys that `resume auto` lets differ: of where and how a run works, and two that say nothing.
PLACE_KEYS = changes.FREE_TO_CHANGE | {"name", "mode", "channels_last", "compile"}
LATEST, BEST = "current.pth.tar", "model_best.pth.tar"


def start_process(config: CfgNode, local_rank: int | None) -> tuple[Process, list[str]]:
    """Join the run's other processes, if any.

    The launcher's WORLD_SIZE counts. Without launcher, ``world_size``, ``rank`` and a ``dist_url``
    of the form tcp://HOST:PORT start the processes by hand, one on each machine.

    Returns: the process, and notes for the user.
    """
    notes = []
    env = os.environ
    if local_rank is not None:
        env.setdefault("LOCAL_RANK", str(local_rank))
    if "WORLD_SIZE" in env:
        if config.world_size not in (-1, peers.number("WORLD_SIZE")):
            notes.append(
                f"note: world_size {config.world_size} of the configuration gives way to the "
                f"launcher's {env['WORLD_SIZE']} processes; batch_size stays the total of a machine"
            )
    elif config.world_size > 1:
        address = urlsplit(config.dist_url)
        if config.rank >= 0 and address.scheme == "tcp" and address.port:
            env["MASTER_ADDR"], env["MASTER_PORT"] = address.hostname, str(address.port)
            env["WORLD_SIZE"], env["RANK"] = str(config.world_size), str(config.rank)
            env.setdefault("LOCAL_RANK", "0")
        else:
            notes.append(
                f"note: world_size {config.world_size}, but no launcher started this program: "
                "running as a single process"
            )
    backend = None if config.dist_backend == "nccl" else config.dist_backend
    process = launch.start(config.gpu, backend, flag="gpu")
    if not process.distributed and process.device.type == "cuda" and config.gpu is None:
        others = torch.cuda.device_count() - 1
        if others:
            notes.append(
                f"note: {others} more GPUs are idle; use them with "
                "python -m torch.distributed.launch --nproc_per_node N"
            )
    return process, notes


class RunFolder(NamedTuple):
    """Where a run writes and what it starts from.

    Attributes:
        path: of ``log_dir`` and ``model_dir``.
        resume: a checkpoint, or "". continues: it is of this stage, whose epochs go on.
        notes: for the user.
    """

    path: Path
    resume: str
    continues: bool
    notes: list[str]


def run_folder(cfg: str, config: CfgNode, stage: int, data: Data) -> RunFolder:
    """The folder of this run, found by process 0.

    A new run gets ``saved/<configuration>_<YYYYmmddHHMM>/`` under the working directory, or, if
    ``model_dir`` is absolute, the folder that it lies in. The ``current.pth.tar`` of an earlier run
    of this stage continues in that run's folder. ``resume auto`` is that of the newest run with
    these settings on the training images of ``data``, if there is one.
    """
    return launch.in_main(lambda: _run_folder(opts.stem(cfg), config, stage, data))


def _run_folder(stem: str, config: CfgNode, stage: int, data: Data) -> RunFolder:
    resume, notes = config.resume, []
    if resume == "auto":
        resume, notes = newest_run(stem, config, data)
        if stage == 2 and not resume:
            raise UsageError(
                "; ".join(["resume auto: no stage-2 run with these settings to continue", *notes])
                + "; give the stage-1 checkpoint"
            )
    folder, continues = None, False
    if resume:
        path = Path(resume).resolve()
        state = checkpoint.load(resume, "resume")
        if stage == 1 and "state_dict_lws_model" in state:
            raise UsageError(f"{path}: a checkpoint of stage 2; go on with train_stage2.py")
        continues = "optimizer" in state and ("state_dict_lws_model" in state) == (stage == 2)
        its_folder = folder_of(path, config.model_dir)
        if continues and path == (its_folder / config.model_dir / LATEST).resolve():
            folder = its_folder
    folder = folder or new_folder(stem, config.model_dir)
    return RunFolder(folder, resume, continues, notes)


def folder_of(latest: Path, model_dir: str) -> Path:
    """The folder of the run whose latest checkpoint is, or would be, ``latest``."""
    above = 1 if Path(model_dir).is_absolute() else len(Path(model_dir).parts)
    return latest.parents[min(above, len(latest.parents) - 1)]


def newest_run(stem: str, config: CfgNode, data: Data) -> tuple[str, list[str]]:
    """The checkpoint of the newest run with these settings, or "", and a note about a newer one.

    It has to be of the classes of ``data``, and of the training images, unless ``other_data``
    accepts others. An absolute ``model_dir`` holds one run, whatever it was made of: training
    refuses other data there.
    """
    only_run = Path(config.model_dir).is_absolute()
    if only_run:
        found = filter(Path.is_file, [Path(config.model_dir, LATEST)])
    else:
        found = Path("saved").glob(f"{stem}_{'[0-9]' * 12}*/{config.model_dir}/{LATEST}")
    notes = []
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        cure = f"; give resume {path} to go on with it"
        if changed := changed_settings(folder_of(path, config.model_dir), config):
            what = f"a run with other settings ({', '.join(changed)})"
        elif only_run:
            return str(path), notes
        else:
            state = checkpoint.load(path, "resume")
            restore.check_checkpoint(state, path, weights_alone=True)
            if of_other_classes(state, data.classes):
                what, cure = "a run of other classes, or in another order", ""
            elif not config.other_data and (changed := changed_training(state, data.facts)):
                what = f"a run on other training images (another {', '.join(changed)})"
                cure = f"; give resume {path} other_data True to go on with it"
            else:
                return str(path), notes
        notes = notes or [f"note: resume auto passes over {path}, {what}{cure}"]
    return "", notes


def of_other_classes(state: Mapping[str, object], classes: Sequence[str]) -> bool:
    """Whether ``check_classes`` refuses a checkpoint, which no setting accepts."""
    try:
        restore.check_classes(state, classes, "")
    except UsageError:
        return True
    return False


def changed_training(state: Mapping[str, object], facts: Mapping[str, object]) -> list[str]:
    """``changed_data`` of the training images between a checkpoint and ``facts``."""
    changed = changes.changed_data(state.get("run", {}).get("facts", {}), facts)
    return [key for key in changed if not key.startswith(("test_", "val_"))]


def changed_settings(folder: Path, config: CfgNode) -> list[str]:
    """``key old -> new`` of what the run in ``folder`` computes otherwise."""
    try:
        before = opts.load_config(folder / config.log_dir / "config.yaml")
    except UsageError:
        return ["it has no config.yaml to compare"]
    return changes.changed_settings(before, config, PLACE_KEYS)


def other_images(stage1: Mapping[str, object], facts: Mapping[str, object]) -> list[str]:
    """A note where stage 1 was trained on other images than those of ``facts``, stage 2's."""
    changed = changed_training(stage1, facts)
    if not changed:
        return []
    return [
        f"note: stage 1 was trained on other images (another {', '.join(changed)}); those that "
        "choose the best epoch, or test it, may be among them"
    ]


def score_to_beat(stage1: Mapping[str, object], data: Data) -> tuple[float, list[str]]:
    """What the best epoch of stage 2 has to beat, and a note where that is nothing.

    As in the original it is the best top-1 accuracy of stage 1, if that is of the same test images.
    """
    facts = stage1.get("run", {}).get("facts", {})
    if data.chosen_on != data.split:
        why = "validation images choose the best epoch of this stage"
    elif "val_set" in facts:
        why = f"stage 1 chose its best epoch on {facts['val_set']}"
    elif any(key.startswith("test_") for key in changes.changed_data(facts, data.facts)):
        why = "stage 1 was tested on other images"
    else:
        return float(stage1.get("best_acc1", 0.0)), []
    return 0.0, [f"note: {why}, so the best score of stage 1 is not the one to beat"]


def new_folder(stem: str, model_dir: str) -> Path:
    """``saved/<stem>_<YYYYmmddHHMM>``, numbered if another run has begun in this minute.

    The folder that ``model_dir`` lies in, if that is absolute.
    """
    if Path(model_dir).is_absolute():
        return Path(model_dir).parent
    first = Path("saved", f"{stem}_{time.strftime('%Y%m%d%H%M')}")
    others = (first.with_name(f"{first.name}-{again}") for again in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())
