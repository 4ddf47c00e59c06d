"""dbm_loss/large_scale/{train,main}.py end to end."""

import json
import shlex
import shutil

import pandas as pd
import pytest
import torch

from common.training.errors import NonFiniteLoss, UsageError
from dbm_loss.large_scale import train
from tests.programs import small_runs, tools
from tests.unit.test_dbm_large_opts import README

FOLDER = tools.ROOT / "dbm_loss" / "large_scale"
LISTS = ["--dataset", "imgnet", "--num_classes", "3", "--root", "data", "-a", "resnet10"]
DBM_BCL = [*LISTS, "--loss_type", "BCL", "--use_norm", "--use_dbm", "--cos", "--lr", "0.01"]
SMALL = [*DBM_BCL, "--epochs", "2", "-b", "3", "-j", "0", "-p", "1", "--seed", "7"]
RUN = "imgnet_resnet10_bcl_None_vanilla_0.01_0_0.5_0"
COUNTS = [2, 3, 1]
FAKE = ["--dataset", "inat", "--fake_data", "3", "--num_classes", "3", "-a", "resnet10", "-j", "0"]


class Stopped(Exception):
    """Ends a run where a test wants it to end."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_lists(folder):
    """``data/`` with images and the two list files of ImageNet-LT."""
    root = tools.make_image_folder(folder / "data", COUNTS, test_per_class=2, size=48)
    for split, name in (("train", "ImageNet_LT_train.txt"), ("test", "ImageNet_LT_test.txt")):
        files = sorted((root / split).rglob("*.jpg"))
        lines = [f"{file.relative_to(root)} {int(file.parent.name[-3:])}" for file in files]
        (root / name).write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished DBM-BCL run of two epochs of two steps, that others compare with."""
    folder = make_lists(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main(SMALL)
    return folder


@pytest.mark.parametrize(
    ("dataset", "cwd", "program", "num_classes"),
    [("imgnet", FOLDER, "train.py", 1000), ("inat", tools.ROOT, FOLDER / "main.py", 8142)],
)
def test_readme_commands(tmp_path, dataset, cwd, program, num_classes):
    """As printed, on generated images, with a smaller network and one epoch."""
    extra = ["--fake_data", "3", "--arch", "resnet10", "--epochs", "1", "-j", "0"]
    folders = ["--root_log", tmp_path / "log", "--root_model", tmp_path / "checkpoint"]
    done = tools.run([program, *shlex.split(README[dataset]), *extra, *folders], cwd)
    assert done.returncode == 0, done.stderr
    assert "Best Prec@1: " in done.stdout and "It took 0:0" in done.stdout
    run = f"{dataset}_resnet10_bcl_None_vanilla_0.01_0_0.5_dbm_bcl_resnet_m01"
    report = json.loads((tmp_path / "log" / run / "report.json").read_text())
    assert len(report["cls_num_list"]) == len(report["final"]["cls_acc"]) == num_classes
    state = torch.load(tmp_path / "checkpoint" / run / "ckpt.pth.tar", weights_only=True)
    assert state["state_dict"]["fc.weight"].shape == (512, num_classes)


def test_a_run_leaves_logs_report_and_checkpoints(finished):
    log = finished / "log" / RUN
    report = json.loads((log / "report.json").read_text())
    assert report["cls_num_list"] == COUNTS
    assert report["train_set"] == "data/ImageNet_LT_train.txt" and report["seed"] == 7
    assert report["settings"]["margin_norm"] == "rarest"  # not the published list
    final = report["final"]
    assert final["epoch"] == 1 and len(final["cls_acc"]) == 3
    assert final["few"] == pytest.approx(sum(final["cls_acc"]) / 3)
    assert final["many"] is None and final["medium"] is None
    metrics = pd.read_csv(log / "metrics.csv")
    assert metrics["lr"].tolist() == pytest.approx([0.01, 0.005])
    assert {"train_loss", "train_top1", "top1", "top5", "few", "ece"} <= set(metrics)
    assert (log / "log_train.csv").read_text().count("Epoch: [") == 4
    text = (log / "log_test.csv").read_text()
    assert text.count("Best Prec@1: ") == text.count("val Class Accuracy: [") == 2
    assert "It took 0:0" in text
    assert (log / "args.txt").read_text().startswith("Namespace(root='data', dataset='imgnet'")
    for name in ("per_class.png", "confusion.png", "curves.png"):
        assert (log / name).stat().st_size > 1000
    state = torch.load(finished / "checkpoint" / RUN / "ckpt.pth.tar", weights_only=True)
    assert {"epoch", "state_dict", "best_acc1", "optimizer", "run"} <= state.keys()
    assert state["epoch"] == 2 and isinstance(state["best_acc1"], float)
    best, last = (row["epoch"] for row in (state["run"]["best_row"], state["run"]["history"][-1]))
    kept = {row["epoch"] for row in state["run"]["history"] if "cls_acc" in row}
    assert last == 1 and kept == {best, last}


def test_killed_in_mid_epoch_and_resumed_is_unbroken_bit_for_bit(finished, here):
    """The kill comes with the line of the first step, whose checkpoint is about to be written."""
    make_lists(here)
    command = [*SMALL, "--save_every", "1", "-j", "1", "--resume", "auto"]
    program = [FOLDER / "train.py", *command]
    assert tools.kill_after_lines(program, here, 1, containing="Epoch: [0][0/2]")
    train.main(command)
    name = f"checkpoint/{RUN}/ckpt.pth.tar"
    tools.assert_same_weights(finished / name, here / name)
    columns = ["epoch", "lr", "train_loss", "train_top1", "top1", "loss"]
    rows = [
        pd.read_csv(folder / "log" / RUN / "metrics.csv")[columns] for folder in (finished, here)
    ]
    pd.testing.assert_frame_equal(*rows)
    logs = [(folder / "log" / RUN / "log_train.csv").read_text() for folder in (finished, here)]
    assert logs[0].count("\n") == logs[1].count("\n") == 4


def test_a_step_of_an_epoch_is_a_place_to_go_on_from(finished, here, monkeypatch):
    """The checkpoint of --save_every holds the step, and the run goes on from there, not before."""
    make_lists(here)
    steps = []
    step = torch.optim.SGD.step

    def stop_after_three(self, *args, **kwargs):
        if len(steps) == 3:
            raise Stopped
        steps.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", stop_after_three)
    with pytest.raises(Stopped):
        train.main([*SMALL, "--save_every", "1"])
    path = here / "checkpoint" / RUN / "ckpt.pth.tar"
    state = torch.load(path, weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1)
    steps.clear()
    steps += [1, 1]  # one step is left, a second one stops the test
    train.main([*SMALL, "--resume", "auto"])
    tools.assert_same_weights(finished / "checkpoint" / RUN / "ckpt.pth.tar", path)


def test_evaluate_repeats_the_checkpoints_figures_also_from_the_originals_files(finished, here):
    shutil.copytree(finished, here, dirs_exist_ok=True)
    path = here / "checkpoint" / RUN / "ckpt.pth.tar"
    final = json.loads((here / "log" / RUN / "report.json").read_text())["final"]
    state = torch.load(path, weights_only=True)
    original = {
        "epoch": state["epoch"],
        "state_dict": {f"module.{key}": value for key, value in state["state_dict"].items()},
        "best_acc1": 12.5,
    }
    torch.save(original, here / "original.pth.tar")
    for resume in (path, here / "original.pth.tar"):
        result = train.main([*SMALL, "--evaluate", "--resume", str(resume)])
        for key in ("top1", "top5", "loss", "few"):
            assert result[key] == pytest.approx(final[key], rel=1e-6)
    row = train.main([*SMALL, "--epochs", "3", "--overwrite", "--resume", "original.pth.tar"])
    assert row["epoch"] == 2


def test_two_processes_train_together_and_evaluate_as_one(finished, here):
    make_lists(here)
    command = [FOLDER / "train.py", *SMALL, "--epochs", "1", "-b", "6"]
    output = tools.run_to_the_end(command, here, processes=2)
    assert output.count("START!!") == 1
    final = json.loads((here / "log" / RUN / "report.json").read_text())["final"]
    assert final["train_loss"] > 0
    path = here / "checkpoint" / RUN / "ckpt.pth.tar"
    result = train.main([*SMALL, "--evaluate", "--resume", str(path)])
    for key in ("top1", "top5", "loss", "few"):
        assert result[key] == pytest.approx(final[key], rel=1e-5)


def test_every_loss_runs(here, monkeypatch):
    small_runs.small_networks(monkeypatch)
    commands = [
        "--loss_fn CE --use_norm --use_dbm --amp bf16 --channels_last",
        "--loss_fn ce_drw --stretch_schedule",
        "--loss_fn BS --use_norm --nesterov",
        "--loss_fn ldam --use_norm --use_dbm",
        "--loss_fn ldam_drw --arch resnet18",
        "--loss_fn bcl",
        "--loss_fn ce --epochs 2 --cmo --start_data_aug 0 --end_data_aug 0 --mixup_prob 1",
    ]
    for flags in commands:
        row = train.main([*FAKE, "-b", "3", "--epochs", "1", "--overwrite", *shlex.split(flags)])
        assert row["train_loss"] > 0 and 0 <= row["top1"] <= 100


def test_imagefolder_and_fewer_evaluations(here):
    make_lists(here)
    row = train.main(
        ["--dataset", "imagefolder", "--root", "data", "-a", "resnet10", "-b", "6", "-j", "0",
         "--epochs", "3", "--test_epoch", "5", "--loss_fn", "bs"]
    )  # fmt: skip
    assert row["epoch"] == 2 and "top1" in row
    [metrics] = here.glob("log/*/metrics.csv")
    assert pd.read_csv(metrics)["top1"].notna().tolist() == [True, False, True]


def test_bad_usage_is_named_before_training(finished, here):
    shutil.copytree(finished / "data", here / "data")
    tools.make_image_folder(here / "one", [4], size=8, test_per_class=1)
    checkpoint = str(finished / "checkpoint" / RUN / "ckpt.pth.tar")
    cases = [
        (["--dataset", "inat", "--root", "data"], "iNaturalist18_train.txt"),
        ([*LISTS[:2], "--root", "data"], "--num_classes 1000"),
        ([*LISTS, "--resume", "nowhere.pth"], "nowhere.pth"),
        ([*LISTS, "--loss_fn", "ce", "--resume", checkpoint], "another architecture"),
        (
            ["--dataset", "imagefolder", "--root", "one", "--loss_fn", "bcl"],
            "--loss_fn bcl: it contrasts classes, and the images are of one, class_000; take anot",
        ),
        ([*LISTS, "--root_log", "data/ImageNet_LT_train.txt"], "cannot write"),
    ]
    for flags, named in cases:
        with pytest.raises(UsageError, match=named):
            train.main([*flags, "-j", "0", "-a", "resnet10"])


def test_bad_usage_is_one_line_and_exit_code_2(here):
    done = tools.run([FOLDER / "train.py", "--dataset", "imgnet", "--use_dbm"], here)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--use_norm" in done.stderr


def test_a_broken_image_is_named(finished, here):
    shutil.copytree(finished / "data", here / "data")
    (here / "data/train/class_000/0001.jpg").write_bytes(b"broken")
    done = tools.run([FOLDER / "train.py", *SMALL, "-j", "1"], here)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "0001.jpg (line 2 of " in done.stderr


def test_a_diverged_loss_stops_the_run_and_keeps_the_checkpoint(finished, here):
    shutil.copytree(finished, here, dirs_exist_ok=True)
    path = here / "checkpoint" / RUN / "ckpt.pth.tar"
    before = path.read_bytes()
    with pytest.raises(NonFiniteLoss, match="epoch 2, step"):
        train.main([*SMALL, "--epochs", "9", "--lr", "1e30", "--resume", str(path)])
    assert path.read_bytes() == before
