"""train_cifar.py end to end: a group of runs, its files, kills, devices, bad input."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from common.training.errors import NonFiniteLoss, UsageError
from hmloss.cifar_implementation import train_cifar
from tests.programs import tools

SCRIPT = tools.ROOT / "hmloss/cifar_implementation/train_cifar.py"
STORE = "imagefolder_exp_0.25_resnet20_HML_W_CS_D_10000"


def small(folder):
    return [
        "--dataset_name", "imagefolder", "--root", str(folder), "--image_size", "8",
        "-a", "resnet20", "--imb_ratio", "0.25", "-b", "16", "-j", "0", "-p", "2",
    ]  # fmt: skip


def hml(folder, epochs=3):
    return [
        *small(folder), "--loss_function", "HML", "--weighting_type", "CS",
        "--epochs", str(epochs), "--start_hm_epoch", "1", "--num_runs", "2", "--seed", "3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tools.make_image_folder(tmp_path_factory.mktemp("images"), [24] * 6, size=8)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """Two finished runs of three epochs, HML from the second on, and what main returned."""
    where = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        rows = train_cifar.main(hml(folder))
    return where, rows


def test_runs_leave_the_originals_files(finished, golden):
    where, rows = finished
    sample = golden("hmloss").facts["cifar_run_files"]
    for run, row in enumerate(rows):
        history = where / "history" / f"{STORE}_run{run}"
        model = where / "checkpoint" / f"{STORE}_run{run}"
        for name in sample["history_files"]:
            if name.endswith((".txt", ".csv")):
                assert (history / name).is_file(), name
        assert {p.name for p in model.iterdir()} == {*sample["checkpoint_files"], ".lock"}
        state = torch.load(model / "ckpt.pth.tar", weights_only=True)
        assert set(sample["checkpoint_keys"]) <= state.keys()
        assert state["epoch"] == 3 and state["best_acc1"].shape == ()

        report = json.loads((history / "report.json").read_text())
        assert report["cls_num_list"] == [24, 18, 13, 10, 7, 6]
        assert report["seed"] == 3 + run == row["seed"]
        assert report["final"]["top1"] == row["top1"]
        assert report["best"]["top1"] == row["best_top1"]
        metrics = pd.read_csv(history / "metrics.csv")
        assert metrics["lr"].tolist() == pytest.approx([0.02, 0.001, 0.001])
        log = (history / "train_history.csv").read_text()
        assert log.count("Epoch: [") == 3 * 3 and "lr: 0.02000\t" in log
        assert (history / "test_history.csv").read_text().count("Best Prec@1: ") == 3
        assert (history / "args_history.txt").read_text().startswith("Namespace(")
        assert len(list(history.glob("events.out.tfevents.*"))) == 1
        for picture in ("per_class.png", "confusion.png", "curves.png"):
            assert np.asarray(Image.open(history / picture).convert("L")).std() > 3, picture


def test_summary_is_mean_and_std_over_runs(finished):
    where, rows = finished
    table = pd.read_csv(where / "history" / f"{STORE}_summary.csv")
    assert table["run"].tolist() == ["0", "1", "mean", "std"]
    for name in ("best_top1", "top1", "few"):
        values = np.array([row[name] for row in rows])
        np.testing.assert_allclose(table[name], [*values, values.mean(), values.std()], rtol=1e-5)


def test_runs_differ_and_repeat(finished, folder, here):
    where, rows = finished
    first, second = (where / "checkpoint" / f"{STORE}_run{run}" for run in (0, 1))
    with pytest.raises(AssertionError):
        tools.assert_same_weights(first / "ckpt.pth.tar", second / "ckpt.pth.tar")
    argv = hml(folder)
    argv[-3:] = ["1", "--seed", "4"]  # run 1 alone
    again = train_cifar.main(argv)
    assert again[0]["top1"] == rows[1]["top1"]
    own = here / "checkpoint" / f"{STORE}_run0" / "ckpt.pth.tar"
    tools.assert_same_weights(own, second / "ckpt.pth.tar")


def test_killed_runs_end_the_same(finished, folder, here):
    """Really killed, also between runs; the workers' loader is covered with iNaturalist."""
    where, _ = finished
    tools.run_with_kills([SCRIPT, *hml(folder)], here, kills=2, max_lines=60, seed=5)
    for run in (0, 1):
        name = f"checkpoint/{STORE}_run{run}/ckpt.pth.tar"
        tools.assert_same_weights(where / name, here / name)
    table = f"history/{STORE}_summary.csv"
    assert (here / table).read_text() == (where / table).read_text()
    log = f"history/{STORE}_run0/train_history.csv"
    assert len((here / log).read_text().splitlines()) == 9


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


