"""What the programs share around the training: processes, run folder, checkpoints, records."""

from __future__ import annotations

import itertools
import os
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pprint import pformat
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from arbloss import opts
from arbloss.data import ListData, Loader, load_data, make_loaders, transform
from arbloss.engine import (
    Say,
    evaluate,
    forward_pass,
    log_line,
    result_lines,
    results,
    train_one_epoch,
)
from arbloss.models import Network
from arbloss.reliability import draw_reliability_diagram
from common.evaluation import Tally
from common.training import checkpoint, launch, precision, restore, seeds, speed
from common.training.errors import UsageError
from common.training.launch import Process
from common.training.logs import write_text
from common.training.record import Record
from common.training.report import SCORES
from common.training.speed import Forward
from datasets.long_tail import LongTailed

# Keys that say where and how a run works, not what it computes: `resume auto` lets them differ.
PLACE_KEYS = {
    "resume", "print_freq", "workers", "data_path", "list_path", "gpu", "world_size", "rank",
    "dist_url", "dist_backend", "distributed", "multiprocessing_distributed", "channels_last",
    "compile", "overwrite", "other_data",
}  # fmt: skip
LATEST, BEST = "current.pth.tar", "model_best.pth.tar"
PARTS = ("model", "classifier", "block", "lws_model")  # checkpoint keys state_dict_<part>


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
        if config.world_size not in (-1, int(env["WORLD_SIZE"])):
            notes.append(
                f"note: world_size {config.world_size} of the configuration gives way to the "
                f"launcher's {env['WORLD_SIZE']} processes; batch_size stays the total of a machine"
            )
    elif config.world_size > 1:
        address = urlsplit(config.dist_url)
        if config.rank >= 0 and address.scheme == "tcp" and address.port:
            env["MASTER_ADDR"], env["MASTER_PORT"] = address.hostname, str(address.port)
            env["WORLD_SIZE"], env["RANK"] = str(config.world_size), str(config.rank)
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


def run_folder(cfg: str, config: CfgNode, stage: int) -> tuple[Path, str, bool, list[str]]:
    """The folder of this run, the checkpoint to start from, whether it continues a run, and notes.

    A new run gets ``saved/<configuration>_<YYYYmmddHHMM>/`` under the working directory, or, if
    ``model_dir`` is absolute, the folder that it lies in. The ``current.pth.tar`` of an earlier run
    of this stage continues in that run's folder. ``resume auto`` is that of the newest run with
    these settings, if there is one. The same in every process.
    """
    stem = opts.stem(cfg)
    resume, notes = config.resume, []
    if resume == "auto":
        resume, notes = newest_run(stem, config)
        if stage == 2 and not resume:
            raise UsageError(
                "; ".join(["resume auto: no stage-2 run with these settings to continue", *notes])
                + "; give the stage-1 checkpoint"
            )
    folder, continues = None, False
    if resume:
        path = checkpoint.find(resume, "").resolve()
        state = checkpoint.load(path, "resume")
        if stage == 1 and "state_dict_lws_model" in state:
            raise UsageError(f"{path}: a checkpoint of stage 2; go on with train_stage2.py")
        continues = "optimizer" in state and ("state_dict_lws_model" in state) == (stage == 2)
        its_folder = folder_of(path, config.model_dir)
        if continues and path == (its_folder / config.model_dir / LATEST).resolve():
            folder = its_folder
    folder = folder or new_folder(stem, config.model_dir)
    return launch.broadcast_object((folder, resume, continues, notes))


def folder_of(latest: Path, model_dir: str) -> Path:
    """The folder of the run whose latest checkpoint is, or would be, ``latest``."""
    above = 1 if Path(model_dir).is_absolute() else len(Path(model_dir).parts)
    return latest.parents[min(above, len(latest.parents) - 1)]


def newest_run(stem: str, config: CfgNode) -> tuple[str, list[str]]:
    """The checkpoint of the newest run with these settings, or "", and a note about a newer one."""
    if Path(config.model_dir).is_absolute():
        found = filter(Path.is_file, [Path(config.model_dir, LATEST)])
    else:
        found = Path("saved").glob(f"{stem}_{'[0-9]' * 12}*/{config.model_dir}/{LATEST}")
    notes = []
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        changed = changed_settings(folder_of(path, config.model_dir), config)
        if not changed:
            return str(path), notes
        notes = notes or [
            f"note: resume auto passes over {path}, a run with other settings "
            f"({', '.join(changed)}); give resume {path} to go on with it"
        ]
    return "", notes


def changed_settings(folder: Path, config: CfgNode) -> list[str]:
    """``key old -> new`` of what the run in ``folder`` computes otherwise."""
    try:
        before = opts.load_config(folder / config.log_dir / "config.yaml")
    except UsageError:
        return ["it has no config.yaml to compare"]
    return [
        f"{key} {before[key]} -> {value}"
        for key, value in config.items()
        if before[key] != value and key not in PLACE_KEYS
    ]


