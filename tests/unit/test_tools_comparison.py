"""Reports side by side: figures, labels, table, CSV and picture, with numbers worked out here."""

import json
import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.training.errors import UsageError
from tools import comparison
from tools.comparison import csv_rows, group, in_one_order, read_run, read_runs, text_table

CLASSES = ["cat", "dog", "emu"]
COUNTS = [120, 50, 4]


def write(folder, cls_acc, *, classes=CLASSES, counts=COUNTS, seed=0, **more):
    """A report in ``folder``, its last epoch with these class accuracies."""
    row = {"epoch": 1, "top1": 70.0, "macro_f1": 60.0, "many": 1.0, "cls_acc": cls_acc}
    report = {
        "final": row, "best": {**row, "top1": 71.0}, "unit": "percent, of all", "classes": classes,
        "cls_num_list": counts, "seed": seed, "settings": {"lr": 0.1, "seed": seed},
        "program": "ib_loss/cifar_train.py", "method": "IB", "data": "pets",
        "pixels_sha256": "a", "evaluated": "test",
        "reported": {"epoch": 1, "which": "final", "split": "test"}, **more,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder / "report.json"


def test_the_figures_of_a_report(tmp_path):
    run = read_run(write(tmp_path / "a", [80.0, 50.0, 20.0]))
    assert (run.method, run.paper, run.seed, run.epoch) == ("IB", "ib_loss", 0, "last epoch")
    assert run.figures == {
        "balanced_acc": 50.0, "top1": 70.0, "many": 80.0, "medium": 50.0, "few": 20.0,
        "macro_f1": 60.0, "worst_class": 20.0,
    }  # fmt: skip
    assert read_run(tmp_path / "a/report.json", "IB+CB", epoch="best").figures["top1"] == 71.0
    # A class without test images counts nowhere.
    run = read_run(write(tmp_path / "b", [80.0, None, 20.0]))
    assert run.figures["balanced_acc"] == 50.0 and math.isnan(run.figures["medium"])
    text = text_table(group([run]))
    assert "\n1 of them has no test images and counts in no figure (dog).\n" in text


def test_reports_of_earlier_versions(tmp_path):
    """Fractions of the classes, and nothing of program, method or names."""
    row = {"top1": 70.0, "cls_acc": [0.8, 0.5, 0.2]}
    report = {"final": row, "best": row, "cls_num_list": COUNTS, "settings": {"dataset": "npz"},
              "command": "python ib_loss/cifar_train.py --dataset npz"}  # fmt: skip
    (tmp_path / "ib").mkdir()
    (tmp_path / "ib" / "report.json").write_text(json.dumps(report))
    run = read_run(tmp_path / "ib" / "report.json")
    assert (run.method, run.paper, run.classes, run.data) == ("ib", "ib_loss", [], "npz")
    named = read_run(write(tmp_path / "new", [80.0, 50.0, 20.0]))
    assert [one.classes for one in in_one_order([run, named])] == [CLASSES, CLASSES]
    assert in_one_order([run])[0].classes == ["0", "1", "2"]
    assert run.figures["balanced_acc"] == pytest.approx(50) and math.isnan(run.figures["macro_f1"])


def test_with_validation_images_the_best_epoch_counts(tmp_path):
    path = write(tmp_path / "a", [80.0, 50.0, 20.0], validation={},
                 reported={"epoch": 0, "which": "best", "split": "test"})  # fmt: skip
    run = read_run(path)
    assert run.epoch == "best epoch on the validation set" and run.figures["top1"] == 71.0
    text = text_table(group([run]))
    assert "looks better" not in text
    assert "looks better than it is" in text_table(group([read_run(write(
        tmp_path / "b", [80.0, 50.0, 20.0]), epoch="best")]))  # fmt: skip


def test_seeds_are_one_line(tmp_path):
    runs = [
        read_run(write(tmp_path / str(seed), [80.0, 50.0, 20.0 + 30 * seed], seed=seed))
        for seed in range(2)
    ]
    runs.append(read_run(write(tmp_path / "ce", [90.0, 30.0, 0.0], method="CE")))
    table = text_table(group(runs)).splitlines()
    assert table[:3] == [
        "method  paper    seeds    balanced       top-1        many      medium          few"
        "    macro F1  worst class",
        "IB      ib_loss      2  55.0 ± 7.1  70.0 ± 0.0  80.0 ± 0.0  50.0 ± 0.0  35.0 ± 21.2"
        "  60.0 ± 0.0  35.0 ± 21.2",
        "CE      ib_loss      1        40.0        70.0        90.0        30.0          0.0"
        "        60.0          0.0",
    ]
    assert "last epoch, mean ± standard deviation over the seeds" in table[4]
    assert table[5] == (
        "3 classes of 120 to 4 training images; classes with many (> 100 images) 1, medium (20 to "
        "100) 1, few (< 20) 1."
    )
    rows = csv_rows(group(runs))
    assert [(row["method"], row["seed"], row["class emu"]) for row in rows] == [
        ("IB", 0, 20.0), ("IB", 1, 50.0), ("CE", 0, 0.0),
    ]  # fmt: skip
    assert rows[1]["balanced_acc"] == 60.0


def test_methods_that_trained_longer_than_others_are_named(tmp_path):
    lengths = {"CE": 90, "HML": 200, "BCL": 90, "old": None}
    runs = [
        read_run(write(tmp_path / name, [80.0, 50.0, 20.0], method=name, epochs=epochs))
        for name, epochs in lengths.items()
    ]
    found = text_table(group(runs)).splitlines()
    assert found[-2:] == [
        "Epochs trained: 90 of CE, BCL; 200 of HML.",
        "One run each: small differences may be chance, more --seeds tell.",
    ]
    for same in (runs[::2], runs[3:]):
        assert "Epochs trained" not in text_table(group(same))


def test_labels_tell_runs_apart(tmp_path):
    accuracy = [80.0, 50.0, 20.0]
    of_ours = {"program": "dbm_loss/cifar/main.py", "method": "CE"}
    runs = [
        read_run(write(tmp_path / "0", accuracy)),
        read_run(write(tmp_path / "1", accuracy, settings={"lr": 0.2, "seed": 0})),
        read_run(write(tmp_path / "2", accuracy, method="CE")),
        read_run(write(tmp_path / "3", accuracy, **of_ours)),
    ]
    labels = [one.label for one in group(runs)]
    assert labels == ["IB, lr 0.1", "IB, lr 0.2", "CE (ib_loss)", "CE (dbm_loss)"]
    # Two programs of a paper have few flags in common.
    large = {"program": "dbm_loss/large_scale/train.py", "method": "CE", "settings": {"wd": 0}}
    runs = [runs[3], read_run(write(tmp_path / "4", accuracy, **large))]
    assert [one.label for one in group(runs)] == ["CE (cifar/main)", "CE (large_scale/train)"]


def test_classes_meet_by_their_names(tmp_path):
    """arbloss sorts the classes of lists by size."""
    first = read_run(write(tmp_path / "a", [80.0, 50.0, 20.0]))
    other = write(tmp_path / "b", [21.0, 81.0, 51.0], classes=["emu", "cat", "dog"],
                  counts=[4, 120, 50])  # fmt: skip
    ordered = in_one_order([first, read_run(other)])
    assert ordered[1].cls_acc.tolist() == [81.0, 51.0, 21.0] and ordered[1].cls_num_list == COUNTS


def test_numbers_of_classes_stand_for_their_names(tmp_path):
    """Lists often lack names; arbloss sorts their classes by size."""
    named = read_run(write(tmp_path / "a", [80.0, 50.0, 20.0], counts=[50, 4, 120]))
    numbered = write(tmp_path / "b", [21.0, 81.0, 51.0], classes=["2", "0", "1"],
                     counts=[120, 50, 4])  # fmt: skip
    for runs in ([read_run(numbered), named], [named, read_run(numbered)]):
        ordered = {run.folder.name: run for run in in_one_order(runs)}
        assert ordered["b"].cls_acc.tolist() == [81.0, 51.0, 21.0]
        assert ordered["b"].classes == ordered["a"].classes == CLASSES
    assert in_one_order([read_run(numbered)])[0].classes == ["2", "0", "1"]


def test_all_runs_are_shown_at_the_same_kind_of_epoch(tmp_path):
    chosen = {"validation": {}, "reported": {"epoch": 0, "which": "best", "split": "test"}}
    paths = [write(tmp_path / "a", [80.0, 50.0, 20.0], **chosen)]
    assert read_runs([(paths[0], "", "")])[0].epoch == "best epoch on the validation set"
    paths.append(write(tmp_path / "b", [80.0, 50.0, 20.0]))
    runs = read_runs([(path, "", "") for path in paths])
    assert [run.epoch for run in runs] == ["last epoch"] * 2
    assert [run.figures["top1"] for run in runs] == [70.0] * 2
    runs = read_runs([(path, "", "") for path in paths], "best")
    assert [run.epoch for run in runs] == [
        "best epoch on the validation set", "best epoch on the test set",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"classes": ["cat", "dog", "owl"]}, "b: other classes than in .*a .differs in 'emu'"),
        ({"counts": [120, 50, 5]}, "b: trained on 175 images, other than the 174 of "),
        ({"evaluated": "val"}, "b: evaluated on the validation set, .*a on the test set"),
    ],
)
def test_other_data_are_refused(tmp_path, more, message):
    first = read_run(write(tmp_path / "a", [80.0, 50.0, 20.0]))
    with pytest.raises(UsageError, match=message):
        in_one_order([first, read_run(write(tmp_path / "b", [80.0, 50.0, 20.0], **more))])


