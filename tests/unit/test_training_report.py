"""What a report says, against numbers worked out by hand."""

import csv
import hashlib
import json
import tracemalloc

import numpy as np
import pytest
import torch

from common.evaluation import Tally
from common.training import drawings, pictures
from common.training.report import Outcome, fingerprint, write_report
from common.training.selection import Selection

CLASSES = ["cat, tabby", "dog", "emu"]  # the rarest in the middle, a comma in a name
COUNTS = [40, 6, 120]
ABOUT = {
    "classes": CLASSES,
    "cls_num_list": COUNTS,
    "method": "IB",
    "data": "imagefolder pets",
    "network": {"arch": "resnet20", "num_classes": 3},
}
LONG_NAMES = [f"a long name of a class, no. {c} of $12" for c in range(12)]
TRUE, PREDICTED = [0, 0, 1, 1, 2, 2], [0, 2, 2, 2, 2, 2]


def evaluation(true=TRUE, predicted=PREDICTED):
    """An evaluation, and its figures."""
    logits = 2.0 * torch.eye(3)[torch.tensor(predicted)]
    tally = Tally(3)
    tally.update(logits, torch.tensor(true), 0.25)
    tally.reduce()
    return tally, tally.result(COUNTS)


@pytest.fixture
def drawn(monkeypatch):
    """{file name: (function, arguments)} of the pictures that would be drawn."""
    calls = {}
    monkeypatch.setattr(
        pictures, "picture", lambda path, draw, *args: calls.update({path.name: (draw, args)})
    )
    return calls


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def epoch(number, figures):
    return {"epoch": number, "lr": 0.1, "train_loss": 1.0, "epoch_s": 2.0, **figures}


def test_tables_and_report_of_the_last_epoch(tmp_path, drawn):
    tally, figures = evaluation()
    history = [epoch(0, {**figures, "top1": 80.0}), epoch(1, figures)]
    write_report(
        tmp_path, history, Outcome(history[1], history[0], tally), ABOUT, Selection(),
        files=[f"test/{i}.png" for i in range(6)], seed=3,
    )  # fmt: skip
    assert rows(tmp_path / "per_class.csv") == [
        ["class", "group", "train_images", "test_images", "correct", "precision", "recall", "f1"],
        ["cat, tabby", "medium", "40", "2", "1", "100.00", "50.00", "66.67"],
        ["dog", "few", "6", "2", "0", "0.00", "0.00", "0.00"],
        ["emu", "many", "120", "2", "2", "40.00", "100.00", "57.14"],
    ]
    assert rows(tmp_path / "confusion.csv") == [
        ["true class", *CLASSES],
        ["cat, tabby", "1", "0", "1"],
        ["dog", "0", "0", "2"],
        ["emu", "0", "0", "2"],
    ]
    probability = f"{np.exp(2) / (np.exp(2) + 2):.6f}"
    assert rows(tmp_path / "predictions.csv")[:3] == [
        ["image", "true", "predicted", "probability"],
        ["test/0.png", "cat, tabby", "cat, tabby", probability],
        ["test/1.png", "cat, tabby", "emu", probability],
    ]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["final"]["top1"] == 50 and written["best"]["top1"] == 80
    assert written["final"]["balanced_acc"] == 50 and written["final"]["cls_acc"] == [50, 0, 100]
    assert written["unit"].startswith("percent")
    assert written["final"]["macro_f1"] == pytest.approx(100 * (2 / 3 + 0 + 4 / 7) / 3)
    assert written["note"] == (
        "best is chosen on the test set, as in the papers; final is the last epoch"
    )
    assert written["reported"] == {"epoch": 1, "which": "final", "split": "test"}
    assert written["per_class"]["precision"] == [100, 0, 40]
    assert written["classes"] == CLASSES and written["method"] == "IB" and written["seed"] == 3
    assert "validation" not in written
    assert written["epochs"] == 2 and written["wall_time_s"] == 4.0
    assert drawn.keys() == {"curves.png", "per_class.png", "confusion.png"}
    title = "IB, resnet20, on imagefolder pets\ntest set, epoch 1"
    assert drawn["per_class.png"][1] == ([0.5, 0, 1], COUNTS, CLASSES, "test", title)


