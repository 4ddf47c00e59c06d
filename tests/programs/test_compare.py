"""tools/compare.py end to end: the default methods on a dozen images, their programs in here."""

import csv
import importlib
import json
import shlex
import shutil

import pytest
import torch

from common.models import resnet_cifar
from tests.programs import small_runs
from tests.programs.tools import make_image_folder
from tools import compare
from tools.programs import PROGRAMS, ROOT, fill
from tools.runner import Job

METHODS = ["CE", "IB", "DBM-BS", "HML + CS", "ARB-Loss"]


def train(jobs: list[Job], *, root: str, parallel: int) -> None:
    """In place of the runner: one job after the other, in this process."""
    for job in jobs:
        if job.result.is_file():
            continue
        for words in job.commands:
            program = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
            words = [*words, *shlex.split(PROGRAMS[words[1]].workers)]
            words = [str(ROOT / word) if word.endswith(".yaml") else word for word in words[2:]]
            program.main(fill(words, root=root, out=job.folder, workers=0))
        reports = job.folder.rglob("report.json")
        job.store(job, max(reports, key=lambda path: path.stat().st_mtime_ns))


@pytest.fixture
def here(tmp_path, monkeypatch):
    make_image_folder(tmp_path / "birds", [12, 6, 3], size=8, test_per_class=2)
    small_runs.small_networks(monkeypatch)
    monkeypatch.setattr(resnet_cifar, "resnet32", resnet_cifar.resnet20)
    monkeypatch.setattr(compare, "train", train)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_method_of_each_paper(here, capsys):
    flags = ["--root", "birds", "--epochs", "1", "--image_size", "8", "--batch_size", "4"]
    compare.main([*flags, "--out", "out"])
    out = capsys.readouterr().out
    table = (here / "out" / "compare.txt").read_text()
    assert table in out
    assert [line[:8].rstrip() for line in table.splitlines()[1:6]] == METHODS
    assert "3 classes of 12 to 3 training images; classes with few (< 20) 3." in table
    with open("out/compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == METHODS
    for row in rows:
        of_classes = [float(row[f"class class_00{c}"]) for c in range(3)]
        assert float(row["balanced_acc"]) == pytest.approx(sum(of_classes) / 3, abs=1e-3)
        assert float(row["worst_class"]) == min(of_classes)
        report = json.loads(next((here / row["folder"]).rglob("report.json")).read_text())
        assert report["final"]["top1"] == pytest.approx(float(row["top1"]), abs=1e-3)
    assert (here / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    (pixels,) = {report["pixels_sha256"] for report in map(read, here.rglob("report.json"))}
    assert pixels is not None
    assert "NOTE" not in table

    # The same of the finished runs, of which one is trained again.
    shutil.rmtree(here / "out" / "hmloss_hml_cs_e1_s0")
    compare.main([*flags, "--out", "out"])
    assert (here / "out" / "compare.txt").read_text() == table
    compare.main(["--runs", "out", "--out", "again"])
    again = (here / "again" / "compare.txt").read_text()
    assert sorted(line.split()[-7:] for line in again.splitlines()[1:6]) == sorted(
        line.split()[-7:] for line in table.splitlines()[1:6]
    )


def test_large_images_from_the_weights_of_a_file(here, capsys):
    """A student after its teacher, and the program that takes lists; val/ chooses for both."""
    shutil.copytree("birds/test", "birds/val")
    torch.save(small_runs.Tiny(9).state_dict(), "own.pth")
    flags = ["--root", "birds", "--large", "--arch", "resnet18", "--weights", "own.pth",
             "--epochs", "1", "--batch_size", "4", "--methods", "GML", "ARB"]  # fmt: skip
    compare.main([*flags, "--out", "out"])
    out = capsys.readouterr().out
    assert out.count("=> weights of") == 3
    lines = (here / "out" / "compare.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["GML", "ARB-Loss"]
    assert lines[4].startswith("Accuracy in percent on the test set, best epoch on the validation")
    assert not [line for line in lines if line.startswith("NOTE")]
    reports = [read(path) for path in sorted(here.rglob("report.json"))]
    assert len(reports) == 3
    for report in reports:
        assert report["settings"]["weights"] == str(here / "own.pth")
        assert (report["data"], report["test_images"], report["val_images"]) == ("birds", 6, 6)


def read(path):
    return json.loads(path.read_text())
