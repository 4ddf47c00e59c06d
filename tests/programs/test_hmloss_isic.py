"""train_isic.py on made-up images: a run, its files, resume, evaluation, bad input."""

import csv
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from common.training.errors import UsageError
from hmloss.isic2019_implementation import data as isic
from hmloss.isic2019_implementation import train_isic
from hmloss.isic2019_implementation.preprocessing import split
from tests.programs.tools import ROOT, assert_same_weights, run, run_to_the_end
from tools import predict

SCRIPT = ROOT / "hmloss/isic2019_implementation/train_isic.py"
STORE = "isic2019_resnet20_HML_W_CS_F_32_D_10000"
SMALL = [
    "--arch", "resnet20", "--random_init", "--image_size", "16", "-b", "16", "-j", "0",
    "--weighting_type", "CS",
]  # fmt: skip
TWO_RUNS = [*SMALL, "--num_epochs", "3", "--start_hm_epoch", "2", "--num_runs", "2", "--seed", "4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """dataset/BEN and dataset/MAL: 30 brownish nevi, 20 bluish melanomas, all noisy."""
    folder = tmp_path_factory.mktemp("isic") / "dataset"
    rng = np.random.RandomState(1)
    for name, number, colour in (("BEN", 30, (150, 110, 90)), ("MAL", 20, (120, 110, 130))):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = np.clip(np.array(colour) + rng.randint(-60, 60, (20, 20, 3)), 0, 255)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / name / f"ISIC_{name}{i:03d}.JPG", format="JPEG")
    return folder


@pytest.fixture
def here(images, tmp_path, monkeypatch):
    """An empty folder to run in, with the images where the original expects them."""
    (tmp_path / "dataset").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """Two runs of three epochs, and what they returned."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "dataset").symlink_to(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rows = train_isic.main(TWO_RUNS)
    return folder, rows


def test_files_are_the_originals(finished, golden):
    folder, rows = finished
    sample = golden("hmloss").facts["isic_run_files"]
    ours = STORE.replace("resnet20", "efficientb3")
    for file in sample["files"]:
        path = folder / file.replace(ours, STORE)
        if "events" in file or "case_plot" in file:  # ours lie in the folder of their run
            pattern = "events.*" if "events" in file else "history_case_plot.png"
            assert all(list((path.parent / f"run{r}").glob(pattern)) for r in (0, 1))
        else:
            assert path.is_file(), file
    lines = (folder / "results" / STORE / "test_history.csv").read_text().splitlines()
    assert lines[0] == sample["test_history_csv"].splitlines()[0]
    assert lines[2] == f"0,run1,{rows[1]['best_epoch'] + 1},{rows[1]['bacc']},{rows[1]['auc']}"
    assert (folder / "history" / STORE / "args_history.txt").read_text().startswith("Namespace(")


def test_report_and_pictures(finished):
    folder, rows = finished
    for run_dir, row in zip(sorted((folder / "history" / STORE).glob("run?")), rows, strict=True):
        report = json.loads((run_dir / "report.json").read_text())
        assert "validation set" in report["note"]
        assert report["best"]["bacc"] == 100 * row["bacc"] and report["evaluated"] == "test"
        assert report["best"]["epoch"] == row["best_epoch"]
        assert report["test"] == {name: 100 * row[name] for name in train_isic.FIGURES}
        predictions = pd.read_csv(run_dir / "predictions.csv")
        hits = predictions["true"] == predictions["predicted"]
        assert hits.mean() == pytest.approx(row["accuracy"]) and len(hits) == report["test_images"]
        assert predictions["image"].map(lambda path: (folder / path).is_file()).all()
        assert report["cls_num_list"] == [24, 16]
        metrics = pd.read_csv(run_dir / "metrics.csv")
        assert metrics["epoch"].tolist() == [0, 1, 2]
        # From 1 % of 0.001 upwards, a step of 2,000 an epoch.
        climb = 0.00099 / 2000
        assert metrics["lr"].tolist() == pytest.approx([1e-5, 1e-5 + climb, 1e-5 + 2 * climb])
        assert metrics["bacc"].max() == report["validation"]["best"]["bacc"]
        for name in ("roc", "confusion", "curves", "per_class", "history_case_plot"):
            assert np.asarray(Image.open(run_dir / f"{name}.png").convert("L")).std() > 3, name
        spread = pd.read_csv(run_dir / "proba_distribution_all.csv")
        assert spread["Epoch"].tolist() == [1, 2, 3] and (spread["Total images"] == 5).all()


def test_summary_over_runs(finished):
    folder, rows = finished
    table = pd.read_csv(folder / "results" / STORE / "summary.csv")
    assert table["run"].tolist() == ["0", "1", "mean", "std"]
    assert table["best_epoch_from_0"].tolist()[:2] == [row["best_epoch"] for row in rows]
    assert "best_epoch" not in table  # which test_history.csv counts from 1, as the original
    assert table["seed"].tolist()[:2] == [4, 5]
    auc = np.array([row["auc"] for row in rows])
    np.testing.assert_allclose(
        table["auc"], 100 * np.array([*auc, auc.mean(), auc.std()]), rtol=1e-5
    )


def test_figures_are_those_of_the_saved_model(finished, monkeypatch, capsys):
    """Evaluating the best model's file on the saved split gives the figures of the run."""
    folder, rows = finished
    monkeypatch.chdir(folder)
    best = f"checkpoint/{STORE}/best_model_run1.pth"
    (again,) = train_isic.main([*SMALL, "--evaluate", "--resume", best])
    for name in ("bacc", "auc", "sensitivity", "specificity", "accuracy"):
        assert again[name] == pytest.approx(rows[1][name], abs=1e-12)
    out = capsys.readouterr().out
    assert f"[test bacc {again['bacc']:.5f}] ,  [test auc {again['auc']:.5f}]" in out
    assert f"=> loaded checkpoint '{best}'\n" in out and "other runs" not in out
    train_isic.main([*TWO_RUNS, "--evaluate", "--resume", "auto"])
    run0, run1 = (folder / "checkpoint" / STORE / f"run{run}" / "ckpt.pth.tar" for run in (0, 1))
    out = capsys.readouterr().out
    assert f"=> loaded checkpoint '{run0}' (epoch 3)\n" in out
    assert (
        f"evaluates {run0} alone; the other runs by --resume with their checkpoint: {run1}" in out
    )


def test_original_lines(here, capsys, golden):
    train_isic.main([*SMALL, "--num_epochs", "1", "--num_runs", "1", "-p", "2", "--seed", "0"])
    out = capsys.readouterr().out
    rule = "-" * 60
    assert f"{rule}\n[epoch 1], [val loss " in out
    assert f"{rule}\n[epoch 1],  [val bacc 0." in out and "] ,  [val auc 0." in out
    assert "[epoch 1], [iter 2 / 3], [train loss " in out
    assert "Increase of best bacc on [epoch 1] from [0.00000] to [" in out
    assert f"{rule}\nSaving current best model\n{rule}" in out
    assert "Evaluating the model\nRestore best model on epoch 1 with Best bacc Val: 0." in out
    assert "note: the epochs of a report count from 0: there, epoch 1 is 0\n" in out
    assert "; best on the validation set, epoch 0: " in out
    assert " part label  images\n" in out and "\ntrain   BEN      24\n" in out
    assert "\ntrain   MAL      16\n" in out
    header = golden("hmloss").facts["metric_classification_report"][0]
    assert header in out


def test_augmented_evaluation_is_an_option(images):
    """Validation and test images are the same every time, unless the original's way is asked."""
    data = isic.open_task("melanoma", images)
    data.table["part"] = "val"
    for augmented in (False, True):
        argv = [*SMALL, "--dataset_dir", str(images), *["--augmented_eval"] * augmented]
        args = train_isic.opts.parse_args(argv)
        process = train_isic.Process(torch.device("cpu"))
        loader, _ = train_isic.make_loader(args, data, "val", 0, process)
        epochs = []
        for epoch in (1, 2):
            loader.set_epoch(epoch)
            epochs.append(torch.cat([batch for batch, _, _ in loader]))
        assert torch.equal(*epochs) is not augmented


def test_early_stopping(here, capsys, monkeypatch):
    scores = iter([0.7, 0.6, 0.7, 0.5, 0.6, 0.9])

    def figures(_):
        return {name: next(scores, 0.5) for name in ("bacc",)} | {
            "auc": 0.5, "sensitivity": 0.5, "specificity": 0.5, "accuracy": 0.5,
        }  # fmt: skip

    monkeypatch.setattr(train_isic.Predictions, "figures", figures)
    argv = [*SMALL, "--num_epochs", "9", "--num_runs", "1", "--delay"]
    rows = train_isic.main([*argv, "2"])
    assert "Early stopping on [epoch: 5], [Best bacc Val: 0.700" in capsys.readouterr().out
    assert rows[0]["best_epoch"] == 2  # of equals the later one
    train_isic.main([*argv, "4", "--resume", "auto"])
    out = capsys.readouterr().out
    assert "[epoch 6]" in out and "Early stopping on [epoch: 7], [Best bacc Val: 0.700" in out
    train_isic.main([*argv, "3", "--resume", "auto"])
    assert "[epoch 8]" not in capsys.readouterr().out


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


@pytest.mark.parametrize(("method", "call"), [("_write", 2), ("finish", 1), ("_write", 5)])
def test_killed_and_resumed_runs_end_the_same(finished, here, monkeypatch, method, call):
    """Killed while it writes a checkpoint of either run, or before the first one's test."""
    folder, rows = finished
    real = getattr(train_isic.Record, method)
    done = []

    def die(self, *args, **more):
        done.append(method)
        if len(done) == call:
            raise Killed
        return real(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_isic.Record, method, die)
        with pytest.raises(Killed):
            train_isic.main(TWO_RUNS)
    resumed = train_isic.main([*TWO_RUNS, "--resume", "auto"])
    assert resumed == rows
    for name in ("run0", "run1"):
        last = Path("checkpoint") / STORE / name / "ckpt.pth.tar"
        assert_same_weights(folder / last, here / last)
    result = Path("results") / STORE / "test_history.csv"
    assert (here / result).read_bytes() == (folder / result).read_bytes()


def test_resume_repeats_dropout(here):
    """EfficientNet drops at random: a resumed epoch draws what the unbroken one drew."""
    argv = ["--arch", "efficientnet_b0", "--random_init", "--image_size", "32", "-b", "40"]
    argv += ["-j", "0", "--num_runs", "1", "--seed", "2", "--num_epochs"]
    last = Path("checkpoint/isic2019_efficientb0_HML_W_None_F_32_D_10000/run0/ckpt.pth.tar")
    train_isic.main([*argv, "1"])
    train_isic.main([*argv, "2", "--resume", "auto"])  # also: a finished run takes more epochs
    resumed = last.rename("resumed.pth.tar")
    straight = train_isic.main([*argv, "2", "--overwrite"])
    assert straight[0]["best_epoch"] in (0, 1)
    assert torch.load(last, weights_only=True)["epoch"] == 2
    assert_same_weights(resumed, last)


def test_split_from_file_tree_or_seed(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = isic.open_task("melanoma", images)
    table, drawn = data.table, train_isic.draw_split(data, 3)
    pd.testing.assert_frame_equal(drawn, train_isic.draw_split(data, 3))
    isic.save_split(tmp_path / "own.csv", drawn, "own")
    argv = [*SMALL, "--dataset_dir", str(images), "--num_epochs", "1", "--num_runs", "1"]
    train_isic.main([*argv, "--split_file", "own.csv"])
    used = isic.load_split(tmp_path / "history" / STORE / "split.csv", table)
    pd.testing.assert_frame_equal(used, drawn)
    train_isic.main([*argv, "--resume", "auto"])  # the run's own split, though none is named
    used = isic.load_split(tmp_path / "history" / STORE / "split.csv", table)
    pd.testing.assert_frame_equal(used, drawn)


def test_a_split_that_was_made_counts_before_the_folders(images, tmp_path):
    """TRAIN, VALID and TEST hold one split, preprocessing/split.py wrote another beside them."""
    tree = tmp_path / "tree"
    first = ["--output", str(tmp_path / "first.csv"), "--tree", str(tree)]
    split.main(["--dataset_dir", str(images), "--seed", "0", *first])
    args = train_isic.opts.parse_args([*SMALL, "--dataset_dir", str(tree)])
    table = isic.open_task("melanoma", tree).table
    found, notes = train_isic.find_split(args, table, tmp_path / "saved.csv")
    assert found is table and notes == []
    split.main(["--dataset_dir", str(tree), "--seed", "1"])
    found, notes = train_isic.find_split(args, table, tmp_path / "saved.csv")
    pd.testing.assert_frame_equal(found, isic.load_split(tree / "split.csv", table))
    moved = (found["part"] != table["part"]).sum()
    assert 0 < moved < 50 and notes == [
        f"note: {tree}/split.csv: {moved} of 50 images are in another part than in the folders of "
        f"{tree}, which do not count"
    ]
    args.split_file = tmp_path / "first.csv"  # says what the folders say
    found, notes = train_isic.find_split(args, table, tmp_path / "saved.csv")
    assert found["part"].equals(table["part"]) and notes == []


def test_bad_input_is_one_line(here):
    cases = [
        (["--dataset_dir", "nowhere"], "no such folder"),
        (["--split_file", "nowhere.csv"], "not a split"),
        (["--resume", "nowhere.pth"], "no such file"),
        (["--evaluate", "--resume", "auto"], "which images are for testing"),
        (["--arch", "resnet18", "--weights", "nowhere.pth"], "no such file"),
    ]
    for argv, text in cases:
        own = [flag for flag in SMALL if flag != "--random_init" or "--weights" not in argv]
        with pytest.raises(UsageError, match=text) as caught:
            train_isic.main([*own, "--num_runs", "1", *argv])
        assert "\n" not in str(caught.value)


def test_bad_flags_are_named():
    cases = [
        ["--loss_type", "HML2"],
        ["--use_cuda", "perhaps"],
        ["--momentum", "0.8"],
        ["--wd", "0"],
        ["--delta", "0"],
        ["--ratio_finetune", "0"],
        ["-b", "0"],
        ["--weights", "x", "--random_init"],
        ["--evaluate"],
    ]
    for argv in cases:
        with pytest.raises(UsageError, match=argv[0].replace("-b", "--batch_size")):
            train_isic.main(argv)


def test_readme_command_from_its_folder(images, tmp_path):
    """The printed command, shortened by flags only; offline it stops with the cure and code 2."""
    command = [SCRIPT, "--loss_type", "HML", "--delta", "10000"]
    (tmp_path / "dataset").symlink_to(images)
    offline = {"TORCH_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = run([*command, "-j", "0"], tmp_path, **offline)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "give the file as weights" in done.stderr and "--random_init" in done.stderr
    short = [*SMALL, "--num_epochs", "1", "--num_runs", "1"]
    done = run([*command, *short], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 run: bacc \d+\.\d\d ± 0\.00, ", done.stdout)


def test_two_processes_give_the_figures_of_one(finished, tmp_path):
    """With 2 processes: the same test figures for the same weights, over all images."""
    folder, rows = finished
    best = folder / "checkpoint" / STORE / "best_model_run0.pth"
    split = folder / "history" / STORE / "split.csv"
    command = [SCRIPT, *SMALL, "--dataset_dir", folder / "dataset", "--split_file", split]
    output = run_to_the_end([*command, "--evaluate", "--resume", best], tmp_path, processes=2)
    bacc, auc = rows[0]["bacc"], rows[0]["auc"]
    assert output.count(f"[test bacc {bacc:.5f}] ,  [test auc {auc:.5f}]") == 1


FOLDER = ["--task", "imagefolder", "--dataset_dir", "own", "--num_epochs", "2", "--num_runs", "1"]
OWN = "imagefolder_resnet20_HML_W_CS_F_32_D_10000"


def own_images(where, parts):
    """own/<part>/<class>/*, of as many images of each class as a part says, and classes.txt."""
    rng = np.random.RandomState(2)
    for part, numbers in parts.items():
        for label, (name, number) in enumerate(zip(("ant", "bee", "cat"), numbers, strict=True)):
            folder = where / "own" / part / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = np.clip(80 * label + rng.randint(0, 90, (12, 12, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    (where / "own" / "classes.txt").write_text("cat\nbee\nant\n")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_own_images_and_what_its_checkpoint_says(tmp_path, monkeypatch, capsys):
    """Three classes in the order of classes.txt, one of them without validation images."""
    monkeypatch.chdir(tmp_path)
    own_images(tmp_path, {"train": (4, 9, 6), "val": (2, 3, 0), "test": (2, 3, 2)})
    (row,) = train_isic.main([*SMALL, *FOLDER, "--seed", "1"])
    out = capsys.readouterr().out
    assert "note: the val part of own has no image of 1 of the 3 classes (cat): " in out
    logs = tmp_path / "history" / OWN / "run0"
    report = json.loads((logs / "report.json").read_text())
    assert report["classes"] == ["cat", "bee", "ant"] and report["cls_num_list"] == [6, 9, 4]
    best = report["best"]
    assert (
        best["bacc"] == pytest.approx(best["balanced_acc"]) and best["sensitivity"] == best["bacc"]
    )
    assert best["accuracy"] == pytest.approx(best["top1"]) and 0 <= best["auc"] <= 100
    assert best["bacc"] == pytest.approx(100 * row["bacc"])
    assert (logs / "roc.png").is_file() and (logs / "proba_distribution_all.csv").is_file()
    assert not (logs / "proba_distribution_mel.csv").exists()
    assert "         ant       " in out  # scikit-learn's report
    assert train_isic.main([*SMALL, *FOLDER, "--resume", "auto"]) == [row]

    # The checkpoint alone says the same of the same images.
    predict.main(
        [f"checkpoint/{OWN}/run0/ckpt.best.pth.tar", "own/test", "--out", "out", "-j", "0"]
    )
    ours, said = rows_of(logs / "predictions.csv"), rows_of("out/predictions.csv")
    said = {row["path"]: row for row in said}
    assert len(said) == len(ours) == 7
    for image in ours:
        again = said[image["image"]]
        assert (again["true"], again["class"]) == (image["true"], image["predicted"])
        assert float(again["probability"]) == pytest.approx(float(image["probability"]), abs=1e-5)
    evaluation = json.loads(Path("out/evaluation.json").read_text())
    assert evaluation["balanced_acc"] == pytest.approx(best["bacc"])

    # In another order they are other classes.
    (tmp_path / "own" / "classes.txt").unlink()
    with pytest.raises(UsageError, match="its class 0 is 'cat', and that of the data 'ant'; give"):
        train_isic.main([*SMALL, *FOLDER, "--resume", "auto"])


def test_a_folder_without_parts_is_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_images(tmp_path, {".": (20, 20, 10)})
    (tmp_path / "own" / "ant" / "0.png").rename(tmp_path / "own" / "ant" / "#0.png")
    train_isic.main([*SMALL, *FOLDER, "--num_epochs", "1", "--seed", "1"])
    split = tmp_path / "history" / OWN / "split.csv"
    found = isic.open_task("imagefolder", "own")
    table = isic.load_split(split, found.table)
    sizes = table.groupby(["label", "part"]).size()
    assert (
        sizes["ant"].to_dict() == {"test": 2, "train": 16, "val": 2}
        and "\nant/#0.png,ant," in split.read_text()
    )
    assert sizes["cat"].to_dict() == {"test": 1, "train": 8, "val": 1}
    assert found.classes == ["cat", "bee", "ant"] and found.table["label_idx"].max() == 2

    (tmp_path / "own" / "train").mkdir()
    with pytest.raises(UsageError, match=r"own/val: no such folder; the best epoch is chosen on"):
        train_isic.main([*SMALL, *FOLDER])


def test_two_classes_predicted_from_the_checkpoint(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    logs = folder / "history" / STORE / "run1"
    ours = rows_of(logs / "predictions.csv")
    best = f"checkpoint/{STORE}/run1/ckpt.best.pth.tar"
    predict.main([best, *(row["image"] for row in ours), "--out", "out", "-j", "0"])
    said = rows_of("out/predictions.csv")
    assert [row["class"] for row in said] == [row["predicted"] for row in ours]
    predict.main([best, str(folder / "dataset"), "--out", "out", "-j", "0"])  # folders are labels
    true = {row["path"]: row["true"] for row in rows_of("out/predictions.csv")}
    assert len(true) == 50 and all(true[row["image"]] == row["true"] for row in ours)
    assert {row["class"] for row in said} <= {"nv", "mel"}
    probabilities = [[float(row["probability"]) for row in rows] for rows in (ours, said)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)


def test_learning_rate_by_iteration(here):
    argv = [*SMALL, "--num_epochs", "2", "--num_runs", "1", "--step_size_up", "4"]
    train_isic.main(argv)
    rates = pd.read_csv(here / "history" / STORE / "run0" / "metrics.csv")["lr"]
    # 3 iterations an epoch: the last ones are 2 and 5, half a cycle is 4.
    np.testing.assert_allclose(rates, [1e-5 + 99e-5 * 2 / 4, 1e-5 + 99e-5 * 3 / 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train_isic.opts.parse_args([*argv, "--use_cuda", "False"]).use_cuda is False


def test_checkpoints_with_fractions_go_on_in_percent():
    """Earlier versions had fractions in their history, among percentages."""
    figures = dict.fromkeys(train_isic.FIGURES, 0.5)
    history = [{"epoch": e, "top1": 50.0, **figures, "bacc": b} for e, b in enumerate((0.7, 0.25))]
    record = SimpleNamespace(history=history, best_row=dict(history[0]), best_score=0.7)
    for _ in range(2):  # the second time there is nothing to do
        train_isic.rows_in_percent(record)
        assert [row["bacc"] for row in record.history] == pytest.approx([70, 25])
        assert record.history[1]["auc"] == record.history[1]["top1"] == 50
        assert record.best_row is record.history[0] and record.best_score == pytest.approx(70)
