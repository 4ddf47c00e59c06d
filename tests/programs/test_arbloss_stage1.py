"""arbloss/train_stage1.py end to end, on small made data."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from arbloss import eval as evaluation
from arbloss import train_stage1, trainer
from common.training import checkpoint
from common.training.errors import NonFiniteLoss, UsageError
from tests.programs import tools
from tests.programs.arbloss_data import CONFIG, COUNTS, PROGRAMS, SMALL, make_folder

README = sorted(CONFIG.glob("cifar*/*_stage1_mixup.yaml"))
ARB = ["--cfg", str(CONFIG / "cifar10" / "cifar10_imb001_stage1_mixup.yaml")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A finished run that others compare with: its folder, and its last row."""
    where = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        row = train_stage1.main([*ARB, *SMALL, "data_path", str(folder), "diagnostic", "true"])
        (run,) = where.glob("saved/*")
    return run, row


def newest(where):
    return max(where.glob("saved/*"), key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize("cfg", README, ids=lambda path: path.stem)
def test_readme_commands_on_small_data(folder, here, cfg):
    """As printed in the README, from arbloss/, but for the data at the end."""
    (here / "config").symlink_to(CONFIG)
    argv = ["--cfg", f"./config/{cfg.parent.name}/{cfg.name}", *SMALL, "data_path", str(folder)]
    row = train_stage1.main([*argv, "num_epochs", "1"])
    assert row["epoch"] == 0
    assert np.isfinite(row["train_loss"])
    run = newest(here)
    assert run.name.startswith(f"{cfg.stem}_20")
    settings = json.loads((run / "logs" / "report.json").read_text())["settings"]
    assert settings["arbloss"] and settings["mixup"] and settings["alpha"] == 1.0


def test_a_run_leaves_logs_report_and_pictures(finished):
    run, row = finished
    log = run / "logs"
    report = json.loads((log / "report.json").read_text())
    assert report["cls_num_list"] == COUNTS
    assert report["epochs"] == 2
    assert report["final"]["top1"] == row["top1"]
    assert {"ece", "head", "med", "tail", "many", "few", "attraction"} <= report["final"].keys()
    assert report["settings"]["dataset"] == "imagefolder"
    metrics = pd.read_csv(log / "metrics.csv")
    assert metrics["lr"].tolist() == pytest.approx([0.02, 0.04])
    assert "backbone: resnet20_fe\n" in (log / "config.yaml").read_text()
    for picture in ("reliability.png", "per_class.png", "confusion.png", "curves.png"):
        with Image.open(log / picture) as image:
            assert len(np.unique(np.asarray(image))) > 20, picture
    assert np.load(log / "gradient_norms_001.npy").shape == (5, 5)
    assert len(list(log.glob("events.out.tfevents.*"))) == 1


def test_log_lines_are_the_originals(finished):
    run, row = finished
    lines = (run / "logs" / "cifar10_imb001_stage1_mixup.txt").read_text().split("\n")
    stamps = [line[:20] for line in lines if "Epoch:" in line]
    assert len(stamps) == 2 * 4  # 58 images in batches of 16
    assert all(stamp[4] == "-" and stamp[13] == ":" for stamp in stamps)
    texts = [line[20:] for line in lines]
    assert sum(text.startswith("Epoch: [1][3/4]\tTime ") for text in texts) == 1
    assert sum(text.startswith("Eval: [1/2]\tTime ") for text in texts) == 2
    assert f"* ECE   {row['ece']:.3f}%." in texts
    correct = round(row["tail"] / 100 * 5)
    assert any(
        text.startswith(f"* Acc@1 {row['top1']:.3f}; Acc@5 100.000; many: {row['head']:.3f} (")
        and text.endswith(f"low {row['tail']:.3f} ({correct}/5).")
        for text in texts
    )
    assert sum(text.startswith("Best Prec@1: ") for text in texts) == 2


def test_checkpoints_keep_the_originals_keys(finished):
    run, row = finished
    state = torch.load(run / "ckps" / "current.pth.tar", weights_only=True)
    assert state.keys() >= {
        "epoch", "state_dict_model", "state_dict_classifier", "best_acc1", "its_ece",
    }  # fmt: skip
    assert state["epoch"] == 2
    assert "layer1.0.conv1.weight" in state["state_dict_model"]
    assert list(state["state_dict_classifier"]) == ["fc.weight", "fc.bias"]
    best = torch.load(run / "ckps" / "model_best.pth.tar", weights_only=True)
    assert best["best_acc1"] == state["best_acc1"]
    assert best["its_ece"] == state["its_ece"]
    assert state["best_acc1"].item() >= row["top1"]


def options(folder, *words):
    return [*ARB, *SMALL, "data_path", str(folder), *words]


def test_killed_and_resumed_is_unbroken_bit_for_bit(folder, tmp_path):
    words = options(folder, "num_epochs", "4", "deterministic", "true", "diagnostic", "true")
    command = [PROGRAMS / "train_stage1.py", *words]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    resumed = [*command, "resume", "auto"]
    assert tools.kill_after_lines(resumed, killed, 7, "Epoch: ")  # of 4 an epoch
    assert tools.kill_after_lines(resumed, killed, 6, "Epoch: ")
    tools.run_to_the_end(resumed, killed)
    tools.run_to_the_end(command, whole)
    assert len(list(killed.glob("saved/*"))) == 1  # all three wrote into one run folder
    pair = [newest(where) / "ckps" / "current.pth.tar" for where in (killed, whole)]
    for key in ("state_dict_model", "state_dict_classifier"):
        tools.assert_same_weights(*pair, key=key)
    rows = [
        pd.read_csv(newest(where) / "logs" / "metrics.csv").drop(
            columns=["images_per_s", "epoch_s"]
        )
        for where in (killed, whole)
    ]
    pd.testing.assert_frame_equal(*rows)


def test_a_run_killed_before_its_first_checkpoint_begins_again_in_absolute_folders(
    folder, here, monkeypatch
):
    logs, ckps = here / "elsewhere" / "logs", here / "elsewhere" / "ckps"
    words = options(folder, "num_epochs", "1", "log_dir", str(logs), "model_dir", str(ckps))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_stage1.main(words)
    assert (logs / "metrics.csv").is_file() and not list(ckps.glob("*.tar"))
    with pytest.raises(UsageError, match="holds a run already; go on with resume auto"):
        train_stage1.main(words)
    train_stage1.main([*words, "resume", "auto"])
    assert (ckps / "current.pth.tar").is_file()


def test_workers_replay_an_interrupted_epoch(folder, here, monkeypatch):
    """In a run of absolute folders, which `resume auto` finds as well."""
    words = options(folder, "loader", "workers", "workers", "1", "num_epochs", "2", "seed", "7")
    whole = train_stage1.main(words)
    first = newest(here)
    logs, ckps = here / "elsewhere" / "logs", here / "elsewhere" / "ckps"
    interrupted = [*words, "log_dir", str(logs), "model_dir", str(ckps), "resume", "auto"]
    real, seen = trainer.train_one_epoch, []

    def stop_in_the_second(*args):
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(trainer, "train_one_epoch", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        train_stage1.main(interrupted)
    latest = ckps / "current.pth.tar"
    with pytest.raises(UsageError) as error:  # nothing of a run is lost
        train_stage1.main(interrupted[:-2])
    assert str(error.value) == (
        f"{ckps}: holds a run already; go on with resume auto, replace it with overwrite True, "
        "or give this run another folder"
    )
    resumed = train_stage1.main(interrupted)
    assert resumed["train_loss"] == whole["train_loss"]
    for key in ("state_dict_model", "state_dict_classifier"):
        tools.assert_same_weights(latest, first / "ckps" / "current.pth.tar", key=key)
    again = train_stage1.main([*interrupted[:-1], str(latest)])
    assert again["top1"] == resumed["top1"]
    assert len(list(here.glob("saved/*"))) == 1  # the first run's


def test_checkpoints_of_the_original_load(finished, folder, here, capsys):
    """With module. before each name, a numpy number, and no optimiser; also as a start."""
    run, row = finished
    state = torch.load(run / "ckps" / "current.pth.tar", weights_only=True)
    original = {
        "epoch": 1,
        "best_acc1": torch.tensor(12.5),
        "its_ece": np.float64(3.25),
    }
    for key in ("state_dict_model", "state_dict_classifier"):
        original[key] = {f"module.{name}": value for name, value in state[key].items()}
    torch.save(original, here / "original.pth.tar")
    figures = evaluation.main(options(folder, "resume", "original.pth.tar"))
    (logs,) = here.glob("saved/*/logs")
    assert capsys.readouterr().out.endswith(f"\nreport in {logs.relative_to(here)}\n")
    for key in ("top1", "ece", "loss", "head"):
        assert figures[key] == pytest.approx(row[key])
    row = train_stage1.main(options(folder, "resume", "original.pth.tar"))
    assert row["epoch"] == 1  # goes on after the one finished epoch, trains none again
    assert "=> loaded checkpoint 'original.pth.tar' (epoch 1)" in capsys.readouterr().out
    assert len(list(here.glob("saved/*"))) == 2  # the evaluation's folder and a new run's


def test_a_finished_run_resumes_to_nothing(finished, folder, here):
    run, row = finished
    shutil.copytree(run, here / "saved" / run.name)
    again = train_stage1.main(
        options(folder, "resume", f"saved/{run.name}/ckps/current.pth.tar", "diagnostic", "true")
    )
    assert again["top1"] == row["top1"]
    assert again["cls_acc"] == row["cls_acc"]
    assert [path.name for path in here.glob("saved/*")] == [run.name]


def test_switches_change_what_is_trained(folder, here):
    losses = {}
    for name, words in {
        "batch counts": [],
        "global counts": ["arb_loss_use_global_class_cnt", "True"],
        "smoothing": ["LAS", "True", "smooth_head", "0.3", "smooth_tail", "0"],
        "bf16": ["amp", "bf16", "channels_last", "True"],
    }.items():
        row = train_stage1.main(
            options(folder, "num_epochs", "1", "mixup", "False", "seed", "1", *words)
        )
        losses[name] = row["train_loss"]
    assert all(np.isfinite(loss) for loss in losses.values())
    assert len(set(losses.values())) == len(losses)
    assert losses["bf16"] == pytest.approx(losses["batch counts"], rel=0.1)
    assert len(list(here.glob("saved/*"))) == len(losses)  # one folder each, within one minute


def test_stretched_milestones(folder, here):
    train_stage1.main(
        options(
            folder, "num_epochs", "10", "batch_size", "64", "stretch_schedule", "True",
            "milestones", "[160, 180]",
        )
    )  # fmt: skip
    rates = pd.read_csv(newest(here) / "logs" / "metrics.csv")["lr"]
    expected = [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1, 0.01, 0.001]
    assert rates.tolist() == pytest.approx(expected)


def test_embedded_digits_need_no_files(here, capsys):
    train_stage1.main(
        [*ARB, *SMALL, "dataset", "digits", "num_classes", "10", "imb_factor", "0.01",
         "num_epochs", "1", "batch_size", "256", "tail_class_idx", "[4, 10]"]
    )  # fmt: skip
    report = json.loads((newest(here) / "logs" / "report.json").read_text())
    assert report["cls_num_list"] == [130, 77, 46, 28, 16, 10, 6, 3, 2, 1]
    assert "using CPU, this will be slow" in capsys.readouterr().out


def bad(message, *argv):
    with pytest.raises(UsageError) as error:
        train_stage1.main(list(argv))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_input_is_named(finished, folder, here):
    run, _ = finished
    good = str(run / "ckps" / "current.pth.tar")
    bad("no such file", "--cfg", "nowhere.yaml")
    bad("nowhere", *options("nowhere"))
    right = "head_class_idx [0,2] med_class_idx [2,4] tail_class_idx [4,5]"
    bad(
        f"num_classes 4: imagefolder in {folder} has 5 classes; give num_classes 5 and three "
        f"groups of its classes, largest first, such as {right}",
        *options(folder, "num_classes", "4", "tail_class_idx", "[4, 4]"),
    )
    bad("gone.pth", *options(folder, "resume", "gone.pth"))
    bad(
        "batch_size 1: a batch of one image has one class, which its own counts set against none; "
        "make it larger, or arb_loss_use_global_class_cnt True",
        *options(folder, "batch_size", "1"),
    )
    bad("choose one of resnet20_fe", *options(folder, "backbone", "resnet20"))
    bad(
        "made with another architecture",
        *options(folder, "resume", good, "backbone", "resnet32_fe"),
    )
    assert "backbone: resnet20_fe\n" in (run / "logs" / "config.yaml").read_text()
    (here / "cut.pth").write_bytes((run / "ckps" / "current.pth.tar").read_bytes()[:5000])
    bad("cut short", *options(folder, "resume", "cut.pth"))
    torch.save({"epoch": 1, "state_dict": {}}, here / "foreign.pth")
    bad("not a checkpoint of this", *options(folder, "resume", "foreign.pth"))
    (here / "saved").rename(here / "away")
    (here / "saved").write_text("in the way")
    bad("cannot write there", *options(folder))


def test_command_line_errors_are_one_line_with_code_2(tmp_path):
    done = tools.run([PROGRAMS / "train_stage1.py", *ARB, "lr", "fast"], tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "train_stage1.py: error: command line: lr must be a number, got 'fast'\n"
    )
    assert done.stdout == ""


def test_a_diverging_run_stops_and_keeps_the_checkpoint(folder, here):
    words = options(folder, "seed", "1", "arbloss", "False")
    train_stage1.main([*words, "num_epochs", "1"])
    path = str(newest(here) / "ckps" / "current.pth.tar")
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step \d+"):
        train_stage1.main([*words, "lr", "1e38", "resume", path, "num_epochs", "3"])
    state = torch.load(newest(here) / "ckps" / "current.pth.tar", weights_only=True)
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["state_dict_model"].values())
