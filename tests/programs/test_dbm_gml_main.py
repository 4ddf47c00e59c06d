"""dbm_loss/GML/main.py end to end: both stages on list files, kills, several processes."""

import json
import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from common.models import archs
from common.models.heads import NormedLinear
from common.training.errors import UsageError
from dbm_loss.GML import main as program
from dbm_loss.GML import opts
from tests.programs import tools

SCRIPT = tools.ROOT / "dbm_loss" / "GML" / "main.py"
COUNTS = [9, 5, 3]
SMALL = ["--dataset", "imagenet", "--data", "data", "--num_classes", "3", "--aug", "randcls_sim",
         "--arch", "resnet18", "-b", "4", "--workers", "0", "--learning_rate", "0.01", "--moco_dim",
         "8", "--use_dbm", "--seed", "7", "-p", "1"]  # fmt: skip
TEACHER = [*SMALL, "--mark", "teacher", "--beta", "0.0", "--epochs", "2", "--moco_k", "16"]
STUDENT = [*SMALL, "--mark", "student", "--base_k", "2", "--moco_k", "24", "--epochs", "2"]
DISTILLED = [*STUDENT, "--arch_t", "resnet18", "--path_t",
             "outputs/imagenet/teacher/moco_ckpt.pth.tar"]  # fmt: skip
RUN = "outputs/imagenet/student"


class Tiny(nn.Module):
    """A network for 224 pixels that costs nothing."""

    feature_dim = 6

    def __init__(self, num_classes, use_norm):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=16)
        self.bn = nn.BatchNorm2d(6)
        self.fc = (NormedLinear if use_norm else nn.Linear)(6, num_classes)

    def forward(self, x, return_features=False):
        features = self.bn(self.conv(x)).relu().mean(dim=(2, 3))
        logits = self.fc(features)
        return (logits, features) if return_features else logits


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(archs, "constructor", lambda arch: Tiny)
    monkeypatch.setitem(opts.NUM_CLASSES, "imagenet", 3)  # these lists have three classes


def make_lists(folder):
    """``data/`` with images, and the two list files of ImageNet-LT where the original has them."""
    root = tools.make_image_folder(folder / "data", COUNTS, test_per_class=2, size=48)
    lists = folder / "imagenet_inat/data/ImageNet_LT"
    lists.mkdir(parents=True)
    for split in ("train", "test"):
        files = sorted((root / split).rglob("*.jpg"))
        lines = [f"{file.relative_to(root)} {int(file.parent.name[-3:])}" for file in files]
        (lists / f"ImageNet_LT_{split}.txt").write_text("\n".join(lines))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_lists(tmp_path)
    return tmp_path


@pytest.fixture
def finished(here):
    """A finished teacher and its student."""
    program.main(TEACHER)
    program.main(DISTILLED)
    return here


def test_teacher_then_student(finished):
    run = finished / RUN
    report = json.loads((run / "report.json").read_text())
    assert report["cls_num_list"] == COUNTS and report["epochs"] == 2
    assert report["settings"]["margin_norm"] == "rarest"  # not the published list
    assert report["train_set"] == "imagenet_inat/data/ImageNet_LT/ImageNet_LT_train.txt"
    assert pd.read_csv(run / "metrics.csv")["lr"].tolist() == pytest.approx([0.0075, 0.0025])
    log = (run / "student.log").read_text()
    assert log.count("Epoch: [0][") == log.count("Epoch: [1][") == 4
    assert log.count("\tTime  ") == 8 + 2 * 2 and log.count("Many_acc: ") == 2
    assert (run / "command.txt").read_text().startswith("--dataset imagenet --data data")
    weight = np.loadtxt(run / "cls_weight.txt")
    np.testing.assert_allclose(weight, np.asarray(COUNTS) / sum(COUNTS), rtol=1e-6)
    assert len(list((run / "tb_logs").glob("events.*"))) == 1

    teacher = torch.load(finished / "outputs/imagenet/teacher/moco_ckpt.pth.tar", weights_only=True)
    student = torch.load(run / "moco_ckpt.pth.tar", weights_only=True)
    assert {"epoch", "arch", "acc", "state_dict", "criterion", "optimizer"} <= student.keys()
    for key, value in teacher["state_dict"].items():
        if key.startswith("encoder_q."):
            assert torch.equal(student["state_dict"][key.replace("_q.", "_k.", 1)], value)
    written = student["state_dict"]["queue_i"]
    assert 0 < int((written >= 0).sum()) <= 24
    assert torch.equal(teacher["state_dict"]["queue_i"], torch.arange(-16, 0))  # beta 0: no keys
    assert (run / "moco_ckpt.best.pth.tar").is_file()

    result = program.main([*DISTILLED, "--evaluate", "--resume", f"{RUN}/moco_ckpt.pth.tar"])
    for key in ("top1", "top5", "loss", "few"):
        assert result[key] == pytest.approx(report["final"][key], rel=1e-6)


