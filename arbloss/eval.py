#!/usr/bin/env python
"""Accuracy, calibration and reliability diagram of a checkpoint of either stage.

    python eval.py --cfg ./config/cifar10/cifar10_imb001_stage1_mixup.yaml \
        resume saved/cifar10_imb001_stage1_mixup_202401010000/ckps/model_best.pth.tar
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, from any folder
from common.training import interrupt

interrupt.during_imports(__name__)

from arbloss import opts, trainer
from arbloss.data import load_data, make_loaders
from arbloss.engine import evaluate, log_line, result_lines, results
from arbloss.models import Network
from arbloss.reliability import calibration, draw_reliability_diagram
from arbloss.start import new_folder, newest_run, start_process
from common.training import checkpoint, launch, report, restore, speed
from common.training.errors import UsageError
from common.training.logs import TextLog, prepare_folders, write_json
from common.training.selection import full


def main(argv: Sequence[str] | None = None) -> dict:
    """Run the program; returns the figures."""
    args, config = opts.parse_args("MiSLAS evaluation", argv)
    opts.check(config)
    if not config.resume:
        raise UsageError("name the checkpoint to evaluate: resume CHECKPOINT")
    process, notes = start_process(config, args.local_rank)
    stem, resume = opts.stem(args.cfg), config.resume
    if resume != "auto":  # a misspelt name is told at once
        state = checkpoint.load(resume, "resume")
    data = load_data(config)
    if resume == "auto":
        resume, passed_over = launch.in_main(lambda: newest_run(stem, config, data))
        notes += passed_over
        if not resume:
            what = ["resume auto: no run with these settings to evaluate", *passed_over]
            raise UsageError("; ".join([*what, "give resume CHECKPOINT"]))
        state = checkpoint.load(resume, "resume")
    notes += restore.check_classes(state, data.classes, resume)
    channels_last = speed.use_channels_last(config.channels_last, process.device, config.amp)
    memory_format = speed.memory_format(channels_last)
    *_, test_loader = make_loaders(
        data,
        config,
        batch_size=config.batch_size,
        seed=0,
        process=process,
        memory_format=memory_format,
    )

    stage = 2 if "state_dict_lws_model" in state else 1
    network = Network(
        config.backbone, config.num_classes, places=config.dataset == "places", stage=stage
    )
    network.load_parts(state, resume)
    network = network.to(process.device, memory_format=memory_format)

    # Never the folder of a run, whose files would be lost: of log_dir only the name counts.
    folder = launch.broadcast_object(new_folder(stem, "")) / Path(config.log_dir).name
    if process.is_main:
        prepare_folders(folder)
    log = TextLog(folder / f"{stem}.txt" if process.is_main else None)
    say = partial(log_line, log, process)
    for note in (
        *notes,
        *data.notes,
        f"=> loaded checkpoint '{resume}' (epoch {state.get('epoch')})",
    ):
        say(note)
    tally = evaluate(network, test_loader, config, process, say)
    figures = results(tally, data.cls_num_list, config)
    if process.is_main:
        about = trainer.about(config, data, stage)
        table = report.class_table(tally, data.cls_num_list, data.classes)
        facts = {
            "unit": report.UNIT,
            "evaluated": data.split,
            **data.facts,
            **about,
            "per_class": table,
        }
        facts["calibration"] = calibration(tally.bins)
        write_json(folder / "eval.json", report.in_percent(figures) | facts)
        report.write_tables(folder, tally, table, data.test.files)
        title = f"{report.title_of(about)}\n{full(data.split)} set"
        draw_reliability_diagram(tally.bins, folder / "reliability.png", title)
    # After the files: a reader may go away.
    for line in result_lines(figures, tally, data.cls_num_list, config):
        say(line)
    say(f"report in {folder}")
    test_loader.close()
    log.close()
    return figures


if __name__ == "__main__":
    launch.run(main, trains=False)
