#!/usr/bin/env python
"""Hard mining loss on ISIC 2019, melanoma against nevi; or all its classes, or a folder of images.

    python train_isic.py --loss_type 'HML' --delta 10000
    python train_isic.py --task imagefolder --dataset_dir DIR --loss_type HML --weighting_type CS

Images from preprocessing/preprocess.py in dataset/, a split from preprocessing/split.py. Ten runs
of at most 100 epochs of EfficientNet-B3 on 300x300 images; --num_runs says how many. The paper's
figures are not public; its sister paper reaches a balanced accuracy of 81.3 % on the 7 classes
of ISIC 2018.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

import numpy as np
import pandas as pd
import torch

from common.evaluation import Tally
from common.models import pretrained
from common.training import checkpoint, launch, precision, restore, seeds, speed
from common.training.errors import UsageError
from common.training.files import Files
from common.training.launch import Process
from common.training.learner import Learner
from common.training.logs import prepare_folders, write_text
from common.training.pictures import picture
from common.training.record import Record
from common.training.report import title_of
from common.training.selection import Selection
from datasets.augment import described
from datasets.loaders import WorkersLoader
from datasets.validation import evaluation_facts, evaluation_notes
from hmloss import flags, repeats
from hmloss.engine import build_criterion, forward_pass
from hmloss.isic2019_implementation import data as isic
from hmloss.isic2019_implementation import opts
from hmloss.isic2019_implementation.engine import (
    RULE,
    Predictions,
    predict,
    train_one_epoch,
    validation_lines,
)
from hmloss.isic2019_implementation.metrics import (
    FIGURES,
    distributions,
    draw_learning_curve,
    draw_roc,
    percentages,
    report_text,
)
from hmloss.isic2019_implementation.model import FROM_SCRATCH, build_model, freeze
from hmloss.isic2019_implementation.schedule import cyclic_lr
from hmloss.schedule import in_hml_stage


def main(argv: Sequence[str] | None = None) -> list[dict] | None:
    """Run the program; returns a row of test figures per run, as fractions.

    None if child processes did the work.
    """
    args = opts.parse_args(argv)
    if args.use_cuda and launch.fan_out(main, argv, args.gpu):
        return None
    process = launch.start(args.gpu, use_cuda=args.use_cuda)
    for note in opts.notes(args):
        process.say(note)
    seeds.set_kernels(process.device, deterministic=args.seed is not None)
    args.channels_last = speed.use_channels_last(args.channels_last, process.device, args.amp)

    history_dir = args.history_path / args.store_name
    model_dir = args.model_path / args.store_name
    result_dir = args.result_dir / args.store_name
    latest = [model_dir / f"run{run}" / "ckpt.pth.tar" for run in range(args.num_runs)]
    resume = repeats.resume_flags(args.resume, latest[:1] if args.evaluate else latest)

    # Data: one split for all runs.
    first_seed = None
    images = isic.open_task(args.task, args.dataset_dir)
    table, notes = find_split(args, images.table, history_dir / "split.csv")
    if table is None:
        first_seed = seeds.choose_seed(args.seed)
        table = draw_split(images, first_seed)
    data = replace(images, table=table)
    for note in [*data.notes, *notes, *isic.check_parts(table, args.dataset_dir, data.folders)]:
        process.say(note)
    train_table = table[table["part"] == "train"]
    args.cls_num_list = [int((train_table["label"] == name).sum()) for name in data.folders]
    sizes = table.groupby(["part", "label"], sort=False).size().rename("images").reset_index()
    process.say(sizes.to_string(index=False))
    evaluated = evaluation_facts_of(args, table)
    for note in evaluation_notes(evaluated, "test"):
        process.say(note)

    if args.evaluate:
        return [evaluate_file(args, data, process, latest)]

    # The folders of all runs are this program's before it writes there.
    args.run_list = [f"run{run}" for run in range(args.num_runs)]
    files = [
        Files(
            history_dir / name,
            model_dir / name,
            copy=best_model(model_dir / name),
            others=("roc.png", "history_case_plot.png", "proba_distribution_*.csv"),
        )
        for name in args.run_list
    ]
    claims = repeats.claim(files, resume, args, process)  # noqa: F841 (kept to the end)
    if process.is_main:
        prepare_folders(history_dir, model_dir, result_dir)
        checkpoint.remove_parts(history_dir, model_dir, result_dir)
        isic.save_split(history_dir / "split.csv", table, f"used by {args.store_name}")
        write_text(history_dir / "args_history.txt", str(args))
    launch.barrier()

    rows = []
    for run, name in enumerate(args.run_list):
        process.say(f"curent run:\n{name}")  # the original's spelling
        args.resume = resume[run]
        record = Record(
            files[run],
            process,
            vars(args),
            isic.fingerprints(table) | evaluated,
            about=about(args, data),
            selection=Selection("test", "val", "bacc", later_of_equals=True),
        )
        record.resume(args.resume, args.num_epochs, claimed=True)
        rows_in_percent(record)
        seed = repeats.run_seed(run, user=args.seed, recorded=record.seed, first=first_seed)
        first_seed = seed - run
        figures = train_run(args, record, seed, data)
        rows.append({"run": run, "seed": seed, "best_epoch": record.best_row["epoch"], **figures})
        if process.is_main:
            write_results(result_dir, rows)
    process.say(repeats.summary_line([percentages(row) for row in rows], FIGURES))
    return rows


def evaluation_facts_of(args: argparse.Namespace, table: pd.DataFrame) -> dict[str, object]:
    """What is evaluated, for the report."""
    images = (table["part"] == "test").sum(), (table["part"] == "val").sum()
    parts = (f"{part} part of {args.dataset_dir}" for part in ("test", "val"))
    (test_set, val_set), (test_images, val_images) = parts, map(int, images)
    return evaluation_facts(test_set, test_images, val_set, val_images)


def rows_in_percent(record: Record) -> None:
    """Bring the history of a checkpoint to percent; those of earlier versions have fractions."""
    accuracies = [(row["accuracy"], row["top1"]) for row in record.history if "accuracy" in row]
    if any(accuracy < top1 / 2 for accuracy, top1 in accuracies):
        record.history = [percentages(row) for row in record.history]
        record.best_row = max(record.history, key=lambda row: (row["bacc"], row["epoch"]))
        record.best_score *= 100


def about(args: argparse.Namespace, data: isic.Images) -> dict[str, object]:
    """What is trained, for the report and the checkpoints: see ``Record``."""
    transform = described.squeezed(args.image_size, data.mean, data.std)
    program = "hmloss/isic2019_implementation/train_isic.py"
    return flags.about(args, program, data, transform)


def best_model(model_dir: Path) -> Path:
    """The original's file of the best epoch's weights, beside the folder of the run's others."""
    return model_dir.parent / f"best_model_{model_dir.name}.pth"