def test_the_best_epoch_on_the_validation_set_is_reported_on_the_test_set(tmp_path, drawn):
    on_val, (_, final), (tally, best) = (
        evaluation([0, 1, 2], [0, 1, 0])[1], evaluation(), evaluation(TRUE, TRUE)
    )  # fmt: skip
    history = [epoch(4, on_val), epoch(5, {**on_val, "top1": 10.0})]
    validation = {"best": history[0], "final": history[1]}
    outcome = Outcome(history[1] | final, history[0] | best, tally, validation)
    write_report(tmp_path, history, outcome, ABOUT, Selection(chosen_on="val"))
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["best"]["epoch"], written["best"]["top1"]) == (4, 100)
    assert (written["final"]["epoch"], written["final"]["top1"]) == (5, 50)
    assert written["validation"]["best"]["top1"] == pytest.approx(200 / 3)
    assert written["validation"]["final"]["top1"] == 10
    assert written["reported"] == {"epoch": 4, "which": "best", "split": "test"}
    assert written["note"] == (
        "best is the epoch of the highest balanced accuracy on the validation set; its figures and "
        "those of the last epoch, final, are of the test set"
    )
    predictions = rows(tmp_path / "predictions.csv")
    assert [row[0] for row in predictions[1:]] == list("012345")
    assert all(row[1] == row[2] for row in predictions[1:])
    assert drawn["per_class.png"][1][-1].endswith(
        "test set, epoch 4, the best on the validation set"
    )
    assert drawn["curves.png"][1][1] == "validation"


def figure_of(draw, *args):
    """The figure, and its texts by what they are; checks that nothing is cut off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, *args)
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    box = figure.get_tightbbox().extents * figure.dpi
    assert box[0] > -2 and box[1] > -2 and box[2] < width + 2 and box[3] < height + 2
    return figure


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_per_class_shows_every_accuracy_and_size():
    cases = [
        ([1.0, 0.0], [130, 12], ["healthy", "ill"]),
        ([1.0, 0.5, float("nan")], [20, 0, 3], ["a", "b", "c"]),
        (np.linspace(0, 1, 12), range(10, 250, 20), LONG_NAMES),
        (np.linspace(1, 0, 100), range(100, 0, -1), [str(c) for c in range(100)]),
        (np.linspace(0, 1, 8142), range(8142), [str(c) for c in range(8142)]),
    ]
    for accuracies, counts, classes in cases:
        title = f"IB, resnet32, on {'a data set ' * 20}"
        figure = figure_of(drawings.per_class, accuracies, list(counts), classes, "test", title)
        upper, lower = figure.axes
        assert upper.get_ylim()[1] > 105 and upper.get_ylim()[0] == 0  # a bar of 100 % is whole
        assert figure.get_suptitle().replace("\n", " ").startswith("IB, resnet32, on a data set")
        if len(classes) > 40:
            assert lower.get_xlabel().startswith("rank of the class, most training images first")
            continue
        largest = int(np.argmax(counts))
        assert ticks(lower.xaxis)[0].replace(r"\$", "$")[:14] == classes[largest][:14]
        assert len(set(ticks(lower.xaxis))) == len(classes)
        shown = [text.get_text() for text in upper.texts]
        by_size = np.asarray(accuracies)[np.argsort(-np.asarray(counts), kind="stable")]
        assert shown == ["no image" if np.isnan(x) else f"{100 * x:.0f}" for x in by_size]
        assert [text.get_text() for text in lower.texts] == [str(n) for n in sorted(counts)[::-1]]


def test_bars_have_the_colour_of_their_group():
    figure = figure_of(drawings.per_class, [0.5, 0.25, 1.0], COUNTS, CLASSES, "test", "title")
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [100, 50, 25]  # emu, cat, dog: 120, 40 and 6 images
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == [
        "many (> 100 images): 100.0 %", "medium (20 to 100): 50.0 %", "few (< 20): 25.0 %",
    ]  # fmt: skip


def test_confusion_is_sorted_by_size_and_in_percent():
    confusion = evaluation()[0].confusion.numpy()
    figure = figure_of(drawings.confusion, confusion, COUNTS, CLASSES, "title")
    axes = figure.axes[0]
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == ["emu", "cat, tabby", "dog"]
    np.testing.assert_array_equal(
        axes.images[0].get_array(), [[100, 0, 0], [50, 50, 0], [100, 0, 0]]
    )


def test_curves_leave_out_what_no_epoch_has():
    for epochs in [1, 3]:
        history = [epoch(e, evaluation()[1] | {"few": float("nan")}) for e in range(epochs)]
        figure = figure_of(drawings.curves, history, "validation", "title")
        labels = [line.get_label() for line in figure.axes[1].lines]
        assert labels == ["validation", "validation, many", "validation, medium"]


def test_a_fingerprint_is_that_of_the_bytes_in_c_order():
    labels = np.array([3, 1, 2], dtype="<i8")
    assert fingerprint(labels) == (
        "7c4cec7a82e1aa578a08e41043044a9bfed3839e107aef17f4bf292878784259"
    )
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    paths, read_only = np.array([b"a.png", b"b/c.jpg"]), np.frombuffer(b"text", np.uint8)
    for array in (pixels.T, pixels[:, ::2], pixels[:0], labels[::-1], paths, read_only):
        assert fingerprint(array) == hashlib.sha256(array.tobytes()).hexdigest()


def test_a_fingerprint_does_not_copy_the_images():
    images = np.zeros((64, 32, 32, 3), np.uint8)
    tracemalloc.start()
    fingerprint(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes / 8
