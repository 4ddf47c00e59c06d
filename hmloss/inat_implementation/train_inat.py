#!/usr/bin/env python
"""Hard mining loss on iNaturalist 2018, or any data set given by list files or folders.

    python train_inat.py --loss_type 'HML' --delta 10000
    python train_inat.py --dataset imagefolder --root DIR --weighting_type CS --pretrained

200 epochs of ResNet-50 from scratch on 437,513 images of 8,142 classes. The authors published
neither this program nor its settings: all but the loss is inferred from their other two programs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from common.training import launch, seeds, speed
from common.training.files import Files
from common.training.record import Record
from common.training.selection import Selection, full
from datasets.assembly import evaluation_loaders
from datasets.loaders import WorkersLoader
from hmloss import flags, repeats
from hmloss.engine import EVALUATION_BATCH
from hmloss.inat_implementation import opts
from hmloss.inat_implementation.data import eval_transform, load_data
from hmloss.trainer import train_run


def main(argv: Sequence[str] | None = None) -> list[dict] | None:
    """Run the program; returns a row of figures per run (None if child processes did the work)."""
    args, schedule = opts.parse_args(argv)
    if launch.fan_out(main, argv, args.gpu):
        return None
    process = launch.start(args.gpu)
    for note in flags.notes(args, schedule):
        process.say(note)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)

    # Data: the lists, or the folders, as they are.
    data = load_data(args)
    for note in data.notes:
        process.say(note)
    images = f"{len(data.train)} training and {len(data.test)} {full(data.split)} images"
    process.say(f"{images}, {len(data.classes)} classes")
    args.cls_num_list = data.cls_num_list

    names = [opts.run_name(args, run) for run in range(args.num_runs)]
    history, models = Path(args.path_history), Path(args.path_model)
    latest = [models / name / "ckpt.pth.tar" for name in names]
    if args.evaluate:
        for note in repeats.left_out(args.resume, latest):
            process.say(note)
        names, latest = names[:1], latest[:1]
    resume = repeats.resume_flags(args.resume, latest)
    logs = ("train_history.csv", "test_history.csv")
    files = [Files(history / name, models / name, text_logs=logs) for name in names]
    if not args.evaluate:
        summary = history / f"{opts.store_name(args)}_summary.csv"
        claims = repeats.claim(files, resume, args, process, [summary])  # noqa: F841 (kept)
    first_seed = None
    rows = []
    for run, name in enumerate(names):
        args.store_name, args.resume = name, resume[run]
        record = Record(
            files[run],
            process,
            vars(args),
            data.facts,
            about=flags.about(
                args,
                "hmloss/inat_implementation/train_inat.py",
                data,
                eval_transform(args),
            ),
            selection=Selection(data.split, data.chosen_on),
        )
        record.resume(args.resume, args.epochs, claimed=True)
        seed = repeats.run_seed(run, user=args.seed, recorded=record.seed, first=first_seed)
        first_seed = seed - run
        shared = {
            "workers": args.workers, "seed": seed, "process": process,
            "memory_format": speed.memory_format(args.channels_last),
        }  # fmt: skip
        train_loader = WorkersLoader(data.train, args.batch_size, **shared)
        loaders = train_loader, *evaluation_loaders(data, EVALUATION_BATCH, **shared)
        figures = train_run(args, schedule, record, seed, data, loaders)
        if args.evaluate:
            return [figures]
        rows.append({"run": run, "seed": seed, **figures})
        if process.is_main:
            repeats.write_summary(summary, rows)
    process.say(repeats.summary_line(rows, repeats.COLUMNS))
    return rows


if __name__ == "__main__":
    launch.run(main)