def test_a_run_is_not_overwritten_by_mistake(here):
    program.main([*TEACHER, "--epochs", "1"])
    with pytest.raises(UsageError, match=r"teacher: holds a run already; go on with --resume auto"):
        program.main(TEACHER)
    assert program.main([*TEACHER, "--resume", "auto"])["epoch"] == 1
    assert program.main([*TEACHER, "--epochs", "1", "--overwrite"])["epoch"] == 0


@pytest.mark.parametrize("every", ["0", "1"])
def test_killed_and_resumed_is_unbroken_bit_for_bit(here, tmp_path, every):
    """Without a teacher, so that the order of the keys is drawn anew in each step."""
    command = [*STUDENT, "--save_every", every, "--workers", "1"]
    whole, killed = ([*command, "--root_path", name] for name in ("whole", "killed"))
    program.main(whole)
    tools.run_with_kills([SCRIPT, *killed], here, kills=4, max_lines=13, seed=2)
    paths = [here / name / "imagenet/student" for name in ("whole", "killed")]
    for key in ("state_dict", "criterion"):
        tools.assert_same_weights(*(path / "moco_ckpt.pth.tar" for path in paths), key=key)
    rows = [
        pd.read_csv(path / "metrics.csv").drop(columns=["images_per_s", "epoch_s"])
        for path in paths
    ]
    pd.testing.assert_frame_equal(*rows)
    logs = [(path / "student.log").read_text() for path in paths]
    assert logs[0].count("\n") == logs[1].count("\n")


def test_the_checkpoint_within_an_epoch_is_a_place_to_go_on_from(here, monkeypatch):
    steps = []
    step = torch.optim.SGD.step

    def stop_after_six(self, *args, **kwargs):
        if len(steps) == 6:
            raise KeyboardInterrupt
        steps.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", stop_after_six)
    with pytest.raises(KeyboardInterrupt):
        program.main([*STUDENT, "--save_every", "2"])
    state = torch.load(f"{RUN}/moco_ckpt.pth.tar", weights_only=True)
    assert (state["epoch"], state["step"], float(state["sums"][3])) == (1, 2, 8.0)
    steps[:] = [1] * 4  # two steps are left, a third one stops the test
    assert program.main([*STUDENT, "--save_every", "2", "--resume", "auto"])["epoch"] == 1


def test_image_folders_and_generated_images(here):
    row = program.main([*STUDENT, "--dataset", "imagefolder", "--num_classes", "3"])
    assert row["epoch"] == 1
    row = program.main([*STUDENT, "--fake_data", "5", "--overwrite", "--amp", "bf16"])
    assert np.isfinite(row["train_loss"])


def test_bad_input_is_one_line_before_training(here):
    cases = [
        (["--list_dir", "data"], "no ImageNet_LT_train.txt in data"),
        (["--data", "nowhere"], "nowhere"),
        (["--path_t", "nowhere", "--arch_t", "resnet18"], "--path_t nowhere: no such file"),
        (["-b", "18"], "--batch-size 18: the training set has only 17 images"),
        (["--moco_k", "5"], "--base_k 2: a queue of 5 gives 3 classes at most 1 slots"),
        (["--feat_dim", "2048"], "--feat_dim 2048: the network has 6 features"),
        (["--resume", "nowhere"], "--resume nowhere: no such file"),
    ]
    for argv, words in cases:
        with pytest.raises(UsageError, match=words):
            program.main([*STUDENT, *argv])


@pytest.mark.parametrize("torchrun", [True, False])
def test_one_process_on_a_machine_becomes_one_per_gpu(here, monkeypatch, torchrun):
    """``--multiprocessing_distributed`` as if there were two GPUs; forked, to keep the tiny one."""
    parent, world = os.getpid(), torch.multiprocessing
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if os.getpid() == parent else 0)
    monkeypatch.setattr(world, "spawn", partial(world.start_processes, start_method="fork"))
    if torchrun:  # WORLD_SIZE and RANK count machines
        port = tools.free_port()
        for key, value in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_WORLD_SIZE", 1),
                           ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):  # fmt: skip
            monkeypatch.setenv(key, str(value))
    flags = [*STUDENT, "--epochs", "1", "--batch_size", "17"]
    assert program.main([*flags, "--multiprocessing_distributed"]) is None
    for key in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(key, raising=False)
    final = json.loads((here / RUN / "report.json").read_text())["final"]
    alone = program.main([*flags, "--evaluate", "--resume", f"{RUN}/moco_ckpt.pth.tar"])
    for key in ("top1", "top5", "few"):
        assert final[key] == pytest.approx(alone[key], rel=1e-6)
    assert final["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # float32
    state = torch.load(f"{RUN}/moco_ckpt.pth.tar", weights_only=True)["state_dict"]
    written = state["queue_i"][state["queue_i"] >= 0]
    # int(17 / 2) images in each process: one step enters 16 of the 17, as far as there are slots.
    slots = torch.bincount(state["queue_l"], minlength=3)
    least = sum(min(n, int(s)) for n, s in zip(COUNTS, slots, strict=True)) - 1
    assert len(written) == len(set(written.tolist())) >= least
