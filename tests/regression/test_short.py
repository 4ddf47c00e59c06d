"""The short form: each paper's loss against cross entropy, on embedded digits made long-tailed.

Accuracies and loss traces were recorded by short.py from the real programs; a loss that lost its
weights, margins, influence factors or class counts gives others.
"""

import json
import statistics

import pytest

from tests.regression import short

pytestmark = pytest.mark.usefixtures("no_gpu")  # as they were recorded
RECORDED = {paper: json.loads((short.TRACES / f"{paper}.json").read_text()) for paper in short.RUNS}
# Relative. In float64 a processor with other instructions (imitated by ONEDNN_MAX_CPU_ISA=SSE41
# ATEN_CPU_CAPABILITY=default) moves the traces by less than 1e-11.
TRACE_TOLERANCE = 1e-6
SEED = 0
GAIN = 5.0  # points on the rare classes: two test images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return short.make_data(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(
    ("paper", "name"), [(paper, name) for paper in short.TRACED for name in short.TRACED[paper]]
)
def test_the_loss_follows_its_recorded_trace(paper, name, data, tmp_path):
    command = short.TRACED[paper][name]
    found = short.trace(short.train(command, data, tmp_path, epochs=short.TRACE_EPOCHS))
    recorded = RECORDED[paper]["trace"][name]
    for losses in ("train_loss", "loss"):
        assert found[losses] == pytest.approx(recorded[losses], rel=TRACE_TOLERANCE)


def test_what_was_recorded_can_be_judged():
    """The seeds are alike, and the loss helps rare classes by more than chance; no program runs."""
    for paper in short.RUNS:
        for name, seeds in RECORDED[paper]["accuracy"].items():
            short.require_likeness(f"{paper} {name}", seeds)
        ce, ours = (
            [run["few"] for run in seeds.values()] for seeds in RECORDED[paper]["accuracy"].values()
        )
        assert len(ours) == len(ce) >= 3
        assert statistics.fmean(ours) > statistics.fmean(ce) + 2 * GAIN


def test_seeds_that_differ_too_much_are_not_recorded():
    seeds = {str(i): {"top1": 60.0, "few": few} for i, few in enumerate((45.0, 7.5, 10.0))}
    with pytest.raises(SystemExit) as error:
        short.require_likeness("dbm_loss DBM-BS", seeds)
    assert str(error.value) == (
        "dbm_loss DBM-BS: few of the seeds is 45, 7.5, 10, more than 20 points about their mean; "
        "train longer or at a smaller learning rate"
    )


@pytest.mark.slow
@pytest.mark.parametrize("paper", short.RUNS)
def test_accuracy_is_as_recorded_and_the_loss_helps_rare_classes(paper, data, tmp_path):
    found = {}
    for i, (name, command) in enumerate(short.RUNS[paper].items()):
        history = short.train(command, data, tmp_path / str(i), seed=SEED)
        found[name] = short.figures(history)
        seeds = RECORDED[paper]["accuracy"][name].values()
        for figure, value in found[name].items():
            mean = statistics.fmean(run[figure] for run in seeds)
            assert abs(value - mean) <= short.TOLERANCE[figure], (name, figure, value)
    ce, ours = found.values()
    assert ours["few"] > ce["few"] + GAIN