def test_other_pixels_are_said(tmp_path):
    runs = [
        read_run(write(tmp_path / name, [80.0, 50.0, 20.0], method=name, pixels_sha256=name))
        for name in "ab"
    ]
    assert "NOTE: they were not all trained on the same images." in text_table(group(runs))


def test_other_images_are_said_whatever_identifies_them(tmp_path):
    """Names where images are read as needed; numbers of labels mean the order of the classes."""
    first = read_run(write(tmp_path / "a", [80.0, 50.0, 20.0], train_files_sha256="a",
                           test_files_sha256="b", test_labels_sha256="c"))  # fmt: skip
    trained = "NOTE: they were not all trained on the same images."
    evaluated = "NOTE: they were not all evaluated on the same images."
    for i, (more, notes) in enumerate((
        ({"train_files_sha256": "a", "test_files_sha256": "b", "test_labels_sha256": "c"}, []),
        ({"train_files_sha256": "x"}, [trained]),
        ({"test_files_sha256": "x"}, [evaluated]),
        ({"test_labels_sha256": "x"}, [evaluated]),
        ({"test_labels_sha256": "x", "classes": CLASSES[::-1], "counts": COUNTS[::-1]}, []),
        ({"test_list_sha256": "x", "train_list_sha256": "x"}, []),
        ({"pixels_sha256": "x", "test_files_sha256": "x"}, [trained, evaluated]),
    )):  # fmt: skip
        other = read_run(write(tmp_path / str(i), [80.0, 50.0, 20.0], method="CE", **more))
        lines = text_table(group(in_one_order([first, other]))).splitlines()
        assert [line for line in lines if line.startswith("NOTE")] == notes, more


