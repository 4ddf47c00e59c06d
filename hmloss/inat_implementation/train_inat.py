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

import numpy as np

from common.models import archs
from common.training import launch, seeds, speed
from common.training.record import Files, Record
from common.training.report import fingerprint
from datasets import augment
from datasets.augment import colours, described
from datasets.listfile import ListFile, find_list, size_warning, split_name
from datasets.loaders import WorkersLoader
from datasets.validation import HELD_OUT, evaluation_facts, evaluation_notes, hold_out, part_name
from hmloss import flags, repeats
from hmloss.inat_implementation import opts
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

    # Data: the lists decide on the classes and their counts.
    inat = {"mean": colours.INAT_MEAN, "std": colours.INAT_STD}
    size, resize = args.image_size, round(args.image_size * 256 / 224)
    folders = (".", args.dataset_dir)
    train = ListFile(
        find_list(args.train_list, folders),
        args.dataset_dir,
        augment.recipes.imagenet_train(size=size, **inat),
        names=args.classes,
    )
    test = ListFile(
        find_list(args.val_list, folders),
        args.dataset_dir,
        augment.recipes.imagenet_eval(resize=resize, size=size, **inat),
        num_classes=train.num_classes,
    )
    for data in (train, test):
        if warning := size_warning(data):
            process.say(f"WARNING: {warning}")
        for note in data.notes:
            process.say(note)
    process.say(
        f"{len(train)} training and {len(test)} validation images, {train.num_classes} classes"
    )
    kept, val = hold_out(train, args.val_fraction, test.transform)
    split = split_name(test.list_file)
    chosen_on, val_set = split, None
    if val is not None:
        chosen_on, val_set = HELD_OUT, part_name(args.val_fraction)
    evaluated = evaluation_facts(str(test.list_file), len(test), val_set, val and len(val))
    for note in evaluation_notes(evaluated, split):
        process.say(note)

    if args.evaluate:
        args.num_runs = 1
    names = [opts.run_name(args, run) for run in range(args.num_runs)]
    history, models = Path(args.path_history), Path(args.path_model)
    resume = repeats.resume_flags(args.resume, [models / name / "ckpt.pth.tar" for name in names])
    if not args.evaluate:
        folders = [(history / name, models / name) for name in names]
        claims = repeats.claim(folders, resume, args, process)  # noqa: F841 (kept to the end)
    args.cls_num_list = np.bincount(kept.targets, minlength=train.num_classes).tolist()
    facts = {
        "dataset": args.train_list,
        "train_list_sha256": fingerprint(train.paths),
        "labels_sha256": fingerprint(kept.targets),
        "test_list_sha256": fingerprint(test.paths),
        "test_labels_sha256": fingerprint(test.targets),
        **evaluated,
    }
    first_seed = None
    rows = []
    for run, name in enumerate(names):
        args.store_name, args.resume = name, resume[run]
        record = Record(
            Files(
                history / name, models / name, text_logs=("train_history.csv", "test_history.csv")
            ),
            process,
            vars(args),
            facts,
            about=flags.about(
                args,
                "hmloss/inat_implementation/train_inat.py",
                Path(args.train_list).stem,
                train.classes,
                described.imagenet(resize=resize, size=size, **inat),
            ),
            split=split,
            chosen_on=chosen_on,
        )
        state = record.resume(args.resume, args.epochs)
        seed = repeats.run_seed(run, user=args.seed, recorded=record.seed, first=first_seed)
        first_seed = seed - run
        shared = {
            "workers": args.workers, "seed": seed, "process": process,
            "memory_format": speed.memory_format(args.channels_last),
        }  # fmt: skip
        train_loader = WorkersLoader(kept, args.batch_size, **shared)
        val_loader = test_loader = WorkersLoader(test, 100, train=False, **shared)
        if val is not None:
            val_loader = WorkersLoader(val, 100, train=False, **shared)
        figures = train_run(
            args,
            schedule,
            record,
            state,
            seed,
            archs.constructor(args.arch),
            (train_loader, val_loader, test_loader),
            test.files,
        )
        if args.evaluate:
            return [figures]
        rows.append({"run": run, "seed": seed, **figures})
        if process.is_main:
            store = name.removesuffix(f"_run{run}")
            repeats.write_summary(history / f"{store}_summary.csv", rows)
    process.say(repeats.summary_line(rows, repeats.COLUMNS))
    return rows


if __name__ == "__main__":
    launch.run(main)
