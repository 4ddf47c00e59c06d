"""Stage 1 -> stage 2 -> evaluation, with MiSLAS's recipes, on small made data."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from arbloss import eval as evaluation
from arbloss import train_stage1, train_stage2, trainer
from common.training import pictures
from common.training.errors import UsageError
from tests.programs import tools
from tests.programs.arbloss_data import CONFIG, PROGRAMS, SMALL, make_folder

STAGE1 = ["--cfg", str(CONFIG / "cifar100" / "cifar100_imb001_stage1_mixup.yaml")]
STAGE2 = ["--cfg", str(CONFIG / "cifar100" / "cifar100_imb001_stage2_mislas.yaml")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def stage1(folder, tmp_path_factory):
    """Checkpoint of a stage 1 by the recipe of MiSLAS: cross-entropy and mixup."""
    where = tmp_path_factory.mktemp("stage1")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        train_stage1.main([*STAGE1, *SMALL, "data_path", str(folder), "arbloss", "False"])
    (path,) = where.glob("saved/*/ckps/current.pth.tar")
    return path


def options(folder, stage1, *words):
    return [*STAGE2, *SMALL, "data_path", str(folder), "resume", str(stage1), *words]


def newest(where):
    return max(where.glob("saved/*/ckps/current.pth.tar"), key=lambda path: path.stat().st_mtime)


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("shift_bn", [True, False])
def test_stage_2_and_evaluation(folder, stage1, here, capsys, shift_bn, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "picture", lambda path, _, *args: drawn.update({path.name: args}))
    row = train_stage2.main(options(folder, stage1, "shift_bn", str(shift_bn)))
    assert drawn["reliability.png"][-1] == (
        f"stage 2 by LAS, resnet20_fe, on {folder.name}\ntest set, epoch 1"
    )
    path = newest(here)
    before, after = load(stage1), load(path)
    assert after["epoch"] == 2
    assert {key for key in after if key.startswith("state_dict")} == {
        "state_dict_model", "state_dict_classifier", "state_dict_lws_model",
    }  # fmt: skip
    for name, value in before["state_dict_model"].items():
        moved = not torch.equal(value, after["state_dict_model"][name])
        statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert moved == (shift_bn and statistic), name
    for key in ("state_dict_classifier", "state_dict_lws_model"):
        weights = before.get(key, {"learned_norm": torch.ones(1, 5)})
        for name, value in weights.items():
            assert not torch.equal(value, after[key][name])
    rates = pd.read_csv(path.parents[1] / "logs" / "metrics.csv")["lr"]
    assert rates.tolist() == pytest.approx([0.1, 0.05])
    groups = after["optimizer"]["param_groups"]
    assert groups[0]["lr"] == pytest.approx(0.2 * groups[1]["lr"])
    # 58 images fill 4 batches of 16, and the class-aware order of 24 * 5 images gives 5.
    assert "Epoch: [1][4/5]" in capsys.readouterr().out

    figures = evaluation.main(options(folder, path))
    for key in ("top1", "top5", "ece", "loss", "head", "med", "tail"):
        assert figures[key] == pytest.approx(row[key], nan_ok=True)
    said = capsys.readouterr().out
    assert f"=> loaded checkpoint '{path}' (epoch 2)" in said
    assert f"* ECE   {row['ece']:.3f}%." in said
    (report,) = here.glob("saved/*/logs/eval.json")
    saved = json.loads(report.read_text())
    assert saved["top1"] == pytest.approx(row["top1"])
    assert sum(saved["calibration"]["counts"]) == 25
    assert saved["classes"][1] == "class_001" and saved["test_set"] == str(folder / "test")
    predictions = pd.read_csv(report.parent / "predictions.csv")
    assert (predictions["true"] == predictions["predicted"]).mean() * 100 == saved["top1"]
    again = evaluation.main(options(folder, "auto", "shift_bn", str(shift_bn)))  # the newest run
    assert again["loss"] == figures["loss"]
    assert f"=> loaded checkpoint '{path.relative_to(here)}'" in capsys.readouterr().out
    assert drawn["reliability.png"][-1].splitlines()[1] == "test set"


@pytest.mark.parametrize("log_dir", ["{run}/logs", "../{run.name}/logs"])
def test_an_evaluation_leaves_the_files_of_a_run_alone(folder, stage1, here, log_dir):
    """Though it is told the folders of that run, with the words that it was trained by."""
    run = here / "saved" / "run"
    shutil.copytree(stage1.parents[1], run)

    def files():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = files()
    words = ["log_dir", log_dir.format(run=run), "model_dir", str(run / "ckps")]
    evaluation.main(options(folder, run / "ckps" / "current.pth.tar", *words))
    assert files() == before
    (own,) = set(here.glob("saved/*")) - {run}
    assert (own / "logs" / "eval.json").is_file()


def test_classes_are_sampled_equally_often(folder, stage1, here, monkeypatch):
    seen, real = [], trainer.train_one_epoch

    def spy(network, loader, *args):
        seen.extend(target for _, target, _ in loader)
        return real(network, loader, *args)

    monkeypatch.setattr(trainer, "train_one_epoch", spy)
    train_stage2.main(options(folder, stage1, "num_epochs", "1"))
    assert torch.cat(seen).bincount().tolist() == [16] * 5
    seen.clear()
    train_stage2.main(options(folder, stage1, "num_epochs", "1", "train_stage2_instance", "True"))
    assert torch.cat(seen).bincount().tolist() == [24, 16, 9, 6, 3]


def test_other_losses_of_stage_2(folder, stage1, here):
    losses = {}
    for name, words in {
        "smoothing": [],
        "weighted": ["warbloss", "True", "arb_loss_use_global_class_cnt", "True"],
        "focal and mixup": ["arbloss_fl", "True", "mixup", "True", "alpha", "1"],
    }.items():
        row = train_stage2.main(options(folder, stage1, "num_epochs", "1", "seed", "3", *words))
        losses[name] = row["train_loss"]
    assert all(np.isfinite(loss) for loss in losses.values())
    assert len(set(losses.values())) == len(losses)


def test_the_best_of_stage_1_is_the_one_to_beat(folder, stage1, here):
    state = load(stage1)
    state["best_acc1"] = torch.tensor(100.0)
    state["its_ece"] = 1.5
    torch.save(state, here / "best.pth.tar")
    train_stage2.main(options(folder, here / "best.pth.tar", "num_epochs", "1"))
    folder_of_run = newest(here).parent
    assert {path.name for path in folder_of_run.iterdir()} == {"current.pth.tar", ".lock"}
    assert load(newest(here))["its_ece"] == 1.5
    state["run"]["facts"]["val_set"] = "0.2 of the training images"  # another figure
    torch.save(state, here / "best.pth.tar")
    row = train_stage2.main(options(folder, here / "best.pth.tar", "num_epochs", "1"))
    assert load(newest(here).with_name("model_best.pth.tar"))["best_acc1"] == row["top1"] < 100


def test_killed_and_resumed_is_unbroken_bit_for_bit(folder, stage1, tmp_path):
    program = PROGRAMS / "train_stage2.py"
    words = options(folder, stage1, "num_epochs", "3", "deterministic", "true")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    assert tools.kill_after_lines([program, *words], killed, 7, "Epoch: ")  # of 5 an epoch
    tools.run_to_the_end([program, *words, "resume", str(newest(killed))], killed)
    tools.run_to_the_end([program, *words], whole)
    (path,) = killed.glob("saved/*/ckps/current.pth.tar")
    for key in ("state_dict_model", "state_dict_classifier", "state_dict_lws_model"):
        tools.assert_same_weights(path, newest(whole), key=key)
    log = (path.parents[1] / "logs" / "metrics.csv").read_text()
    assert len(log.splitlines()) == 1 + 3


def bad(main, message, *argv):
    with pytest.raises(UsageError) as error:
        main(list(argv))
    assert message in str(error.value)


def test_a_misspelt_checkpoint_is_told_before_any_data_are_read(here):
    words = [*STAGE2, *SMALL, "data_path", "nowhere", "resume", "misspelt.pth"]
    bad(evaluation.main, "resume misspelt.pth: no such file; give a file that exists", *words)


def test_bad_checkpoints_are_named(folder, stage1, here):
    shipped = [*STAGE2, *SMALL, "data_path", str(folder)]
    bad(train_stage2.main, "Path/to/Stage1_checkpoint.pth.tar: no such file", *shipped)
    bad(train_stage2.main, "give resume CHECKPOINT", *shipped, "resume", "")
    bad(train_stage2.main, "no stage-2 run with these settings", *shipped, "resume", "auto")
    bad(evaluation.main, "name the checkpoint", *shipped, "resume", "")
    nothing = "resume auto: no run with these settings to evaluate; give resume CHECKPOINT"
    bad(evaluation.main, nothing, *shipped, "resume", "auto")
    torch.save({"epoch": 1, "state_dict_model": {}}, here / "half.pth")
    for main in (train_stage2.main, evaluation.main):
        bad(main, "half.pth: made with another architecture", *shipped, "resume", "half.pth")
    state = load(stage1)
    state["about"]["classes"].reverse()
    torch.save(state, here / "turned.pth")
    message = "turned.pth: its class 0 is 'class_004', and that of the data 'class_000'; give data "
    for main in (train_stage2.main, evaluation.main):
        bad(main, message, *shipped, "resume", "turned.pth")
    state = load(stage1) | {"state_dict_lws_model": {"learned_norm": torch.ones(1, 5)}}
    torch.save(state, here / "second.pth")
    bad(train_stage1.main, "go on with train_stage2.py",
        *STAGE1, *SMALL, "data_path", str(folder), "resume", "second.pth")  # fmt: skip