@pytest.mark.parametrize(("saves", "seeded"), [(2, True), (5, True), (5, False)])
def test_resumed_across_runs(folder, here, monkeypatch, saves, seeded):
    """Interrupted in either run; also when nobody gave a seed the later runs keep theirs."""
    argv = hml(folder)[: None if seeded else -2]
    write, done = train_cifar.Record._write, []

    def write_or_die(self, state, *paths):
        done.append(state["epoch"])
        if len(done) == saves:
            raise Killed
        write(self, state, *paths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cifar.Record, "_write", write_or_die)
        with pytest.raises(Killed):
            train_cifar.main(argv)
    part = f"checkpoint/{STORE}_run{0 if saves < 4 else 1}/ckpt.pth.tar"
    resumed = train_cifar.main([*argv, "--resume", part])
    if seeded:
        straight = train_cifar.main([*argv, "--overwrite"])
    else:
        straight = train_cifar.main([*argv, "--overwrite", "--seed", str(resumed[0]["seed"])])
        assert resumed[1]["seed"] == resumed[0]["seed"] + 1
    pd.testing.assert_frame_equal(pd.DataFrame(resumed), pd.DataFrame(straight))


def test_evaluate_gives_the_figures_of_the_run(finished, folder, here):
    where, rows = finished
    path = str(where / "checkpoint" / f"{STORE}_run1" / "ckpt.pth.tar")
    argv = [*hml(folder), "--resume", path, "--evaluate", "--loader"]
    for loader in ("device", "workers"):
        (result,) = train_cifar.main([*argv, loader])
        assert result["top1"] == rows[1]["top1"]
    report = json.loads(
        (where / "history" / f"{STORE}_run1" / "report.json").read_text()
    )["final"]  # fmt: skip
    assert result["loss"] == pytest.approx(report["loss"], rel=1e-5)  # the stage's own criterion


def test_evaluate_auto_takes_run_0_by_the_name_of_several_runs(finished, folder, here, capsys):
    """Beside it lies what an earlier ``--num_runs 1`` left, which is another run."""
    where, rows = finished
    store = "imagefolder_exp_0.25_resnet20_CE_W_None"
    for name, run in (("", 1), ("_run0", 0), ("_run1", 1)):
        (here / "checkpoint" / f"{store}{name}").mkdir(parents=True)
        shutil.copy(
            where / "checkpoint" / f"{STORE}_run{run}" / "ckpt.pth.tar",
            here / "checkpoint" / f"{store}{name}",
        )
    argv = [*small(folder), "--evaluate", "--resume", "auto", "--num_runs"]
    (result,) = train_cifar.main([*argv, "2"])
    assert result["top1"] == rows[0]["top1"]
    run0, run1 = (f"checkpoint/{store}_run{run}/ckpt.pth.tar" for run in (0, 1))
    said = capsys.readouterr().out
    assert f"=> loaded checkpoint '{run0}' (epoch 3)\n" in said
    assert (
        f"note: --evaluate --resume auto evaluates {run0} alone; the other runs by --resume with "
        f"their checkpoint: {run1}\n"
    ) in said
    (result,) = train_cifar.main([*argv, "1"])
    assert result["top1"] == rows[1]["top1"] and "other runs" not in capsys.readouterr().out


def test_checkpoint_of_another_run_needs_num_runs_1(finished, folder, here):
    where, _ = finished
    path = where / "checkpoint" / f"{STORE}_run1" / "ckpt.pth.tar"
    shutil.copy(path, here / "mine.pth.tar")
    with pytest.raises(UsageError, match="--num_runs 1"):
        train_cifar.main([*hml(folder), "--resume", "mine.pth.tar"])
    rows = train_cifar.main([*hml(folder, epochs=4), "--resume", "mine.pth.tar", "--num_runs", "1"])
    assert len(rows) == 1


def test_every_loss_and_weighting(folder, here):
    for loss_type in ["CE", "Focal", "LDAM", "HML1", "HML2"]:
        weighting = "CB" if loss_type in ("LDAM", "HML2") else "None"
        rows = train_cifar.main(
            [*small(folder), "--loss_type", loss_type, "--weighting_type", weighting,
             "--epochs", "2", "--start_hm_epoch", "1", "--num_runs", "1"]
        )  # fmt: skip
        name = f"imagefolder_exp_0.25_resnet20_{loss_type}_W_{weighting}"
        name += "_D_10000_run0" if "HML" in loss_type else ""
        report = json.loads((here / "history" / name / "report.json").read_text())
        weights = "" if weighting == "None" else ", CB"
        assert report["method"] == f"{loss_type}{weights}"
        assert report["network"]["use_norm"] == (loss_type == "LDAM")
        assert report["final"]["top1"] == rows[0]["top1"]