def test_a_run_that_is_named_twice_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", [80.0, 50.0, 20.0])
    assert len(comparison.find_reports(["a", str(tmp_path), "a"])) == 1


def test_what_is_no_report_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"^--runs \S+: no report.json in it or below"):
        comparison.find_reports([str(tmp_path)])
    (tmp_path / "report.json").write_text('{"final": {}}')
    with pytest.raises(UsageError, match=r"report.json: not the report of a run \(KeyError: "):
        read_run(comparison.find_reports([str(tmp_path)])[0])


@pytest.mark.parametrize("number", [3, 60])
def test_a_line_a_method_over_the_class_sizes(tmp_path, number):
    """Largest class first, the mean of the seeds in their band."""
    names = [f"class {c}" for c in range(number)]
    counts = list(range(1, number + 1))
    runs = []
    scores = (
        ("CE", 0, 40.0),
        ("IB", 0, 50.0),
        ("IB", 1, 70.0),
        ("HML", 0, 60.0),
        ("HML", 1, 100.0),
    )
    for method, seed, value in scores:
        accuracy = [value] * (number - 1) + [90.0]
        path = tmp_path / f"{method}{seed}"
        runs.append(read_run(write(
            path, accuracy, method=method, seed=seed, classes=names, counts=counts
        )))  # fmt: skip
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    comparison.draw(figure, group(runs), "pets")
    figure.canvas.draw()
    upper, lower = figure.axes
    ce, ib, _ = upper.get_lines()
    if number == 3:
        assert ce.get_ydata().tolist() == [90.0, 40.0, 40.0]
        assert ib.get_ydata().tolist() == [90.0, 60.0, 60.0]
        band = upper.collections[1].get_paths()[0].vertices
        assert band[:, 1].max() == 90.0 and np.isclose(band[:, 1].min(), 60 - np.sqrt(200))
        band = upper.collections[2].get_paths()[0].vertices
        assert band[:, 1].max() == 100.0  # not 80 + sqrt(800)
        assert [label.get_text() for label in lower.get_xticklabels()] == names[::-1]
    legend = [text.get_text() for text in upper.get_legend().get_texts()]
    assert legend[0].startswith("CE: ") and legend[1].startswith("IB: ") and "±" in legend[1]
    assert upper.get_ylabel() == "test accuracy (%)" and figure.get_suptitle() == "pets"


def test_every_method_of_a_long_legend_is_in_the_picture(tmp_path):
    """Nothing is cut off, and no two lines look the same."""
    runs = [
        read_run(
            write(tmp_path / str(i), [80.0, 50.0, 20.0], method=f"method {i}, " + "word " * 15)
        )
        for i in range(30)
    ]
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    comparison.draw(figure, group(runs), "pets")
    figure.canvas.draw()
    upper = figure.axes[0]
    for part in (upper, upper.get_legend(), *figure.legends):
        box = part.get_window_extent()
        assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1)
    assert upper.get_window_extent().height > 150
    looks = [(x.get_color(), x.get_marker(), x.get_linestyle()) for x in upper.get_lines()]
    assert len(set(looks)) == 30
    sizes = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sizes == ["many (> 100 images)", "medium (20 to 100)", "few (< 20)"]