def find_split(
    args: argparse.Namespace, images: pd.DataFrame, saved: Path
) -> tuple[pd.DataFrame | None, list[str]]:
    """The images with their parts, from where there is a split already, and notes on it.

    None if one is to be drawn. A resumed or evaluated run keeps its own split: other test images
    might have been trained on. A file was made on purpose, and counts before the folders.
    """
    prepared = args.dataset_dir / "split.csv"
    if args.split_file:
        path = args.split_file
    elif args.resume and saved.is_file():
        path = saved
    elif prepared.is_file():
        path = prepared
    elif "part" in images:
        return images, []
    elif args.evaluate:
        raise UsageError(
            f"--evaluate: neither {saved} nor {prepared} tells which images are for testing; "
            "give --split_file"
        )
    else:
        return None, []
    table = isic.load_split(path, images)
    moved = int((table["part"] != images["part"]).sum()) if "part" in images else 0
    note = f"note: {path}: {moved} of {len(table)} images are in another part than in the folders"
    return table, [f"{note} of {args.dataset_dir}, which do not count"] * (moved > 0)


def draw_split(images: isic.Images, seed: int) -> pd.DataFrame:
    """The original's split: train, test, then validation, cut from each shuffled class."""
    table = images.table
    ids = {name: table.loc[table["label"] == name, "image_id"].tolist() for name in images.folders}
    rng = np.random.RandomState(seed % 2**32)
    part_of = isic.split_images(ids, rng, order=("train", "test", "val"))
    return table.assign(part=table["image_id"].map(part_of))


