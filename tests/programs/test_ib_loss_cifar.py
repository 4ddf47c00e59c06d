"""ib_loss/cifar_train.py end to end."""

import json
import pickle
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from common.models import archs
from common.training.errors import NonFiniteLoss, UsageError
from datasets import cifar
from ib_loss import cifar_train, trainer
from ib_loss.opts import ARCHS
from tests.programs import tools

SCRIPT = tools.ROOT / "ib_loss" / "cifar_train.py"
SMALL = ["--dataset", "digits", "-a", "resnet20", "--imb_factor", "0.05", "--image_size", "16"]
RUN = "digits_resnet20_IB_IBReweight_exp_0.05_0"
IB = [*SMALL, "--loss_type", "IB", "--train_rule", "IBReweight"]
COMMANDS = tools.readme_commands(tools.ROOT / "ib_loss/README.md", "python cifar_train.py")
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "no_proxy": ""}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of three epochs, IB from the second on, that others compare with."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cifar_train.main([*IB, "--epochs", "3", "--start_ib_epoch", "1", "--seed", "3", "-p", "2"])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tools.make_image_folder(tmp_path_factory.mktemp("images"), [40, 40, 40], size=48)


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """CIFAR-100's files with made-up pixels: four training images and one test image a class."""
    root = tmp_path_factory.mktemp("cifar100")
    folder = root / "cifar-100-python"
    folder.mkdir()
    rng = np.random.RandomState(0)
    for split, count in (("train", 4), ("test", 1)):
        labels = np.tile(np.arange(100), count)
        content = {"data": rng.randint(0, 256, (len(labels), 3072)).astype(np.uint8)}
        content["fine_labels"] = labels.tolist()
        (folder / split).write_bytes(pickle.dumps(content))
    names = {"fine_label_names": [f"c{i}" for i in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    return root


@pytest.mark.parametrize("number", range(4))
def test_readme_commands(cifar100, tmp_path, monkeypatch, golden, number):
    """As printed, from the paper's folder; what comes after makes the data and the run small."""
    command = COMMANDS[number]
    assert command == golden("ib_loss").facts["commands"][number]["argv"]
    # Made-up files have other checksums; forked processes have this, too.
    monkeypatch.setattr(cifar, "_provide", lambda *_: None)
    small = ["--root", cifar100, "--imb_factor", "0.25", "-a", "resnet20", "-b", "64",
             "--epochs", "2", "--start_ib_epoch", "1",
             "--root_log", tmp_path / "log", "--root_model", tmp_path / "model"]  # fmt: skip
    done = tools.run([SCRIPT.name, *command, *small], SCRIPT.parent)
    assert done.returncode == 0, done.stderr
    assert "--gpu 0: no CUDA device here" in done.stdout
    loss, rule = (command[command.index(flag) + 1] for flag in ("--loss_type", "--train_rule"))
    run = f"cifar100_resnet20_{loss}_{rule}_exp_0.25_0"
    report = json.loads((tmp_path / "log" / run / "report.json").read_text())
    assert report["cls_num_list"] == [int(4 * 0.25 ** (c / 99)) for c in range(100)]
    assert report["epochs"] == 2 and len(report["final"]["cls_acc"]) == 100
    assert (tmp_path / "model" / run / "ckpt.pth.tar").is_file()


def test_readme_commands_offline(tmp_path):
    """One line with URL, folder and cure within seconds, from any folder."""
    for command in COMMANDS:
        done = tools.run([SCRIPT, *command], tmp_path, **OFFLINE)
        assert done.returncode == 2
        (message,) = (line for line in done.stderr.splitlines() if ": error: " in line)
        assert "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz" in message
        assert f"cifar-100-python/ is in {tmp_path / 'data'}, and " in message
        assert "put that archive, or its folder cifar-100-python/, into data/" in message


def test_a_run_leaves_logs_report_and_pictures(finished):
    log = finished / "log" / RUN
    report = json.loads((log / "report.json").read_text())
    assert report["cls_num_list"] == [130, 93, 66, 47, 34, 24, 17, 12, 9, 6]
    assert report["epochs"] == 3 and report["seed"] == 3
    assert len(report["subset_sha256"]) == len(report["pixels_sha256"]) == 64
    final = report["final"]
    assert final["epoch"] == 2 and len(final["cls_acc"]) == 10
    assert {"top1", "top5", "ece", "many", "medium", "few", "images_per_s"} <= final.keys()
    tests = [48, 52, 47, 53, 51, 52, 51, 49, 44, 50]
    assert final["top1"] == pytest.approx(np.average(final["cls_acc"], weights=tests))
    assert report["best"]["top1"] >= final["top1"]

    metrics = pd.read_csv(log / "metrics.csv")
    assert metrics["epoch"].tolist() == [0, 1, 2]
    assert metrics["lr"].tolist() == pytest.approx([0.02, 0.001, 0.001])
    assert metrics["train_loss"][1] > 2 * metrics["train_loss"][0]  # the IB phase's scale

    assert (log / "args.txt").read_text().startswith("Namespace(dataset='digits', arch='resnet20'")
    assert (log / "log_train.csv").read_text().count("Epoch: [") == 3 * 2
    assert (log / "log_test.csv").read_text().count("Best Prec@1: ") == 3
    assert len(list(log.glob("events.out.tfevents.*"))) == 1
    for picture in ("per_class.png", "confusion.png", "curves.png"):
        pixels = np.asarray(Image.open(log / picture))
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20, picture


def test_checkpoints_keep_the_originals_keys(finished):
    folder = finished / "checkpoint" / RUN
    state = torch.load(folder / "ckpt.pth.tar", weights_only=True)
    assert {"epoch", "arch", "state_dict", "best_acc1", "optimizer"} <= state.keys()
    assert state["epoch"] == 3 and state["arch"] == "resnet20"
    assert "linear.weight" in state["state_dict"]
    best = torch.load(folder / "ckpt.best.pth.tar", weights_only=True)
    assert float(best["best_acc1"]) == float(state["best_acc1"]) > 0


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_killed_and_resumed_is_unbroken_bit_for_bit(tmp_path, loader):
    images = tools.make_image_folder(tmp_path / "images", [24, 12, 4], size=16)
    name = "imagefolder_resnet20_IB_IBReweight_none_0.01_0"
    command = [SCRIPT, "--dataset", "imagefolder", "--root", images, "--image_size", "16",
               "--imb_type", "none", "-a", "resnet20", "--loss_type", "IB",
               "--train_rule", "IBReweight", "--start_ib_epoch", "3", "--epochs", "6",
               "--seed", "5", "-p", "1", "-b", "16", "--loader", loader, "-j", "2"]  # fmt: skip
    for kind in ("killed", "whole"):
        (tmp_path / kind).mkdir()
    tools.run_with_kills(command, tmp_path / "killed", kills=3, max_lines=35, seed=11)
    tools.run_to_the_end(command, tmp_path / "whole")
    both = [tmp_path / kind for kind in ("killed", "whole")]
    tools.assert_same_weights(*(f / "checkpoint" / name / "ckpt.pth.tar" for f in both))
    metrics = [
        pd.read_csv(f / "log" / name / "metrics.csv").drop(columns=["images_per_s", "epoch_s"])
        for f in both
    ]
    pd.testing.assert_frame_equal(*metrics)
    logs = [(f / "log" / name / "log_train.csv").read_text().splitlines() for f in both]
    assert len(logs[0]) == len(logs[1]) == 6 * 3


def test_resume_goes_on_with_more_epochs_and_says_what_changed(finished, here, capsys):
    shutil.copytree(finished, here, dirs_exist_ok=True)
    path = f"checkpoint/{RUN}/ckpt.pth.tar"
    row = cifar_train.main(
        [*IB, "--epochs", "4", "--start_ib_epoch", "1", "--resume", path, "--lr", "0.05"]
    )
    assert row["epoch"] == 3 and row["lr"] == pytest.approx(0.0005)
    said = capsys.readouterr().out
    assert f"=> loaded checkpoint '{path}' (epoch 3)" in said
    assert "epochs 3 -> 4" in said and "lr 0.1 -> 0.05" in said
    assert json.loads((here / "log" / RUN / "report.json").read_text())["seed"] == 3


def test_evaluate_repeats_the_checkpoints_figures(finished, here):
    checkpoint = finished / "checkpoint" / RUN / "ckpt.pth.tar"
    report = json.loads((finished / "log" / RUN / "report.json").read_text())
    result = cifar_train.main(
        [*IB, "--start_ib_epoch", "1", "--evaluate", "--resume", str(checkpoint)]
    )
    for key in ("top1", "top5", "ece", "loss", "few"):
        assert result[key] == pytest.approx(report["final"][key], rel=1e-6)


def test_checkpoints_of_dataparallel_runs_load(finished, here):
    state = torch.load(finished / "checkpoint" / RUN / "ckpt.pth.tar", weights_only=True)
    state["state_dict"] = {f"module.{key}": value for key, value in state["state_dict"].items()}
    for ours in ("run", "scaler"):
        del state[ours]
    torch.save(state, here / "original.pth.tar")
    original = cifar_train.main([*IB, "--evaluate", "--resume", "original.pth.tar"])
    ours = finished / "checkpoint" / RUN / "ckpt.pth.tar"
    assert original == cifar_train.main([*IB, "--evaluate", "--resume", str(ours)])


def test_every_loss_with_both_kinds_of_network(folder, here):
    cases = [
        ("CE", "resnet44"),
        ("LDAM", "resnet10"),
        ("Focal", "resnet44"),
        ("IB", "resnet10"),
        ("IBFocal", "resnet44"),
    ]
    for loss, arch in cases:
        row = cifar_train.main(
            ["--dataset", "imagefolder", "--root", str(folder), "-a", arch, "--loss_type", loss,
             "--imb_factor", "0.1", "--train_rule", "DRW", "--start_ib_epoch", "0",
             "--epochs", "1", "--image_size", "8"]
        )  # fmt: skip
        run = f"imagefolder_{arch}_{loss}_DRW_exp_0.1_0"
        report = json.loads((here / "log" / run / "report.json").read_text())
        assert report["method"] == f"{loss}, DRW"
        assert report["final"]["train_loss"] == row["train_loss"]
        assert report["network"]["use_norm"] == (loss == "LDAM")


def test_every_arch_builds_with_the_ib_interface():
    names = ("resnet20", "resnet56", "resnet110", "resnet18", "resnet34", "resnet50")
    assert set(names) <= set(ARCHS)
    for name in names:
        logits, features = archs.constructor(name)(num_classes=7)(torch.zeros(2, 3, 32, 32), True)
        assert logits.shape == (2, 7) and features.shape[0] == 2


def test_resample_draws_rare_classes_more_often(here, monkeypatch):
    seen = []
    original = trainer.make_loaders

    def spy(*args, **kwargs):
        loaders = original(*args, **kwargs)
        seen.extend(target for _, target, _ in loaders[0])
        return loaders

    monkeypatch.setattr(trainer, "make_loaders", spy)
    cifar_train.main([*SMALL, "--train_rule", "Resample", "--epochs", "1"])
    drawn = torch.cat(seen).bincount(minlength=10)
    assert drawn.sum() == 438 and drawn.max() < 80  # uniform shuffling would show 130 zeros


def test_image_folder_is_made_long_tailed(folder, here):
    row = cifar_train.main(
        ["--dataset", "imagefolder", "--root", str(folder), "-a", "resnet20", "--epochs", "1",
         "--imb_factor", "0.1", "--num_classes", "3"]
    )  # fmt: skip
    report = here / "log" / "imagefolder_resnet20_CE_None_exp_0.1_0" / "report.json"
    assert json.loads(report.read_text())["cls_num_list"] == [40, 12, 4]
    assert row["top5"] == 100


def test_image_folder_as_it_is(tmp_path, here):
    root = tools.make_image_folder(tmp_path / "natural", [9, 30, 2])
    args = ["--dataset", "imagefolder", "--root", str(root), "-a", "resnet20", "--epochs", "1"]
    cifar_train.main([*args, "--imb_type", "none"])
    report = here / "log" / "imagefolder_resnet20_CE_None_none_0.01_0" / "report.json"
    assert json.loads(report.read_text())["cls_num_list"] == [9, 30, 2]
    with pytest.raises(UsageError, match=r"has 9 images, but .* asked for"):
        cifar_train.main(args)


def bad(words, *argv):
    with pytest.raises(UsageError, match=words):
        cifar_train.main(list(argv))


def test_bad_data_is_named(folder, here):
    image = ["--dataset", "imagefolder", "--root"]
    bad("nowhere: no such folder; expected DIR/train/<class>", *image, "nowhere")
    bad(r"^--num_classes 7: imagefolder in .* has 3", *image, str(folder), "--num_classes", "7")
    broken = here / "broken"
    shutil.copytree(folder, broken)
    (broken / "train" / "class_001" / "0000.jpg").write_bytes(b"")
    bad(r"class_001.0000\.jpg: not a readable image", *image, str(broken), "--imb_type", "none")
    shutil.rmtree(broken / "test")
    bad("neither val/ nor test/", *image, str(broken))
    shutil.rmtree(broken / "train" / "class_001")
    (broken / "train" / "class_001").mkdir()
    bad("class_001: no images in this class", *image, str(broken))
    bad("--train_rule CBReweight divides by the class counts, and .* no image of class 9",
        "--dataset", "digits", "--imb_factor", "0.005", "--train_rule", "CBReweight")  # fmt: skip
    bad("--loss_type LDAM divides", "--dataset", "digits", "--imb_factor", "0.005",
        "--loss_type", "LDAM")  # fmt: skip


def test_bad_checkpoints_are_refused(finished, here):
    good = finished / "checkpoint" / RUN / "ckpt.pth.tar"
    bad("--resume gone.pth: no such file", *IB, "--resume", "gone.pth")
    bad("--evaluate --resume auto: there is no checkpoint/.*ckpt.pth.tar yet",
        *IB, "--evaluate", "--resume", "auto")  # fmt: skip
    weights = {"epoch": 3, "best_acc1": 1.0}
    weights["state_dict"] = torch.load(good, weights_only=True)["state_dict"]
    torch.save(weights, here / "weights.pth")
    bad("weights.pth: has no 'optimizer', .*; weights alone can only be evaluated",
        *IB, "--resume", "weights.pth")  # fmt: skip
    (here / "cut.pth").write_bytes(good.read_bytes()[:5000])
    bad("cut.pth: not a complete checkpoint, cut short", *IB, "--resume", "cut.pth")
    bad("made with another architecture, classes or loss; it lacks layer1.3",
        *IB, "-a", "resnet32", "--resume", str(good))  # fmt: skip
    torch.save({"epoch": 1, "state_dict": shutil.rmtree}, here / "evil.pth")
    bad("evil.pth: refused, entry 'state_dict' is of shutil.rmtree", *IB, "--resume", "evil.pth")


def test_command_line_errors_are_one_line_with_code_2(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = tools.run([SCRIPT, *SMALL, "--root_log", "file/log", "--epochs", "1"], tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("cifar_train.py: error: file/log/digits")


def test_a_diverging_run_stops_and_keeps_the_checkpoint(here, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cifar_train.py"])
    args = [*SMALL, "--loss_type", "CE", "--epochs", "3", "--seed", "1"]
    cifar_train.main([*args[:-4], "--epochs", "1", "--seed", "1"])
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step \d+, learning rate 4e\+37"):
        cifar_train.main([*args, "--lr", "1e38", "--resume", "auto"])
    path = here / "checkpoint" / "digits_resnet20_CE_None_exp_0.05_0" / "ckpt.pth.tar"
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_no_gpu_is_said_once_and_the_cpu_takes_over(finished, here, capsys):
    checkpoint = str(finished / "checkpoint" / RUN / "ckpt.pth.tar")
    cifar_train.main([*IB, "--gpu", "0", "--evaluate", "--resume", checkpoint])
    said = capsys.readouterr().out
    assert said.count("note: --gpu 0: no CUDA device here, running on the CPU\n") == 1


def test_two_processes_evaluate_like_one(finished, tmp_path):
    """torchrun with two gloo processes: the same test figures for the same weights."""
    checkpoint = finished / "checkpoint" / RUN / "ckpt.pth.tar"
    alone = tools.run([SCRIPT, *IB, "--evaluate", "--resume", checkpoint], tmp_path)
    pair = tools.run_fresh(
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT,
         *IB, "--evaluate", "--resume", checkpoint],
        tmp_path,
    )  # fmt: skip
    assert alone.returncode == pair.returncode == 0, pair.stderr
    figures = [out.stdout[out.stdout.index("val Results") :] for out in (alone, pair)]
    losses = [re.search(r"Loss (\S+)", text).group(1) for text in figures]
    assert figures[0].replace(losses[0], "") == figures[1].replace(losses[1], "")
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-4, abs=1e-4)


def test_two_processes_train_the_model_of_one_command(tmp_path, monkeypatch):
    """fan_out: one command, two processes; one writes, the batch is shared."""
    code = (
        "import sys; from common.training import launch\n"
        "from ib_loss import cifar_train as program\n"
        "if __name__ == '__main__':\n"
        "    launch.fan_out(program.main, sys.argv[1:], processes=2)\n"
    )
    (tmp_path / "both.py").write_text(code)
    done = tools.run_fresh(
        ["both.py", *IB, "--epochs", "1", "--start_ib_epoch", "0", "--seed", "1", "-p", "1"],
        tmp_path,
        PYTHONPATH=str(tools.ROOT),
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log" / RUN / "log_train.csv").read_text()
    assert log.count("Epoch: [0][") == 4  # 438 images in global batches of 128, said once
    assert json.loads((tmp_path / "log" / RUN / "report.json").read_text())["epochs"] == 1
