"""dbm_loss/GML/cifar_ce.py and cifar_main.py end to end: teacher, then student."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from common.training.errors import UsageError
from dbm_loss.GML import cifar_ce, cifar_main
from tests.programs import tools

GML = tools.ROOT / "dbm_loss" / "GML"
COUNTS = [40, 24, 12, 6]
SMALL = ["--dataset", "imagefolder", "--imb_type", "none", "--image_size", "16", "--arch",
         "resnet20", "--seed", "3"]  # fmt: skip
TEACHER = [*SMALL, "--mark", "teacher", "--use_dbm", "-p", "2", "-b", "40"]
STUDENT = [*SMALL, "--mark", "student", "--use_dbm", "-p", "1", "-b", "20", "--moco-k", "64",
           "--moco-dim", "8", "--arch_t", "resnet20"]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tools.make_image_folder(tmp_path_factory.mktemp("images"), COUNTS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    """A finished teacher of two epochs and its finished student of two."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = ["--data", str(images), "--epochs", "2"]
        cifar_ce.main([*TEACHER, *flags])
        path = "outputs/imagefolder/teacher/moco_ckpt.pth.tar"
        cifar_main.main([*STUDENT, *flags, "--path_t", path])
    return folder / "outputs" / "imagefolder"


@pytest.fixture
def student(finished, images):
    """Flags of the student, wherever it runs."""
    path = finished / "teacher/moco_ckpt.pth.tar"
    return [*STUDENT, "--data", str(images), "--path_t", str(path)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("mark", "lines"), [("teacher", 1), ("student", 4)])
def test_a_run_leaves_log_report_pictures_and_events(finished, mark, lines):
    run = finished / mark
    report = json.loads((run / "report.json").read_text())
    assert report["cls_num_list"] == COUNTS
    assert report["epochs"] == 2 and report["seed"] == 3 and report["settings"]["use_dbm"]
    assert {"top1", "top5", "many", "medium", "few", "cls_acc"} <= report["final"].keys()
    metrics = pd.read_csv(run / "metrics.csv")
    lr = 0.15 if mark == "teacher" else 0.1
    assert metrics["lr"].tolist() == pytest.approx([lr / 5, lr * 2 / 5])
    assert np.isfinite(metrics["train_loss"]).all()
    log = (run / f"{mark}.log").read_text()
    assert log.count("Epoch: [0][") == log.count("Epoch: [1][") == lines
    assert log.count(" * Acc@1 ") == log.count("Many_acc: ") == 2
    assert len(list((run / "tb_logs").glob("events.*"))) == 1
    assert (run / "confusion.png").is_file()


def test_checkpoints_hold_what_the_originals_did_and_the_temperature(finished):
    teacher = torch.load(finished / "teacher/moco_ckpt.pth.tar", weights_only=True)
    assert {"epoch", "arch", "state_dict", "optimizer"} <= teacher.keys()
    assert teacher["epoch"] == 2 and "fc.weight" in teacher["state_dict"]
    assert (finished / "teacher/moco_ckpt_0002.pth.tar").is_file()  # every --print-freq epochs
    assert not (finished / "teacher/moco_ckpt_0001.pth.tar").is_file()
    student = torch.load(finished / "student/moco_ckpt.pth.tar", weights_only=True)
    weights = student["state_dict"]
    assert list(weights)[:4] == ["queue_k", "queue_l", "queue_i", "queue_ptr"]
    for key, value in teacher["state_dict"].items():
        assert torch.equal(weights[f"encoder_k.{key}"], value), key
    assert float(student["criterion"]["log_T_c__no_wd__"]) != pytest.approx(np.log(0.1), abs=1e-6)
    assert (weights["queue_i"] >= 0).any()  # entries were written, with the images they are of
    # Two of the 64 entries for each class, the other 56 by the sizes of the classes.
    assert weights["queue_l"].bincount().tolist() == [30, 18, 10, 6]


def test_the_margin_changes_the_digits_run(here):
    losses = [
        cifar_ce.main([*SMALL, "--dataset", "digits", "--imb_type", "exp", "--imb-factor", "0.05",
                       "-b", "128", "--mark", f"m{len(margin)}", "--epochs", "1",
                       *margin])["train_loss"]
        for margin in ([], ["--use_dbm"])
    ]  # fmt: skip
    assert losses[0] < losses[1]


@pytest.mark.parametrize("mark", ["teacher", "student"])
def test_evaluate_repeats_the_checkpoints_figures(finished, images, here, student, mark):
    path = str(finished / mark / "moco_ckpt.pth.tar")
    # What classifies is evaluated, whatever the queue, the training batch and the teacher.
    program, flags = cifar_main, [*student[:-2], "--arch_t", "resnet56", "--moco-k", "32"]
    if mark == "teacher":
        program, flags = cifar_ce, [*TEACHER, "--data", str(images)]
    result = program.main([*flags, "-b", "1000", "--evaluate", "--resume", path])
    final = json.loads((finished / mark / "report.json").read_text())["final"]
    for key in ("top1", "top5", "ece", "loss", "few"):
        assert result[key] == pytest.approx(final[key], rel=1e-6)