def new_folder(stem: str, model_dir: str) -> Path:
    """``saved/<stem>_<YYYYmmddHHMM>``, numbered if another run has begun in this minute."""
    if Path(model_dir).is_absolute():
        return Path(model_dir).parent
    first = Path("saved", f"{stem}_{time.strftime('%Y%m%d%H%M')}")
    others = (first.with_name(f"{first.name}-{again}") for again in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())


@dataclass
class Run:
    """A run that is ready to train: what both stages set up in the same way.

    Attributes:
        stage1: the checkpoint of stage 1 that a new stage 2 starts from, else None.
        say: shows a line and appends it to the log.
        its_ece: the calibration error of the best epoch so far, in percent.
        tally: the last evaluation.
    """

    config: CfgNode
    process: Process
    data: LongTailed | ListData
    train_loader: Loader
    val_loader: Loader
    test_loader: Loader
    record: Record
    resumed: bool
    stage1: dict | None
    seed: int
    say: Say
    forward: Forward
    memory_format: torch.memory_format
    its_ece: float = 100.0
    tally: Tally | None = None


def start(args: Namespace, config: CfgNode, stage: int) -> Run:
    """Join the other processes, read the data, open the run folder, and write down what runs."""
    notes = opts.check(config, stage)
    process, more_notes = start_process(config, args.local_rank)
    channels_last = speed.use_channels_last(config.channels_last, process.device, config.amp)
    memory_format = speed.memory_format(channels_last)
    data = load_data(config)

    folder, resume, continues, resume_notes = run_folder(args.cfg, config, stage)
    log_name = f"{opts.stem(args.cfg)}.txt"
    record = Record(
        folder / config.log_dir,
        folder / config.model_dir,
        process,
        {**config, "channels_last": channels_last},
        data.facts,
        latest=LATEST,
        best=BEST,
        text_logs=(log_name,),
        about=about(config, data, stage),
        split=data.split,
        chosen_on=data.chosen_on,
        dashes="",
    )
    stage1 = None
    if stage == 2 and not continues:  # the history and the epochs of stage 1 are not this run's
        record.claim("")
        stage1 = state = checkpoint.load(resume, "resume")
        if data.chosen_on == data.split:
            record.best_score = float(state["best_acc1"])
    else:
        state = record.resume(resume, config.num_epochs)

    wanted = 0 if config.seed is None and config.deterministic else config.seed
    seed = seeds.choose_seed(record.seed if wanted is None else wanted)
    seeds.set_kernels(process.device, deterministic=wanted is not None)
    machines = process.world_size // process.local_world_size
    batch_size = config.batch_size * machines  # the key is the total of a machine
    train_loader, val_loader, test_loader = make_loaders(
        data,
        config,
        batch_size=batch_size,
        seed=seed,
        process=process,
        memory_format=memory_format,
        balanced=stage == 2 and not config.train_stage2_instance,
    )
    record.open(seed)
    say = partial(log_line, record.log[log_name], process)
    if process.is_main:
        write_text(record.log_dir / "config.yaml", config.dump())
    say("\n" + pformat(vars(args)))
    say("\n" + str(config))
    for note in (*notes, *more_notes, *resume_notes, *data.notes):
        say(note)
    if process.device.type == "cpu":
        say("using CPU, this will be slow")
    else:
        say(f"Use GPU: {process.device.index} for training")
    run = Run(
        config=config,
        process=process,
        data=data,
        train_loader=train_loader,
        val_loader=val_loader,
        test_loader=test_loader,
        record=record,
        resumed=state is not None,
        stage1=stage1,
        seed=seed,
        say=say,
        forward=speed.compiled(forward_pass, config.compile, process, train_loader.full_batch),
        memory_format=memory_format,
    )
    if state is not None:
        run.its_ece = float(state.get("its_ece", run.its_ece))
    return run


def about(config: CfgNode, data: LongTailed | ListData, stage: int) -> dict[str, object]:
    """What is trained, for the report and the checkpoints: see ``Record``."""
    if stage == 1:  # as build_criterion chooses
        names, other = {"LAS": "LAS", "arbloss": "ARB-Loss"}, "CE"
    else:
        names = {"arbloss": "ARB-Loss", "arbloss_fl": "ARB-Focal", "warbloss": "WARB-Loss"}
        other = "LAS"
    loss = next((name for key, name in names.items() if config[key]), other)
    with_mixup = f"{loss} with mixup" if config.mixup else loss
    return {
        "program": f"arbloss/train_stage{stage}.py",
        "method": with_mixup if stage == 1 else f"stage 2 by {with_mixup}",
        "data": data.name,
        "network": {
            "arch": config.backbone,
            "num_classes": config.num_classes,
            "places": config.dataset == "places",
            "stage": stage,
        },
        "transform": transform(config, data),
        "classes": data.classes,
        "cls_num_list": data.cls_num_list,
    }


def parts(network: Network) -> dict[str, nn.Module]:
    """The modules of a network under the names that checkpoints give them."""
    return {
        f"state_dict_{name}": module
        for name in PARTS
        if (module := getattr(network, name)) is not None
    }


