"""Of a folder with val/ and test/ every program chooses on the one and reports the other, and its
checkpoint alone, with what is said in it, predicts what the report says."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arbloss.models import Network
from common.models import archs
from common.training import pictures
from datasets.augment import recipes
from datasets.images import read_rgb
from dbm_loss.cifar.models import build_model as dbm_cifar
from dbm_loss.large_scale import train as dbm_large
from tests.programs import small_runs
from tests.programs.tools import ROOT

CLASSES = ["class_000", "class_001", "class_002"]
NAMES = [
    name
    for name in small_runs.PROGRAMS
    if not name.startswith(("hml", "arb")) and "cmo" not in name
]


def of_table(network):
    network = dict(network)
    return archs.constructor(network.pop("arch"))(**network)


def of_arbloss(network):
    network = dict(network)
    return Network(network.pop("arch"), **network)


# The network of each program, from what its checkpoint says of it.
BUILD = {
    "dbm_loss/cifar/main.py": lambda n: dbm_cifar(n["loss_fn"], n["num_classes"], n["use_norm"]),
    "dbm_loss/large_scale/train.py": lambda n: dbm_large.build_model(
        n["loss_fn"], n["arch"], n["num_classes"], n["use_norm"]
    ),
    "arbloss/train_stage1.py": of_arbloss,
    "arbloss/train_stage2.py": of_arbloss,
}


def rebuilt(state):
    """A function from images to logits."""
    program, network = state["about"]["program"], state["about"]["network"]
    assert (ROOT / program).is_file()
    model = BUILD.get(program, of_table)(network)
    if program.startswith("arbloss"):
        for name in ("model", "classifier", "lws_model"):
            if f"state_dict_{name}" in state:
                getattr(model, name).load_state_dict(state[f"state_dict_{name}"])
        return lambda x: model.eval()(x)[0]
    weights = state["state_dict"]
    if "GML" in program:
        prefix = "encoder_q."
        ours = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        weights = ours or weights
    model.load_state_dict(weights)
    model.eval()
    return getattr(model, "classify", model)


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


def run(name: str, folder: Path) -> tuple[dict, Path]:
    """What the program returns, and the folder of its report."""
    program, argv = small_runs.command(name)
    before = set(folder.rglob("report.json"))
    last = program.main(argv)
    (report,) = set(folder.rglob("report.json")) - before
    return last[0] if isinstance(last, list) else last, report.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    add_validation(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_chosen_on_val_and_reported_on_test(here, name, monkeypatch, capsys):
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
    out = capsys.readouterr().out
    assert "evaluated on data/test, 3 images; the best epoch is chosen on data/val, 4 images" in out
    assert f"best on the validation set, epoch {best['epoch']}: top-1 {best['top1']:.3f}" in out
    assert {"curves.png", "per_class.png", "confusion.png"} <= drawn.keys()
    assert drawn["per_class.png"][-1].endswith("the best on the validation set")

    rows = table(logs / "predictions.csv")
    files = [f"data/test/{name}/0000.jpg" for name in CLASSES]
    assert [row["image"] for row in rows] == files and [row["true"] for row in rows] == CLASSES
    hits = np.mean([row["true"] == row["predicted"] for row in rows])
    assert best["top1"] == pytest.approx(100 * hits)

    # The best epoch's checkpoint alone predicts the same.
    (path,) = (
        path
        for path in (logs.parents[1] if logs.name == "logs" else here).rglob("*.pth.tar")
        if "best" in path.name or path.name == "checkpoint.pth.tar"
    )
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == best["epoch"] + 1 and state["about"]["classes"] == CLASSES
    classify, transform = rebuilt(state), recipes.from_description(state["about"]["transform"])
    with torch.inference_mode():
        images = torch.stack([transform(read_rgb(file)) for file in files])
        probability, predicted = classify(images).softmax(dim=1).max(dim=1)
    assert [CLASSES[c] for c in predicted] == [row["predicted"] for row in rows]
    shown = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(probability, shown, atol=1e-5)
