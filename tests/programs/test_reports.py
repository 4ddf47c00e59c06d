"""Of a folder with val/ and test/ every program chooses on the one and reports the other, and its
checkpoint alone, with what is said in it, predicts what the report says."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.training import pictures
from tests.programs import small_runs
from tools import predict

CLASSES = ["class_000", "class_001", "class_002"]
RUNS = [name for name in small_runs.PROGRAMS if "cmo" not in name]
FOLDERS = [name for name in RUNS if not name.endswith(("inat", "isic"))]


def add_validation(root: Path) -> None:
    """``root/val``, with images of two of the three classes."""
    for label, name in enumerate(CLASSES[:2]):
        (root / "val" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.full((8, 8, 3), 90 * label + 30 * i, np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{i}.jpg")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(name: str, folder: Path, *flags: str) -> tuple[dict, Path]:
    """What the program returns, and the folder of its report."""
    program, argv = small_runs.command(name)
    argv = [*argv, *flags]
    before = set(folder.rglob("report.json"))
    last = program.main(argv)
    (report,) = set(folder.rglob("report.json")) - before
    return last[0] if isinstance(last, list) else last, report.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FOLDERS)
def test_chosen_on_val_and_reported_on_test(here, name, monkeypatch, capsys):
    add_validation(here / "data")
    drawn = {}
    monkeypatch.setattr(pictures, "picture", lambda path, _, *args: drawn.update({path.name: args}))
    last, logs = run(name, here)
    report = json.loads((logs / "report.json").read_text())
    best = report["best"]
    assert (report["test_set"], report["val_set"]) == ("data/test", "data/val")
    assert report["reported"] == {"epoch": best["epoch"], "which": "best", "split": "test"}
    assert report["final"]["top1"] == pytest.approx(last["top1"]) and report["classes"] == CLASSES
    history = [row["balanced_acc"] for row in table(logs / "metrics.csv")]
    assert max(map(float, history)) == report["validation"]["best"]["balanced_acc"]
    for which in ("final", "best"):  # there are no images of the third class in val/
        assert report["validation"][which]["cls_acc"][2] is None
        assert report[which]["cls_acc"][2] is not None
    out, err = capsys.readouterr()
    assert "evaluated on data/test, 3 images; the best epoch is chosen on data/val, 4 images" in out
    assert f"best on the validation set, epoch {best['epoch']}: top-1 {best['top1']:.3f}" in out
    assert {"curves.png", "per_class.png", "confusion.png"} <= drawn.keys()
    assert drawn["per_class.png"][-1].endswith("the best on the validation set")

    rows = table(logs / "predictions.csv")
    files = [f"data/test/{name}/0000.jpg" for name in CLASSES]
    assert [row["image"] for row in rows] == files and [row["true"] for row in rows] == CLASSES
    hits = np.mean([row["true"] == row["predicted"] for row in rows])
    assert best["top1"] == pytest.approx(100 * hits)

    (path,) = (
        path
        for path in (logs.parent if logs.name == "logs" else here).rglob("*.pth.tar")
        if "best" in path.name or path.name == "checkpoint.pth.tar"
    )
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == best["epoch"] + 1 and state["about"]["classes"] == CLASSES

    # A line names the set that it is about, where there are two.
    if name.startswith(("ib", "dbm_large", "hml")):
        assert "val Results: Prec@1 " in out
        program, argv = small_runs.command(name)
        program.main([*argv, "--evaluate", "--resume", str(path)])
        out = capsys.readouterr().out
        assert f"test Results: Prec@1 {best['top1']:.3f}" in out and "val Results" not in out
    if name.startswith("dbm_cifar"):
        score = report["validation"]["best"]["balanced_acc"]
        assert f"best bAcc (val):\t{score}\n" in err
        assert err.count("[Val  ]") == 3 and "[Test ]" not in err

    # The best epoch's checkpoint alone predicts the same.
    predict.main([str(path), "data/test", "--out", "out"])
    said = table(here / "out" / "predictions.csv")
    assert [row["path"] for row in said] == files and [row["true"] for row in said] == CLASSES
    assert [row["class"] for row in said] == [row["predicted"] for row in rows]
    evaluation = json.loads((here / "out" / "evaluation.json").read_text())
    assert evaluation["images"] == 3
    for name in ("top1", "balanced_acc", "macro_f1", "few"):
        assert evaluation[name] == pytest.approx(best[name], abs=1e-4, nan_ok=True), name
    for name in ("per_class.csv", "confusion.csv"):
        assert (here / "out" / name).read_text() == (logs / name).read_text()
    assert {"per_class.png", "confusion.png"} <= drawn.keys()

    # With the same probabilities: those of the scaled cosines, where the loss scales them.
    probabilities = [[float(row["probability"]) for row in rows_of] for rows_of in (rows, said)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith("isic")])
def test_a_part_of_the_training_images_may_choose(here, name, monkeypatch, capsys):
    """Of 7, 4 and 2 images a quarter: 2, 1 and 1."""
    monkeypatch.setattr(pictures, "picture", lambda *args: None)
    key = "val_fraction" if name.startswith("arb") else "--val_fraction"
    last, logs = run(name, here, key, "0.25")
    report = json.loads((logs / "report.json").read_text())
    assert report["cls_num_list"] == [5, 3, 1]
    assert (report["val_set"], report["val_images"]) == ("0.25 of the training images", 4)
    split = "val" if name == "hml_inat" else "test"  # as the list is called
    assert report["reported"]["split"] == split and report["reported"]["which"] == "best"
    assert (
        "the best epoch is chosen on 0.25 of the training images, 4 images"
        in capsys.readouterr().out
    )
    assert report["validation"]["best"]["top1"] in (0, 25, 50, 75, 100)
    assert len(table(logs / "predictions.csv")) == report["test_images"] == 3
    if name != "hml_inat":  # a row of a summary
        assert last["top1"] == pytest.approx(report["final"]["top1"])