def make_loader(
    args: argparse.Namespace, data: isic.Images, part: str, seed: int, process: Process
) -> tuple[WorkersLoader, int]:
    """Loader of a part of the split, and its number of images."""
    train = part == "train"
    augmented = train or args.augmented_eval
    recipe = isic.train_transform if augmented else isic.eval_transform
    transform = recipe(args.image_size, data.mean, data.std)
    images = isic.ISIC2019(data.table[data.table["part"] == part], transform)
    batch_size = args.batch_size if train else max(args.batch_size // 2, 1)
    loader = WorkersLoader(
        images,
        batch_size,
        workers=args.workers,
        seed=seed,
        process=process,
        train=train,
        memory_format=speed.memory_format(args.channels_last),
    )
    return loader, len(images)


def train_run(
    args: argparse.Namespace,
    record: Record,
    seed: int,
    data: isic.Images,
) -> dict[str, float]:
    """One training from its first or its resumed epoch to the test; returns the test's figures."""
    process = record.process
    train_loader, num_train = make_loader(args, data, "train", seed, process)
    val_loader, num_val = make_loader(args, data, "val", seed, process)

    # Model: the lower part of a pretrained network stays as it is.
    seeds.seed_everything(seed)
    model = build_model(args.arch, len(data.classes))
    if not args.random_init and not record.resumed:
        process.say(pretrained.load(model, args.arch, args.weights, FROM_SCRATCH))
    frozen, tensors = freeze(model, args.ratio_finetune)
    process.say(f"[INFO]: training {tensors - frozen} of {tensors} parameter tensors")
    model = model.to(memory_format=speed.memory_format(args.channels_last))
    model = launch.distribute(model, process)

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=args.max_lr)
    scaler = precision.grad_scaler(process.device, args.amp)
    record.restore(model, optimizer, scaler)
    waited = record.epoch - 1 - record.best_row["epoch"] if record.best_row else 0
    criteria = [
        build_criterion(args, args.cls_num_list, stage).to(process.device)
        for stage in (False, True)
    ]

    record.open(seed)
    forward = speed.compiled(forward_pass, args.compile, process, train_loader.full_batch)
    learner = Learner(model, optimizer, scaler, forward)
    for epoch in range(record.epoch + 1, args.num_epochs + 1):  # as printed, from 1
        if waited >= args.delay:
            break
        start = time.perf_counter()
        # Dropout differs between processes.
        seeds.seed_everything(seed, "training", epoch, process.rank)
        train_loader.set_epoch(epoch)
        val_loader.set_epoch(epoch)
        criterion = criteria[in_hml_stage(epoch, args.loss_type, args.start_hm_epoch)]

        def learning_rate(step: int, epoch: int = epoch) -> float:
            if args.step_size_up is None:
                return cyclic_lr(args.max_lr, epoch - 1)
            iteration = (epoch - 1) * len(train_loader) + step
            return cyclic_lr(args.max_lr, iteration, args.step_size_up)

        row = {"epoch": epoch - 1}
        row |= train_one_epoch(
            learner, train_loader, criterion, epoch, learning_rate, args, process
        )
        seconds = time.perf_counter() - start - speed.compile_seconds(process)
        row["images_per_s"] = num_train / seconds
        waited += 1
        if waited >= args.delay or record.evaluates(epoch - 1, args.num_epochs, args.eval_every):
            validation = predict(model, val_loader, num_val, criterion, args, process)
            row |= validation.tally.result(args.cls_num_list) | percentages(validation.figures())
            spread = distributions(
                validation.labels, validation.scores, epoch, args.task == "melanoma"
            )
            row["distribution"] = [part.to_numpy()[0].tolist() for part in spread.values()]
            process.say(validation_lines(row))
        row["epoch_s"] = time.perf_counter() - start

        best_bacc = record.best_score
        if record.is_best(row):
            waited = 0
            process.say(
                f"{RULE}\nIncrease of best bacc on [epoch {epoch}] from [{best_bacc / 100:.5f}] "
                f"to [{row['bacc'] / 100:.5f}]\n{RULE}\n{RULE}\nSaving current best model\n{RULE}"
            )
            best_bacc = row["bacc"]
            if process.is_main:
                checkpoint.save(launch.unwrap(model).state_dict(), best_model(record.model_dir))
        if record.writer is not None:
            for tag in ("lr", "train_loss", "train_top1", "loss", "bacc", "auc"):
                if tag in row:  # not every epoch is evaluated, with --eval_every
                    record.writer.add_scalar(tag, row[tag], row["epoch"])
        record.end_epoch(row, arch=args.arch, best_bacc=best_bacc)
        if waited >= args.delay:
            best = f"Best bacc Val: {best_bacc / 100:.3f}"
            process.say(f"Early stopping on [epoch: {epoch}], [{best}")

    train_loader.close()
    val_loader.close()
    return test_run(args, record, model, criteria, data)