@pytest.mark.parametrize(("loader", "teacher"), [("device", True), ("workers", False)])
def test_killed_and_resumed_is_unbroken_bit_for_bit(student, tmp_path, loader, teacher):
    command = [GML / "cifar_main.py", *student, "--epochs", "4", "--loader", loader, "-j", "2"]
    if not teacher:
        at = command.index("--path_t")
        del command[at : at + 2]
    for kind in ("killed", "whole"):
        (tmp_path / kind).mkdir()
    tools.run_with_kills(command, tmp_path / "killed", kills=3, max_lines=36, seed=11)
    tools.run_to_the_end(command, tmp_path / "whole")
    both = [tmp_path / kind / "outputs/imagefolder/student" for kind in ("killed", "whole")]
    for key in ("state_dict", "criterion"):
        tools.assert_same_weights(*(run / "moco_ckpt.pth.tar" for run in both), key=key)
    metrics = [
        pd.read_csv(run / "metrics.csv").drop(columns=["images_per_s", "epoch_s"]) for run in both
    ]
    pd.testing.assert_frame_equal(*metrics)
    logs = [(run / "student.log").read_text().splitlines() for run in both]
    assert len(logs[0]) == len(logs[1])


def test_a_checkpoint_of_the_original_goes_on_without_its_temperature(
    finished, here, student, capsys
):
    state = torch.load(finished / "student/moco_ckpt.pth.tar", weights_only=True)
    original = {key: state[key] for key in ("epoch", "arch", "state_dict", "optimizer")}
    torch.save(original, here / "original.pth.tar")
    row = cifar_main.main([*student, "--epochs", "3", "--resume", "original.pth.tar"])
    assert row["epoch"] == 2
    assert "holds no temperature, it starts at --moco-t" in capsys.readouterr().out


def test_every_combination_of_terms_trains_on_generated_images(here):
    cases = [
        ["--beta", "0"],
        ["--beta", "0", "--alpha", "0"],
        ["--base_k", "0"],
        ["--mlp", "no", "--normalize", "no"],
    ]
    for terms in cases:
        row = cifar_main.main(["--dataset", "cifar100", "--fake_data", "12", "--arch", "resnet20",
                               "--mark", "m", "--epochs", "1", "--warmup_epochs", "0",
                               "--lr", "0.01", "--overwrite", *terms])  # fmt: skip
        assert np.isfinite(row["train_loss"])
        assert (here / "outputs/cifar100/m/moco_ckpt.pth.tar").is_file()


def test_bad_input_is_one_line_before_training(here, student, monkeypatch):
    cases = [
        (["--path_t", "nowhere.pth.tar"], "--path_t nowhere.pth.tar: no such file"),
        (
            ["--num_classes", "100"],
            "^--num_classes 100: imagefolder .* has 4 classes; leave it out$",
        ),
        (["--base_k", "17"], "--base_k 17: a queue of 64 gives 4 classes at most 16 slots"),
        (["-b", "1000"], "--batch-size 1000: the training set has only 82 images"),
        (["--resume", "nowhere"], "--resume nowhere: no such file"),
        (["--dataset", "digits", "--imb_type", "exp", "--imb-factor", "0.001"], "the loss divides"),
        (["--dataset", "cifar10", "--image_size", "32", "--data", "empty"], "cifar-10-batches-py"),
        (["--dataset", "cifar10"], "^image_size 16: images of cifar10 have 32x32 pixels"),
    ]
    for argv, words in cases:
        monkeypatch.setattr("urllib.request.urlopen", _offline)
        with pytest.raises(UsageError, match=words):
            cifar_main.main([*student, *argv])


def _offline(*_, **__):
    raise OSError("no network")


def test_bad_usage_ends_with_exit_code_2(tmp_path):
    done = tools.run([GML / "cifar_main.py", "--mark", "m"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("cifar_main.py: error: --imb-factor: say smallest / largest")
    assert done.stderr.count("\n") == 1


def test_two_processes_give_the_figures_of_one(tmp_path, here, student):
    command = [GML / "cifar_main.py", *student, "--epochs", "1"]
    tools.run_to_the_end(command, tmp_path, processes=2)
    run = tmp_path / "outputs/imagefolder/student"
    report = json.loads((run / "report.json").read_text())
    path = str(run / "moco_ckpt.pth.tar")
    alone = cifar_main.main([*student, "--evaluate", "--resume", path])
    for key in ("top1", "top5", "few"):
        assert report["final"][key] == pytest.approx(alone[key], rel=1e-6)
    assert report["final"]["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # float32
    queue = torch.load(path, weights_only=True)["state_dict"]["queue_i"]
    assert int((queue >= 0).sum()) > 20  # of both halves of the four batches of 20
