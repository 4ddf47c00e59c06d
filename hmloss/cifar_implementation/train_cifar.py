#!/usr/bin/env python
"""Hard mining loss on long-tailed CIFAR-10/100, the embedded digits, or a folder of images.

    python train_cifar.py --loss_function 'HML' --weighting_type CS --dataset_name 'cifar100' \
        --imb_type 'exp' --imb_ratio 0.02 --gpu 0

Ten runs of 200 epochs, ResNet-32; --num_runs says how many. The paper's figures are not public.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from common.training import launch, seeds, speed
from common.training.files import Files
from common.training.record import Record
from common.training.selection import Selection
from datasets.augment import described
from datasets.data import Data
from datasets.long_tail import Augmentation, load_long_tailed, make_loaders, require_images
from hmloss import flags, repeats
from hmloss.cifar_implementation import opts
from hmloss.engine import EVALUATION_BATCH
from hmloss.trainer import train_run


def load(args: Namespace, imb_type: str, ratio: float) -> Data:
    """A long-tailed training set, the same in all runs of a group, and the whole test set."""
    data = load_long_tailed(
        args.dataset,
        args.root,
        imb_type=imb_type,
        imb_factor=ratio,
        rand_number=args.rand_number,
        image_size=args.image_size,
        val_fraction=args.val_fraction,
    )
    if args.weighting_type != "None":
        require_images(data.cls_num_list, f"--weighting_type {args.weighting_type}")
    if args.loss_type == "LDAM":
        require_images(data.cls_num_list, "--loss_type LDAM")
    return data


def main(argv: Sequence[str] | None = None) -> list[dict] | None:
    """Run the program; returns a row of figures per run (None if child processes did the work)."""
    args, schedule = opts.parse_args(argv)
    if launch.fan_out(main, argv, args.gpu):
        return None
    process = launch.start(args.gpu)
    for note in opts.notes(args, schedule):
        process.say(note)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)

    groups = [(r, t) for r in args.ir_list for t in opts.imb_types(args.imb_type)]
    names = [
        opts.run_name(args, opts.store_name(args, imb_type, ratio), run)
        for ratio, imb_type in groups
        for run in range(args.num_runs)
    ]
    history, models = Path(args.path_history), Path(args.path_model)
    latest = [models / name / "ckpt.pth.tar" for name in names]
    if args.evaluate:  # one of them, by the name that it was trained under
        for note in repeats.left_out(args.resume, latest):
            process.say(note)
        groups, names, latest, args.num_runs = groups[:1], names[:1], latest[:1], 1
    resume = repeats.resume_flags(args.resume, latest)
    logs = ("train_history.csv", "test_history.csv")
    files = [Files(history / name, models / name, text_logs=logs) for name in names]
    summaries = [history / f"{opts.store_name(args, t, r)}_summary.csv" for r, t in groups]
    claims: list[Record] = []  # kept to the end
    first_seed = None
    rows = []
    for ratio, imb_type in groups[1:]:
        load(args, imb_type, ratio)  # refused before the first trains; read again in its turn
    for group, (ratio, imb_type) in enumerate(groups):
        data = load(args, imb_type, ratio)
        for note in data.notes:
            process.say(note)
        process.say("cls num list:")
        process.say(data.cls_num_list)

        if not (claims or args.evaluate):
            claims = repeats.claim(files, resume, args, process, summaries)
        group_rows = []
        for run in range(args.num_runs):
            index = group * args.num_runs + run
            args.store_name, args.resume = names[index], resume[index]
            args.cls_num_list = data.cls_num_list
            record = Record(
                files[index],
                process,
                vars(args),
                data.facts,
                about=flags.about(
                    args,
                    "hmloss/cifar_implementation/train_cifar.py",
                    data,
                    described.cifar(data.test.images.shape[1]),
                ),
                selection=Selection(data.split, data.chosen_on),
            )
            record.resume(args.resume, args.epochs, claimed=True)
            seed = repeats.run_seed(run, user=args.seed, recorded=record.seed, first=first_seed)
            first_seed = seed - run
            loaders = make_loaders(
                data,
                Augmentation(),
                loader=args.loader,
                batch_size=args.batch_size,
                test_batch_size=speed.evaluation_batch(
                    EVALUATION_BATCH, process.device, data.test.images.shape[1]
                ),
                workers=args.workers,
                seed=seed,
                process=process,
                memory_format=speed.memory_format(args.channels_last),
            )
            figures = train_run(args, schedule, record, seed, data, loaders)
            if args.evaluate:
                return [figures]
            group_rows.append({"run": run, "seed": seed, **figures})
            if process.is_main:
                repeats.write_summary(summaries[group], group_rows)
        process.say(repeats.summary_line(group_rows, repeats.COLUMNS))
        rows += group_rows
    return rows


if __name__ == "__main__":
    launch.run(main)
