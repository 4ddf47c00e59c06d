"""The benchmarks fit what they measure; nothing is measured here."""

import importlib
import inspect

import numpy as np
import pytest
import torch

from benchmarks import all as benchmarks
from benchmarks import programs, start
from common.training.launch import Process
from datasets.loaders import DeviceLoader, WorkersLoader
from datasets.memory import ArrayDataset

CPU = Process(torch.device("cpu"))


def test_every_program_is_measured_by_names_that_it_has():
    """``programs.measure`` stands in for train_one_epoch and reads by name what that is given."""
    for case in programs.CASES:
        program = case.program.removesuffix(".py").replace("/", ".")
        importlib.import_module(program)
        train = importlib.import_module(case.trainer or program).train_one_epoch
        names = set(inspect.signature(train).parameters)
        read = {"learner", "criterion"}
        for either in (("loader", "loaders"), ("args", "config"), ("process", "record")):
            assert names & set(either), case.program
        read |= {"config", "count"} if program.startswith("arbloss") else {"args"}
        read |= {"means"} if ".GML." in program else set()
        assert read <= names, case.program
    assert all((start.ROOT / path).is_file() for path in start.PROGRAMS)


def test_the_plain_loop_reads_the_images_of_a_loader():
    images, targets = np.arange(4 * 32 * 32 * 3, dtype=np.uint8).reshape(4, 32, 32, 3), [0, 1] * 2
    small, large = programs.CASES[0], next(case for case in programs.CASES if case.views is None)

    device = DeviceLoader(images, targets, 2, None, seed=0, process=CPU)
    data = programs.plain_data({"loader": device}, small)
    image, target, index = data[3]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32
    assert (len(data), int(target), index) == (4, 1, 3)
    assert programs._batch_size({"loader": device}) == 2

    dataset = ArrayDataset(images, targets, lambda image: torch.tensor(np.asarray(image)))
    workers = WorkersLoader(dataset, 2, workers=0, seed=0, process=CPU, finish=lambda x: x / 2)
    call = {"loaders": (workers, None)}
    views, target, index = programs.plain_data(call, large)[3]
    assert views.tolist() == [(images[3] / 2).tolist()] and (target, index) == (1, 3)
    assert programs._batch_size(call) == 2


def test_figures_that_mean_nothing_are_not_written(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmarks.main(["--quick", "--write"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: --write: the figures of --quick mean nothing; leave one of them out\n"
    )
