#!/usr/bin/env python
"""Hard mining loss on iNaturalist 2018, or any data set given by list files.

    python train_inat.py --loss_type 'HML' --delta 10000

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

from common.models import archs
from common.training import launch, seeds, speed
from common.training.old_record import Record
from common.training.report import fingerprint
from datasets import augment
from datasets.augment import colours
from datasets.listfile import ListFile, find_list, size_warning, split_name
from datasets.loaders import WorkersLoader
from hmloss import flags, repeats
from hmloss.inat_implementation import opts
from hmloss.trainer import train_run


def main(argv: Sequence[str] | None = None) -> list[dict] | None:
    """Run the program; returns a row of figures per run (None if child processes did the work)."""
    args, schedule = opts.parse_args(argv)
    if launch.fan_out(main, argv, args.gpu):
        return None
    process = launch.start(args.gpu)
    say = print if process.is_main else lambda *_, **__: None
    for note in flags.notes(args, schedule):
        say(note, flush=True)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)

    # Data: the lists decide on the classes and their counts.
    inat = {"mean": colours.INAT_MEAN, "std": colours.INAT_STD}
    size = args.image_size
    folders = (".", args.dataset_dir)
    train = ListFile(
        find_list(args.train_list, folders),
        args.dataset_dir,
        augment.recipes.imagenet_train(size=size, **inat),
        names=args.classes,
    )
    val = ListFile(
        find_list(args.val_list, folders),
        args.dataset_dir,
        augment.recipes.imagenet_eval(resize=round(size * 256 / 224), size=size, **inat),
        num_classes=train.num_classes,
    )
    for data in (train, val):
        if warning := size_warning(data):
            say(f"WARNING: {warning}", flush=True)
        for note in data.notes:
            say(note, flush=True)
    say(f"{len(train)} training and {len(val)} validation images, {train.num_classes} classes")

    if args.evaluate:
        args.num_runs = 1
    names = [opts.run_name(args, run) for run in range(args.num_runs)]
    resume = repeats.resume_flags(
        args.resume, [Path(args.path_model) / name / "ckpt.pth.tar" for name in names]
    )
    first_seed = None
    rows = []
    for run, name in enumerate(names):
        args.store_name, args.resume = name, resume[run]
        record = Record(
            Path(args.path_history) / name,
            Path(args.path_model) / name,
            process,
            vars(args),
            text_logs=("train_history.csv", "test_history.csv"),
            split=split_name(val.list_file),
        )
        state = record.resume(args.resume)
        seed = repeats.run_seed(run, user=args.seed, recorded=record.seed, first=first_seed)
        first_seed = seed - run
        shared = {
            "workers": args.workers, "seed": seed, "process": process,
            "memory_format": speed.memory_format(args.channels_last),
        }  # fmt: skip
        loaders = (
            WorkersLoader(train, args.batch_size, **shared),
            WorkersLoader(val, 100, train=False, **shared),
        )
        facts = {"dataset": args.train_list, "labels_sha256": fingerprint(train.targets)}
        figures = train_run(
            args,
            schedule,
            record,
            state,
            seed,
            archs.constructor(args.arch),
            loaders,
            train.cls_num_list,
            process,
            facts,
        )
        if args.evaluate:
            return [figures]
        rows.append({"run": run, "seed": seed, **figures})
        if process.is_main:
            store = name.removesuffix(f"_run{run}")
            repeats.write_summary(Path(args.path_history) / f"{store}_summary.csv", rows)
    say(repeats.summary_line(rows, repeats.COLUMNS), flush=True)
    return rows


if __name__ == "__main__":
    launch.run(main)