def load_parts(network: Network, state: Mapping[str, object], source: str) -> None:
    """Load every part's weights; a weight scaling that the file lacks keeps its ones.

    Raises:
        UsageError: another part is missing, or it belongs to another architecture.
    """
    for key, module in parts(network).items():
        if key in state:
            restore.load_weights(module, state[key], source)
        elif key != "state_dict_lws_model":
            raise UsageError(f"{source}: has no {key!r}, not a checkpoint of this configuration")


def place(run: Run, network: Network) -> nn.Module:
    """Give a new stage 2 the weights of stage 1, move the network to its device, wrap it."""
    if run.stage1 is not None:
        load_parts(network, run.stage1, f"resume {run.config.resume}")
    network = network.to(memory_format=run.memory_format)
    return launch.distribute(network, run.process)


def build_optimizer(
    run: Run, network: nn.Module, *modules: nn.Module
) -> tuple[torch.optim.SGD, torch.amp.GradScaler]:
    """SGD with a parameter group per module, weight decay on everything as in the original.

    Network, optimiser and scaler get the state of the checkpoint that the run goes on from.
    """
    config = run.config
    optimizer = torch.optim.SGD(
        [{"params": module.parameters()} for module in modules],
        config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    scaler = precision.grad_scaler(run.process.device, config.amp)
    run.record.restore(
        parts(launch.unwrap(network)),
        optimizer,
        scaler,
        optional={"optimizer": "it holds no momentum, it starts at 0"},  # the original's
    )
    return optimizer, scaler


def run_epoch(
    run: Run,
    network: nn.Module,
    criterion: nn.Module,
    count: Callable[[Tensor], Tensor] | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    epoch: int,
) -> None:
    """Train an epoch, evaluate, log, and write the checkpoint."""
    config, process, record = run.config, run.process, run.record
    start = time.perf_counter()
    seeds.seed_everything(run.seed, "training", epoch)
    run.train_loader.set_epoch(epoch)
    row = {"epoch": epoch, "lr": optimizer.param_groups[-1]["lr"]}
    means, norms = train_one_epoch(
        network, run.train_loader, criterion, count, optimizer, scaler, epoch, config, process,
        run.say, run.forward,
    )  # fmt: skip
    row |= means
    seconds = time.perf_counter() - start - speed.compile_seconds(process)
    row["images_per_s"] = len(run.data.train.targets) / seconds
    run.tally = evaluate(network, run.val_loader, config, process, run.say)
    row |= results(run.tally, run.data.cls_num_list, config)
    row["epoch_s"] = time.perf_counter() - start

    if norms is not None:
        row |= _gradient_norms(run, norms, epoch)
    for line in result_lines(row, run.tally, run.data.cls_num_list, config):
        run.say(line)
    best_acc1 = max(row[record.score], record.best_score)
    if record.is_best(row):
        run.its_ece = row["ece"]
    score = "Prec@1" if record.score == "top1" else SCORES[record.score]
    run.say(f"Best {score}: {best_acc1:.3f}% ECE: {run.its_ece:.3f}%\n")
    if record.writer is not None:
        for tag in ("lr", "train_loss", "train_top1", "loss", "top1", "ece"):
            record.writer.add_scalar(tag, row[tag], epoch)
    best_acc1 = torch.tensor(best_acc1, dtype=torch.float64)
    record.end_epoch(row, best_acc1=best_acc1, its_ece=run.its_ece)


def _gradient_norms(run: Run, norms: Tensor, epoch: int) -> dict[str, float]:
    """Write the matrix of the diagnostic; its mean attraction and repulsion for the log."""
    diagonal = norms.diagonal()
    others = norms.numel() - len(diagonal)
    if run.process.is_main:
        path = run.record.log_dir / f"gradient_norms_{epoch:03d}.npy"
        with checkpoint.atomic_file(path) as file:
            np.save(file, norms.cpu().numpy())
    attraction = float(diagonal.mean())
    repulsion = float((norms.sum() - diagonal.sum()) / max(others, 1))
    run.say(f"mean gradient norm: attraction {attraction:.6f} repulsion {repulsion:.6f}")
    return {"attraction": attraction, "repulsion": repulsion}


def finish(run: Run, network: nn.Module) -> dict | None:
    """Write the report and the reliability diagram; returns the last epoch's figures."""
    process, record, data = run.process, run.record, run.data

    def test(_: int) -> Tally:
        """Evaluate on the test set, whatever the epoch; the log has the last epoch's lines."""
        run.tally = evaluate(
            network, run.test_loader, run.config, process, lambda text, *_: process.say(text)
        )
        return run.tally

    last = record.finish(
        run.tally,
        test,
        figures=lambda tally: results(tally, data.cls_num_list, run.config),
        files=getattr(data.test, "files", None),
    )
    for loader in (run.train_loader, run.val_loader, run.test_loader):
        loader.close()
    if run.tally is not None and process.is_main:
        which = "last" if data.chosen_on == data.split else "best"
        draw_reliability_diagram(
            run.tally.bins, record.log_dir / "reliability.png", f"Reliability, {which} epoch"
        )
    return last
