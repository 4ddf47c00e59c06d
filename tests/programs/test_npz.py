"""--dataset npz through every program that takes CIFAR: a small set in MedMNIST's layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from arbloss import eval as evaluation
from arbloss import train_stage1, train_stage2
from common.training.errors import UsageError
from dbm_loss.cifar import main as dbm_cifar
from dbm_loss.GML import cifar_ce, cifar_main
from hmloss.cifar_implementation import train_cifar as hmloss_cifar
from ib_loss import cifar_train, tinyimage_train
from tests.programs.arbloss_data import CONFIG, SMALL

COUNTS = [6, 5, 4, 3, 2]
NPZ = ["--dataset", "npz", "--imb_type", "none", "--epochs", "1", "--image_size", "8",
       "--batch-size", "8"]  # fmt: skip
STAGE1 = ["--cfg", str(CONFIG / "cifar10/cifar10_imb001_arbloss_mixup.yaml")]
STAGE2 = ["--cfg", str(CONFIG / "cifar10/cifar10_imb001_stage2_mislas.yaml")]
MISSING = r"npz file .*nowhere\.npz: no such file; give FILE\.npz"
ARB = [*SMALL, "dataset", "npz", "num_epochs", "1", "data_path"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Grey images, higher than wide, labels (N, 1)."""
    labels = np.repeat(np.arange(5), COUNTS)[:, None]
    images = np.random.RandomState(0).randint(0, 256, (len(labels), 10, 9)).astype(np.uint8)
    arrays = {"train_images": images, "train_labels": labels}
    for split in ("val", "test"):
        arrays |= {f"{split}_images": images[1::4], f"{split}_labels": labels[1::4]}
    path = tmp_path_factory.mktemp("npz") / "medical.npz"
    np.savez(path, **arrays, classes=np.array(list("abcde")))
    return str(path)


def ib(path):
    cifar_train.main([*NPZ, "-a", "resnet20", "--root", path])


def dbm(path):
    dbm_cifar.main([*NPZ, "--workers", "0", "--data_dir", path])


def hml(path):
    hmloss_cifar.main([*NPZ, "-a", "resnet20", "--num_runs", "1", "--root", path])


def gml(path):
    cifar_ce.main([*NPZ, "--arch", "resnet20", "--mark", "teacher", "--data", path])
    cifar_main.main(
        [*NPZ, "--arch", "resnet20", "--mark", "student", "--moco-k", "16", "--moco-dim", "8",
         "--arch_t", "resnet20", "--path_t", "outputs/npz/teacher/moco_ckpt.pth.tar",
         "--data", path]
    )  # fmt: skip


def arb(path):
    train_stage1.main([*STAGE1, *ARB, path])
    for program in (train_stage2, evaluation):
        newest = max(Path("saved").glob("*/ckps/current.pth.tar"), key=lambda p: p.stat().st_mtime)
        program.main([*STAGE2, *ARB, path, "resume", str(newest)])


@pytest.mark.parametrize(
    ("program", "reports"),
    [(ib, 1), (dbm, 1), (hml, 1), (gml, 2), (arb, 2)],
    ids=["ib", "dbm", "hml", "gml", "arb"],
)
def test_every_program_trains_on_it(program, reports, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program(path)
    found = [json.loads(file.read_text()) for file in tmp_path.rglob("report.json")]
    assert len(found) == reports
    for report in found:
        assert report["cls_num_list"] == COUNTS and report["dataset"] == "npz"
        assert len(report["final"]["cls_acc"]) == 5
    assert len({report["pixels_sha256"] for report in found}) == 1
    with pytest.raises(UsageError, match=MISSING):
        program("nowhere.npz")


AS_THEY_ARE = "--imb_type none"


@pytest.mark.parametrize(
    ("program", "argv", "whole"),
    [
        (cifar_train, ["--root"], AS_THEY_ARE),
        (cifar_train, ["--evaluate", "--resume", "ckpt.pth.tar", "--root"], AS_THEY_ARE),
        (tinyimage_train, ["--no-pretrained", "--root"], AS_THEY_ARE),
        (dbm_cifar, ["--data_dir"], AS_THEY_ARE),
        (hmloss_cifar, ["--num_runs", "1", "--root"], AS_THEY_ARE),
        (cifar_ce, ["--mark", "t", "--imb-factor", "0.01", "--data"], AS_THEY_ARE),
        (cifar_main, ["--mark", "s", "--imb-factor", "0.01", "--data"], AS_THEY_ARE),
        (train_stage1, [*STAGE1, *ARB[:-1], "imb_factor", "0.01", ARB[-1]], "imb_factor null"),
    ],
    ids=["ib", "evaluated", "tiny", "dbm", "hml", "gml_teacher", "gml_student", "arb"],
)
def test_an_imbalance_that_leaves_no_image_of_a_class_is_refused(
    program, argv, whole, path, tmp_path, monkeypatch
):
    """20 images of five classes: the long tail, which is the default, keeps 4, 1, 0, 0 and 0.

    Also to evaluate: many, medium and few would be those of another training set.
    """
    monkeypatch.chdir(tmp_path)
    data = [] if program is train_stage1 else ["--dataset", "npz", "--epochs", "1"]
    with pytest.raises(UsageError) as error:
        program.main([*data, *argv, path])
    assert str(error.value) == (
        "imbalance exp 0.01 on npz: no image of c, d, e is left; use a milder one, or "
        f"{whole}, which takes the images as they are"
    )
    assert not list(tmp_path.iterdir())


def test_the_program_of_tiny_imagenet_knows_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=MISSING):
        tinyimage_train.main([*NPZ, "-a", "resnet10", "--no-pretrained", "--root", "nowhere.npz"])