def test_several_ratios_and_both_types(folder, here):
    argv = [*small(folder), "--ir_list", "1", "0.5", "--imb_type", "both", "--num_runs", "1"]
    rows = train_cifar.main([*argv, "--epochs", "1"])
    assert len(rows) == 4
    groups = sorted(p.name for p in (here / "history").glob("*_summary.csv"))
    assert groups == [
        f"imagefolder_{t}_{r}_resnet20_CE_W_None_summary.csv"
        for t in ("exp", "step") for r in ("0.5", "1.0")
    ]  # fmt: skip


def test_bad_input_is_one_line(folder, here):
    empty = ["--dataset", "digits", "--imb_ratio", "0.005"]
    cases = [
        (["--root", "nowhere"], "no such folder"),
        ([*empty, "--weighting_type", "CS"], "--weighting_type CS divides"),
        ([*empty, "--loss_type", "LDAM"], "--loss_type LDAM divides"),
        (["--resume", "nowhere"], "no such file"),
        (["--path_history", "/proc/none"], "cannot write"),
    ]
    for change, text in cases:
        with pytest.raises(UsageError, match=text) as caught:
            train_cifar.main([*small(folder), "--num_runs", "1", *change])
        assert "\n" not in str(caught.value)


def test_all_groups_are_checked_before_the_first_trains(tmp_path, here):
    folder = tools.make_image_folder(
        tmp_path / "three", [24] * 3, size=8
    )  # steps need an even number
    cases = [
        (["--imb_type", "both"], "imbalance step 0.5 on imagefolder: "),
        (
            ["--imb_ratio", "0.5", "0.01"],
            "imbalance exp 0.01 on imagefolder: no image of class_002",
        ),
    ]
    for change, text in cases:
        with pytest.raises(UsageError, match=text):
            train_cifar.main([*small(folder), "--imb_ratio", "0.5", "--num_runs", "1", *change])
        assert not (here / "history").exists() and not (here / "checkpoint").exists()


def test_diverged_loss_stops_the_run(folder, here, monkeypatch):
    argv = [*small(folder), "--num_runs", "1", "--epochs", "2"]
    with pytest.raises(NonFiniteLoss, match="epoch 0, step"):
        train_cifar.main([*argv, "--lr", "1e30"])


def test_notes_speak_up(folder, here, capsys):
    train_cifar.main([*small(folder), "--loss_type", "HML1", "--num_runs", "1", "--epochs", "1"])
    out = capsys.readouterr().out
    assert "THE WHOLE RUN IS CROSS ENTROPY" in out and "--stretch_schedule" in out


def test_readme_command_from_its_folder_and_from_elsewhere(tmp_path):
    """The printed command; without CIFAR it ends with one line, URL and folder in it, code 2."""
    command = [
        "--loss_function", "HML", "--weighting_type", "CS", "--dataset_name", "cifar100",
        "--imb_type", "exp", "--imb_ratio", "0.02", "--gpu", "0",
    ]  # fmt: skip
    offline = {"https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    data = ["--root", tmp_path / "data"]
    done = tools.run([SCRIPT.name, *command, *data], SCRIPT.parent, **offline)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "cifar-100-python" in last and "https://" in last
    digits = ["--dataset_name", "digits", "--image_size", "16", "-a", "resnet20"]
    short = ["--epochs", "1", "--num_runs", "1"]
    done = tools.run_fresh([SCRIPT, *command, *digits, *short], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "running on the CPU" in done.stdout  # --gpu 0 where there is none
    assert (tmp_path / "history" / "digits_exp_0.02_resnet20_HML_W_CS_D_10000_run0").is_dir()


def test_two_processes_give_the_figures_of_one(finished, folder, tmp_path):
    where, rows = finished
    path = where / "checkpoint" / f"{STORE}_run1" / "ckpt.pth.tar"
    command = [SCRIPT, *hml(folder), "--resume", path, "--evaluate"]
    output = tools.run_to_the_end(command, tmp_path, processes=2)
    assert output.count(f"val Results: Prec@1 {rows[1]['top1']:.3f} ") == 1