def test_run(
    args: argparse.Namespace,
    record: Record,
    model: torch.nn.Module,
    criteria: Sequence[torch.nn.Module],
    data: isic.Images,
) -> dict[str, float]:
    """Test a run that has ended, its last epoch and then its best; returns the best one's figures.

    Writes the report, pictures and tables.
    """
    process, best_epoch = record.process, record.best_row["epoch"] + 1
    process.say("Evaluating the model")
    process.say(
        f"Restore best model on epoch {best_epoch} with Best bacc Val: "
        f"{record.best_score / 100:.3f}"
    )
    process.say(
        f"note: the epochs of a report count from 0: there, epoch {best_epoch} is {best_epoch - 1}"
    )
    weights = best_model(record.model_dir)
    if process.is_main and not record.best.is_file() and weights.is_file():
        # Runs of earlier versions kept the weights alone.
        checkpoint.save({"state_dict": restore.load_state_dict(weights)}, record.best)
    launch.barrier()
    loader, num_images = make_loader(args, data, "test", record.seed, process)
    tests, found = [], {}

    def test(epoch: int) -> Tally:
        stage = in_hml_stage(epoch + 1, args.loss_type, args.start_hm_epoch)
        tests.append(predict(model, loader, num_images, criteria[stage], args, process))
        return tests[-1].tally

    def figures(tally: Tally) -> dict:
        """Of the last test; the best epoch's is the last, and what the report has as "test"."""
        found.update(percentages(tests[-1].figures()))
        return tally.result(args.cls_num_list) | found

    files = data.table.loc[data.table["part"] == "test", "path"].tolist()
    record.finish(None, test, figures=figures, files=files, test=found)
    loader.close()
    best = tests[-1]
    if process.is_main:
        print_test(best, data.classes)
        title = title_of(record.about)
        tested = record.outcome.best["epoch"]  # the last one, if the best one's checkpoint is gone
        how = ", the best on the validation set" if tested == record.best_row["epoch"] else ""
        head = f"{title}\ntest set, epoch {tested}{how}"
        roc = record.log_dir / "roc.png"
        picture(roc, draw_roc, best.labels, best.scores, data.classes, head)
        curve = record.log_dir / "history_case_plot.png"
        picture(curve, draw_learning_curve, record.history, title)
        write_distributions(record, args.task == "melanoma")
    return best.figures()


def print_test(test: Predictions, classes: Sequence[str]) -> None:
    """The figures of the test part, as the original prints them."""
    result = test.figures()
    print(f"{RULE}\n[test bacc {result['bacc']:.5f}] ,  [test auc {result['auc']:.5f}]\n{RULE}")
    print(f"sensitivity {100 * result['sensitivity']:.2f} %, "
          f"specificity {100 * result['specificity']:.2f} %")  # fmt: skip
    print(report_text(test.labels, test.scores, classes), flush=True)


def evaluate_file(
    args: argparse.Namespace, data: isic.Images, process: Process, latest: Sequence[Path]
) -> dict[str, float]:
    """Test the checkpoint that ``--resume`` names: a run's own or a ``best_model_run*.pth``.

    ``latest``: the checkpoint of each run; ``auto`` is the first.
    """
    path = checkpoint.find(args.resume, latest[0])
    if path is None:
        raise UsageError(f"--evaluate --resume {args.resume}: there is no {latest[0]} yet")
    state = checkpoint.load(path)
    after = f" (epoch {state['epoch']})" if "epoch" in state else ""
    process.say(f"=> loaded checkpoint '{path}'{after}")
    notes = repeats.left_out(args.resume, latest)
    for note in [*notes, *restore.check_classes(state, data.classes, path)]:
        process.say(note)
    model = build_model(args.arch, len(data.classes))
    restore.load_weights(model, restore.weights_in(state, path), path)
    criterion = build_criterion(args, args.cls_num_list, hml_stage=False).to(process.device)
    seed = seeds.choose_seed(args.seed)
    model = model.to(memory_format=speed.memory_format(args.channels_last))
    model = launch.distribute(model, process)
    loader, num_images = make_loader(args, data, "test", seed, process)
    test = predict(model, loader, num_images, criterion, args, process)
    loader.close()
    if process.is_main:
        print_test(test, data.classes)
    return test.figures()


def write_results(folder: Path, rows: Sequence[dict]) -> None:
    """``test_history.csv`` as the original writes it: fractions, epochs from 1; ``summary.csv``:
    percent, epochs from 0 as in the reports, and named so.
    """
    lines = [",run,best_epoch,bacc,auc"]
    lines += [f"0,run{r['run']},{r['best_epoch'] + 1},{r['bacc']},{r['auc']}" for r in rows]
    write_text(folder / "test_history.csv", "\n".join(lines) + "\n")
    names = {"best_epoch": "best_epoch_from_0"}
    summary = [{names.get(key, key): value for key, value in row.items()} for row in rows]
    repeats.write_summary(folder / "summary.csv", [percentages(row) for row in summary])


def write_distributions(record: Record, melanoma: bool) -> None:
    """How the validation scores were spread in each evaluated epoch: see ``distributions``."""
    classes = len(record.about["classes"])
    empty = distributions(np.zeros(0), np.zeros((0, classes)), 0, melanoma)
    spreads = [row["distribution"] for row in record.history if "distribution" in row]
    for i, (name, table) in enumerate(empty.items()):
        rows = pd.DataFrame([spread[i] for spread in spreads])
        rows.columns = table.columns
        write_text(record.log_dir / f"proba_distribution_{name}.csv", rows.to_csv(index=False))


if __name__ == "__main__":
    launch.run(main)
