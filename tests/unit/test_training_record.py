"""The record of a run: what goes on from it, what it refuses, what it never writes."""

import json
import multiprocessing
import os
from itertools import product
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd
import pytest
import torch
from torch import nn

from common.evaluation import Tally
from common.training import checkpoint, launch, pictures, report
from common.training.errors import NonFiniteLoss, UsageError
from common.training.files import Files
from common.training.launch import Process
from common.training.record import Record
from common.training.selection import Selection

CPU = Process(torch.device("cpu"))
ABOUT = {
    "program": "line.py", "method": "CE", "data": "digits", "network": {"arch": "line"},
    "transform": {"steps": []}, "classes": ["a", "b", "c"], "cls_num_list": [5, 2, 1],
}  # fmt: skip
FACTS = {"dataset": "digits", "pixels_sha256": "0" * 64}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "picture", lambda path, draw, *args: None)


def row(epoch, top1):
    return {
        "epoch": epoch, "lr": 0.1, "train_loss": 2.0 / (epoch + 1), "train_top1": top1 + 5,
        "top1": top1, "balanced_acc": top1, "top5": 90.0, "loss": 1.5, "ece": 3.0,
        "cls_acc": [0.5, 0.25, float("nan")], "many": top1, "medium": float("nan"), "few": 1.0,
        "epoch_s": 0.5,
    }  # fmt: skip


class Run:
    """A program of one weight; in epoch e the weight becomes e + 1 and the score ``SCORES[e]``."""

    SCORES = (3.0, 9.0, 5.0, 9.0)

    def __init__(self, folder, resume="", epochs=4, facts=FACTS, kind=torch.optim.SGD, **settings):
        options = settings.pop("options", {})
        settings |= settings.pop("start", {})
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizer = kind(self.model.parameters(), 0.1)
        self.scaler = torch.amp.GradScaler("cpu", enabled=settings.get("amp") == "fp16")
        files = Files(
            folder / "log", folder / "model", numbered="{}_ckpt.pth.tar", text_logs=("log",),
            copy=folder / "model" / "copy",
        )  # fmt: skip
        self.record = Record(files, CPU, settings, facts, about=ABOUT, **options)
        self.state = self.record.resume(resume, epochs)
        self.record.restore(self.model, self.optimizer, self.scaler)

    def train(self, epochs=4):
        record = self.record
        record.open(4 if record.seed is None else record.seed)
        for epoch in range(record.epoch, epochs):
            nn.init.constant_(self.model.weight, epoch + 1)
            record.log["log"].write(f"epoch {epoch}\n")
            record.writer.add_scalar("top1", self.SCORES[epoch], epoch)
            record.end_epoch(row(epoch, self.SCORES[epoch]), numbered=epoch == 2, arch="line")
        return self

    def test(self, epoch):
        """As many of four images of class 0 are recognised as the weight says."""
        tally = Tally(3)
        predicted = torch.arange(4) >= self.model.weight.item()
        tally.update(torch.eye(3)[predicted.long()], torch.zeros(4, dtype=torch.int64), epoch)
        tally.reduce()
        return tally

    def finish(self):
        return self.record.finish(None, self.test)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def weight(path):
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"])


def test_a_resumed_record_equals_an_unbroken_one(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    Run(a).train().finish()
    broken = Run(b).train(2).record
    broken.log["log"].write("half an epo")  # a kill in the middle of epoch 2
    broken.close()
    Run(b, "auto").train().finish()
    for name in ("log", "metrics.csv"):
        assert (a / "log" / name).read_text() == (b / "log" / name).read_text()
    assert pd.read_csv(a / "log" / "metrics.csv")["epoch"].tolist() == [0, 1, 2, 3]
    reports = [json.loads((x / "log" / "report.json").read_text()) for x in (a, b)]
    for found in reports:
        assert found["best"]["epoch"] == 1 and found["final"]["top1"] == 9.0
        assert found["seed"] == 4 and found["pixels_sha256"] == "0" * 64
    model = a / "model"
    assert sorted(os.listdir(model)) == [
        ".lock", "3_ckpt.pth.tar", "ckpt.best.pth.tar", "ckpt.pth.tar",
    ]  # fmt: skip
    assert weight(model / "ckpt.best.pth.tar") == 2 and weight(model / "ckpt.pth.tar") == 4
    assert weight(model / "3_ckpt.pth.tar") == 3


def test_of_equals_the_first_or_the_last_is_the_best(tmp_path):
    Run(tmp_path, options={"selection": Selection(later_of_equals=True)}).train().record.close()
    assert weight(tmp_path / "model" / "ckpt.best.pth.tar") == 4


@pytest.mark.parametrize(("name", "epochs"), [("ckpt.best", 2), ("3_ckpt", 3)])
def test_the_runs_own_best_or_numbered_checkpoint_goes_back_to_its_epoch(tmp_path, name, epochs):
    Run(tmp_path / "whole").train().finish()
    Run(tmp_path / "back").train().record.close()
    back = Run(tmp_path / "back", str(tmp_path / "back" / "model" / f"{name}.pth.tar"))
    assert back.record.epoch == epochs and back.record.seed == 4
    assert back.model.weight.item() == epochs
    back.train().finish()
    for path in ("log/log", "log/metrics.csv"):
        assert files(tmp_path / "back")[path] == files(tmp_path / "whole")[path]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "in_main", lambda action: None)
    other = Process(torch.device("cpu"), 1, 1)
    record = Record(Files(tmp_path / "x", tmp_path / "y"), other, {}, about=ABOUT)
    model = nn.Linear(1, 1)
    record.restore(model, torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu"))
    record.open(0)
    record.end_epoch(row(0, 1.0))
    record.finish(Tally(3), None)
    assert os.listdir(tmp_path) == []


def spoil_loss(run, bad):
    return {"loss": bad}


def spoil_train_loss(run, bad):
    return {"train_loss": bad}


def spoil_weight(run, bad):
    nn.init.constant_(run.model.weight, bad)
    return {}


def spoil_buffer(run, bad):
    run.model.register_buffer("mean", torch.tensor([0.0, bad]))
    return {}


def spoil_momentum(run, bad):
    run.optimizer.state[run.model.weight]["momentum_buffer"] = torch.full((1, 1), bad)
    return {}


def test_nothing_is_written_of_an_epoch_that_diverged(tmp_path):
    cases = [
        (spoil_loss, "loss is {bad} in epoch 3;"),
        (spoil_train_loss, "train_loss is {bad} in epoch 3;"),
        (spoil_weight, "state_dict.weight is not finite after 4 epochs;"),
        (spoil_buffer, "state_dict.mean is not finite after 4 epochs;"),
        (spoil_momentum, "optimizer.state.0.momentum_buffer is not finite after 4 epochs;"),
    ]
    for bad, (spoil, words) in product([float("nan"), float("-inf")], cases):
        folder = Path(mkdtemp(dir=tmp_path))
        run = Run(folder).train(3)
        before = files(folder)
        with pytest.raises(NonFiniteLoss) as error:
            run.record.end_epoch({**row(3, 99.0), **spoil(run, bad)}, numbered=True)
        assert str(error.value).startswith(words.format(bad=bad))
        assert str(error.value).endswith(
            "the run has diverged, what was saved before is kept. Lower the learning rate, or look "
            "for broken images"
        )
        run.record.close()
        after = files(folder)
        assert after.keys() == before.keys()
        assert all(after[name] == before[name] for name in before if "events" not in name)


def hold(folder, ready, release, grandchild):
    """Claim the folders in another process and keep them until released."""
    record = Record(Files(folder / "log", folder / "model"), CPU, {})
    record.claim("auto")
    if grandchild and os.fork() == 0:  # a worker that outlives its killed parent
        os.read(release, 1)
        os._exit(0)
    os.write(ready, b"x")
    if not grandchild:
        os.read(release, 1)
    os._exit(0)


def start_holder(folder, grandchild=False):
    ready, release = os.pipe(), os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=hold, args=(folder, ready[1], release[0], grandchild)
    )
    process.start()
    os.read(ready[0], 1)
    return process, release[1]


def test_a_living_run_keeps_its_folders(tmp_path):
    for settings in [{"resume": "auto"}, {"overwrite": True}]:
        folder = Path(mkdtemp(dir=tmp_path))
        Run(folder).train(2).record.close()
        before = files(folder)
        process, release = start_holder(folder)
        with pytest.raises(UsageError) as error:
            Run(folder, **settings)
        assert str(error.value).startswith(
            f"{folder / 'log'}: another run is writing there, process {process.pid} of "
        )
        os.write(release, b"x")
        process.join()
        assert files(folder) == before
        Run(folder, **settings).record.close()


def test_workers_of_a_killed_run_do_not_keep_its_folders(tmp_path):
    process, release = start_holder(tmp_path, grandchild=True)
    process.join()
    Run(tmp_path, "auto").record.close()
    os.write(release, b"x")


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    Run(tmp_path).train(2).record.close()
    before = files(tmp_path)
    with pytest.raises(UsageError) as error:
        Run(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'model'}: holds a run already; go on with --resume auto, replace it with "
        "--overwrite, or give this run another folder"
    )
    with pytest.raises(UsageError, match="--overwrite with --resume auto: start again or go on"):
        Run(tmp_path, "auto", overwrite=True)
    assert files(tmp_path) == before
    for name in ("model/ckpt.pth.tar", "model/ckpt.best.pth.tar"):
        (tmp_path / name).unlink()
    with pytest.raises(UsageError, match="holds a run already"):  # its metrics are left
        Run(tmp_path)


@pytest.mark.parametrize(("count", "name"), [
    ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID"), ("SLURM_RESTART_COUNT", "SLURM_JOB_ID"),
])  # fmt: skip
def test_a_command_that_a_launcher_repeats_does_not_overwrite_its_own_run(
    tmp_path, monkeypatch, count, name
):
    def start(id_, times, *flags, **settings):
        monkeypatch.setenv(name, id_)
        monkeypatch.setenv(count, times)
        return Run(tmp_path, *flags, **settings)

    start("6", "0").train(1).record.close()
    start("7", "1", overwrite=True).record.close()  # whose first start wrote nothing
    start("7", "0", overwrite=True).train(2).record.close()
    start("7", "0", overwrite=True).record.close()  # by hand, again
    start("8", "0", "auto").train(3).record.close()
    before = files(tmp_path)
    for id_ in ("7", "8"):
        with pytest.raises(UsageError) as error:
            start(id_, "1", overwrite=True)
        assert str(error.value) == (
            f"--overwrite: {count} is 1, and {tmp_path / 'model'} holds a run of the same {name}, "
            f"{id_}: if the launcher repeats this command, what its first start wrote would be "
            "removed; go on with --resume auto, or remove that folder to begin again"
        )
    start("9", "1", overwrite=True).record.close()
    assert files(tmp_path) == before
    (tmp_path / "model" / "ckpt.pth.tar").write_bytes(b"no checkpoint")
    start("8", "1", overwrite=True).train(1).record.close()
    with pytest.raises(UsageError, match="holds a run of the same"):
        start("8", "2", overwrite=True)
    (tmp_path / "model" / "ckpt.pth.tar").unlink()  # only metrics are left
    start("8", "2", overwrite=True).record.close()


@pytest.mark.parametrize("left", [
    ["log/report.json"], ["log/metrics.csv"], ["model/ckpt.best.pth.tar"], ["model/3_ckpt.pth.tar"],
    ["log/metrics.csv", "log/report.json", "model/3_ckpt.pth.tar", "model/ckpt.best.pth.tar"],
])  # fmt: skip
def test_a_run_without_its_latest_checkpoint_is_not_begun_again(tmp_path, left):
    Run(tmp_path).train().finish()
    for name in files(tmp_path).keys() - {"log/log", *left}:
        (tmp_path / name).unlink()
    before = files(tmp_path)
    with pytest.raises(UsageError) as error:
        Run(tmp_path, "auto")
    assert str(error.value) == (
        f"--resume auto: {tmp_path / 'model' / 'ckpt.pth.tar'} is not there, and the rest of its "
        "run would be removed; put it back, go on with another of its checkpoints, begin again "
        "with --overwrite instead, or give this run another folder"
    )
    assert files(tmp_path) == before
    Run(tmp_path, overwrite=True).train().record.close()


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_run_killed_in_its_first_epoch_is_begun_again(tmp_path, monkeypatch, written):
    """Metrics, best and latest checkpoint are written one after the other."""
    renamed = []

    def rename(*paths, replace=os.replace):
        if len(renamed) == written:
            raise KeyboardInterrupt
        renamed.append(paths)
        replace(*paths)

    run = Run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", rename)
        with pytest.raises(KeyboardInterrupt):
            run.train()
    run.record.close()
    assert len(renamed) == written and not run.record.latest.exists()
    (tmp_path / "model" / "copy").write_bytes(b"of the program itself, before its record's")
    assert [row["epoch"] for row in Run(tmp_path, "auto").train().record.history] == [0, 1, 2, 3]


def test_another_runs_checkpoint_does_not_replace_the_run_in_a_folder(tmp_path):
    Run(tmp_path / "a").train(2).record.close()
    Run(tmp_path / "b").train(1).record.close()
    other = str(tmp_path / "b" / "model" / "ckpt.pth.tar")
    with pytest.raises(UsageError, match="holds a run already"):
        Run(tmp_path / "a", other)
    anew = Run(tmp_path / "a", other, overwrite=True).train()
    assert anew.record.epoch == 4 and len(anew.record.history) == 4
    assert (tmp_path / "a" / "log" / "log").read_text() == "epoch 1\nepoch 2\nepoch 3\n"


def test_overwrite_removes_the_run_once_the_new_one_begins(tmp_path):
    Run(tmp_path).train().finish()
    (tmp_path / "model" / "mine.txt").write_text("not the run's")
    run = Run(tmp_path, overwrite=True)
    assert (tmp_path / "model" / "ckpt.pth.tar").exists()
    run.record.open(7)
    found = files(tmp_path)
    assert {name for name in found if "events" not in name} == {"log/log", "model/mine.txt"}
    assert found["log/log"] == b"" and sum("events" in name for name in found) == 1


@pytest.mark.parametrize("name", ["ckpt.pth.tar", "ckpt.best.pth.tar", "3_ckpt.pth.tar", "copy"])
@pytest.mark.parametrize("flag", ["weights", "path_t", "resume"])
def test_a_run_does_not_remove_the_file_that_it_begins_with(tmp_path, name, flag):
    """``resume``: of an earlier stage, whose file ``resume`` of the record is not told."""
    Run(tmp_path).train().record.close()
    (tmp_path / "model" / "copy").write_bytes(b"weights")
    (tmp_path / "link").symlink_to(tmp_path / "model" / name)
    before = files(tmp_path)
    with pytest.raises(UsageError) as error:
        Run(tmp_path, overwrite=True, start={flag: str(tmp_path / "link")})
    assert str(error.value) == (
        f"--{flag} {tmp_path / 'link'}: this run begins with a file that it would remove; "
        "copy it elsewhere, or give the run another folder"
    )
    assert files(tmp_path) == before
    Run(tmp_path / "other", overwrite=True, start={flag: str(tmp_path / "link")}).record.close()
    go_on = Run(tmp_path, "auto", start={flag: str(tmp_path / "link")})  # its start lies behind it
    assert go_on.record.epoch == 4
    go_on.record.close()
    if name != "ckpt.pth.tar":  # a run would begin again
        (tmp_path / "model" / "ckpt.pth.tar").unlink()
        with pytest.raises(UsageError, match="begins with a file that it would remove"):
            Run(tmp_path, "auto", start={flag: str(tmp_path / "link")})


def test_a_folder_in_the_place_of_a_file_is_refused_at_the_start(tmp_path):
    (tmp_path / "model" / "ckpt.pth.tar").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"ckpt\.pth\.tar: a folder is where this file goes"):
        Run(tmp_path)


def test_half_written_files_of_a_killed_run_are_removed(tmp_path):
    Run(tmp_path).train(1).record.close()
    for name in ("model/.ckpt.pth.tar.ab12.part", "log/.metrics.csv.cd34.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / "log" / "my.part").write_text("not the run's")
    Run(tmp_path, "auto").record.close()
    assert [name for name in files(tmp_path) if name.endswith(".part")] == ["log/my.part"]


def test_other_data_are_refused_or_accepted(tmp_path, capsys):
    Run(tmp_path).train(1).record.close()
    other = FACTS | {"pixels_sha256": "f" * 64}
    with pytest.raises(UsageError) as error:
        Run(tmp_path, "auto", facts=other)
    path = tmp_path / "model" / "ckpt.pth.tar"
    assert str(error.value) == (
        f"{path}: the data are not those of this run, pixels_sha256 was 000000000000… and "
        "is ffffffffffff…. Bring them back, or accept these with --other_data, or give this run "
        "another folder"
    )
    with pytest.raises(UsageError, match=r"Bring them back, or accept these with --other_data$"):
        Run(tmp_path, str(path), facts=other)
    Run(tmp_path, "auto", facts=other, other_data=True).train(2).record.close()
    assert f"note: {path}: the data are not those of this run" in capsys.readouterr().out
    Run(tmp_path, "auto", facts=other).record.close()  # accepted once
    Run(tmp_path, "auto", facts=other | {"labels_sha256": "1"}).record.close()  # unknown then


def test_data_of_other_classes_are_refused_whatever_was_accepted(tmp_path, capsys, monkeypatch):
    Run(tmp_path).train(1).record.close()
    path = tmp_path / "model" / "ckpt.pth.tar"
    monkeypatch.setitem(ABOUT, "classes", ["b", "a", "c"])
    wrong = f"{path}: its class 0 is 'a', and that of the data 'b'; give data of the same classes "
    for resume, settings, cure in (
        ("auto", {"other_data": True}, ", or give this run another folder"),
        (str(path), {"other_data": True}, ""),
        ("auto", {"evaluate": True}, ""),
    ):
        with pytest.raises(UsageError) as error:
            Run(tmp_path, resume, **settings)
        assert str(error.value) == f"{wrong}in the same order{cure}"
    monkeypatch.setitem(ABOUT, "classes", ["0", "1", "2"])
    Run(tmp_path, "auto").record.close()
    assert f"note: {path}: only the checkpoint names the classes;" in capsys.readouterr().out


def test_changed_settings_are_noted(tmp_path, capsys):
    Run(tmp_path, lr=0.1, seed=4, workers=2, start_epoch=0).train(1)
    capsys.readouterr()
    Run(tmp_path, "auto", lr=0.1, seed=None, workers=0, start_epoch=1).record.close()
    assert "note: " not in capsys.readouterr().out  # it keeps its seed
    Run(tmp_path, "auto", lr=0.2, seed=5, workers=0, start_epoch=1).record.close()
    said = capsys.readouterr().out
    assert said.endswith("note: resuming with changed settings: lr 0.1 -> 0.2, seed 4 -> 5\n")


def test_what_the_user_leaves_open_is_what_the_run_began_with(tmp_path, capsys):
    begun = Run(tmp_path, margin_norm=None)
    assert begun.record.settle("margin_norm", "last") == "last"
    begun.train(1)
    capsys.readouterr()
    for told, settled in ((None, "last"), ("rarest", "rarest")):
        again = Run(tmp_path, "auto", margin_norm=told).record
        assert again.settle("margin_norm", "rarest") == again.settings["margin_norm"] == settled
        again.close()
        changed = "note: resuming with changed settings: margin_norm last -> rarest\n"
        assert capsys.readouterr().out.endswith(changed) is bool(told)
    only = Run(tmp_path, "auto", margin_norm=None, evaluate=True).record
    assert only.settle("margin_norm", "rarest") == "last"


def change(path, **entries):
    state = torch.load(path, weights_only=True)
    for key, value in entries.items():
        if value is None and key not in ("epoch",):
            del state[key]
        else:
            state[key] = value
    torch.save(state, path)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path):
    cases = [
        ({"epoch": "three"}, "its 'epoch' is 'three', not a number of epochs"),
        ({"epoch": None}, "its 'epoch' is None, not a number of epochs"),
        ({"epoch": -3}, "its 'epoch' is -3, not a number of epochs"),
        ({"epoch": True}, "its 'epoch' is True, not a number of epochs"),
        ({"epoch": 2.5}, "its 'epoch' is 2.5, not a number of epochs"),
        ({"epoch": 9}, "9 epochs are done and 4 asked for; evaluate it, or ask for more"),
        ({"best_acc1": "high"}, "its 'best_acc1' is 'high', not a finite number"),
        ({"run": [1]}, "its 'run' is not the record of a run, but a list"),
        ({"run": {"history": [1]}}, "its 'run' is .*, an epoch of it is of type int"),
        ({"run": {"history": [{"top1": "x"}]}}, "its 'run' is .*, an epoch of it holds a str"),
        ({"run": {"best_row": {"top1": None}}}, "its 'run' is .*, an epoch of it holds a NoneType"),
        ({"run": {"best_row": "x"}}, "its 'run' is .*, 'best_row' is a str"),
        ({"run": {"best_row": {"top1": 5.0}}}, "its 'run' is .*, 'best_row' does not say its 'ep"),
        ({"run": {"best_row": {"epoch": 1}}}, "the best epoch of its 'run' has no number as 'top1"),
        ({"step": "x"}, "its 'step' is 'x', not a whole number from 0"),
        ({"step": -1}, "its 'step' is -1, not a whole number from 0"),
        ({"sums": [7.0]}, "its 'sums' are not the finite numbers of an epoch's first steps"),
        ({"sums": torch.tensor([float("nan")])}, "its 'sums' are not the finite numbers of an"),
        ({"run": {"seed": "x"}}, "its 'run' is .*, 'seed' is a str"),
        ({"run": {"facts": None}}, "its 'run' is .*, 'facts' is a NoneType"),
        ({"run": {"settings": [1]}}, "its 'run' is .*, 'settings' is a list"),
        ({"run": {"offsets": {"log": -5}}}, "its 'run' is .*, 'offsets' are no places in files"),
        (
            {"run": None, "epoch": 4},
            "4 epochs are done and 4 asked for; evaluate it, or ask for more",
        ),
        ({"state_dict": None}, "has no 'state_dict', not a checkpoint of this program"),
        ({"state_dict": [1]}, "its state dict is a list, not a dictionary of tensors"),
        ({"state_dict": {"weight": torch.ones(2, 1)}}, r".* it differs: weight is \(2, 1\),"),
        ({"optimizer": None}, "has no 'optimizer', .*; weights alone can only be evaluated"),
        ({"optimizer": {"state": {}}}, "its 'optimizer' is not SGD's of this network"),
    ]
    for entries, words in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        Run(folder / "a").train(2).record.close()
        path = folder / "a" / "model" / "ckpt.pth.tar"
        change(path, **entries)
        with pytest.raises(UsageError, match=f"ckpt.pth.tar: {words}"):
            Run(folder / "b", str(path))


def test_a_place_within_an_epoch_that_has_become_shorter(tmp_path):
    run = Run(tmp_path).train(1)
    assert run.record.place(4, 1) == (0, None)
    run.record.save(step=3, sums=torch.tensor([7.0]))
    run.record.close()
    record = Run(tmp_path, "auto").record
    assert record.place(4, 1) == (3, torch.tensor([7.0]))
    with pytest.raises(UsageError) as error:
        record.place(3, 1)
    assert str(error.value) == (
        f"{record.latest}: taken after 3 steps of an epoch, which has 3 here; go on with the "
        "images, batch size and number of machines that the run began with"
    )
    record.close()


def test_a_place_within_an_epoch_of_another_length(tmp_path):
    run = Run(tmp_path).train(1)
    run.record.save(step=3, steps=4, sums=torch.tensor([7.0]))
    run.record.close()
    record = Run(tmp_path, "auto").record
    assert record.place(4, 1) == (3, torch.tensor([7.0]))
    for steps in (2, 8):
        with pytest.raises(UsageError, match=f"after 3 of 4 steps of an epoch, which has {steps}"):
            record.place(steps, 1)
    record.close()


def test_the_number_of_processes_and_the_code_are_noted(tmp_path, capsys, monkeypatch):
    commits = iter(["a1", "a1", "b2", "b2", "a1"])
    monkeypatch.setattr(report, "commit", lambda: next(commits))
    Run(tmp_path).train(1).record.close()
    Run(tmp_path, "auto").train(2).record.close()
    assert "note" not in capsys.readouterr().out
    run = Run(tmp_path, "auto").train(3)
    run.record.close()
    assert capsys.readouterr().out.splitlines()[-1] == "note: the code was at a1 and is at b2"
    path = tmp_path / "model" / "ckpt.pth.tar"
    change(path, run=torch.load(path, weights_only=True)["run"] | {"processes": 4})
    Run(tmp_path, "auto").train(3).record.close()
    said = capsys.readouterr().out
    assert said.count("note") == 1
    assert "note: resuming with changed settings: processes 4 -> 1\n" in said
    Run(tmp_path, "auto").train(4).finish()
    assert "note: the code was at b2 and is at a1\n" in capsys.readouterr().out
    found = json.loads((tmp_path / "log" / "report.json").read_text())
    assert found["versions"]["commit"] == "a1, b2" and found["processes"] == 1


def test_a_run_of_a_later_first_epoch_goes_on_in_it(tmp_path):
    run = Run(tmp_path, start_epoch=2)
    run.record.open(4)
    run.record.save(step=1, sums=torch.ones(3))
    run.record.close()
    for start_epoch in (2, 0):
        record = Run(tmp_path, "auto", start_epoch=start_epoch).record
        assert (record.epoch, record.place(4, 3)[0]) == (2, 1)
        record.close()


@pytest.mark.parametrize(("sums", "found"), [
    (torch.ones(2), "of shape (2,)"), (torch.tensor(1.0), "of shape ()"), (None, "missing"),
])  # fmt: skip
def test_sums_of_an_unfinished_epoch_that_are_another_programs(tmp_path, sums, found):
    run = Run(tmp_path).train(1)
    run.record.save(step=3, sums=torch.ones(3))
    run.record.close()
    latest = tmp_path / "model" / "ckpt.pth.tar"
    change(latest, sums=sums)
    record = Run(tmp_path, "auto").record
    with pytest.raises(UsageError) as error:
        record.place(4, 3)
    assert str(error.value) == (
        f"{latest}: taken in the middle of an epoch, and its 'sums' is {found}, not of shape (3,); "
        "take another copy, or an earlier checkpoint"
    )
    record.close()


def test_a_checkpoint_without_epoch_is_no_checkpoint(tmp_path):
    checkpoint.save({"state_dict": {}}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"x\.pth: has no 'epoch', not a checkpoint of this"):
        Run(tmp_path, str(tmp_path / "x.pth"))


def test_weights_alone_can_be_evaluated(tmp_path):
    for wrapped in [True, False]:
        folder = Path(mkdtemp(dir=tmp_path))
        weights = {"module.weight": torch.full((1, 1), 7.0)}
        torch.save({"state_dict": weights} if wrapped else weights, folder / "w.pth")
        run = Run(folder, str(folder / "w.pth"), evaluate=True)
        assert run.model.weight.item() == 7 and run.record.epoch == 4
        assert os.listdir(folder) == ["w.pth"]  # nothing is created or locked
        with pytest.raises(UsageError, match=r"--evaluate --resume auto: there is no .* yet"):
            Run(folder, "auto", evaluate=True)


def test_half_precision_goes_on_from_full_and_back(tmp_path):
    Run(tmp_path).train(1).record.close()
    run = Run(tmp_path, "auto", amp="fp16")
    run.scaler.scale(torch.ones(1))
    run.train(2).record.close()
    path = tmp_path / "model" / "ckpt.pth.tar"
    scaler = torch.load(path, weights_only=True)["scaler"]
    assert scaler["scale"] == 65536.0
    change(path, scaler={**scaler, "scale": 512.0, "_growth_tracker": 7})
    run = Run(tmp_path, "auto", amp="fp16")
    assert run.scaler.state_dict() == {**scaler, "scale": 512.0, "_growth_tracker": 7}
    run.record.close()
    Run(tmp_path, "auto").record.close()


def test_checkpoints_of_earlier_versions_go_on(tmp_path):
    """They hold no facts and no best score, and some programs counted epochs from 1."""
    Run(tmp_path).train(2).record.close()
    path = tmp_path / "model" / "ckpt.pth.tar"
    run = torch.load(path, weights_only=True)["run"]
    history = [{**old, "epoch": old["epoch"] + 1} for old in run["history"]]
    del run["facts"]
    change(path, run={**run, "history": history, "best_row": history[1]})
    record = Run(tmp_path, "auto").train().record
    assert [epoch["epoch"] for epoch in record.history] == [0, 1, 2, 3]
    assert record.best_row["epoch"] == 1 and record.best_score == 9.0


def test_an_originals_best_is_the_one_to_beat(tmp_path):
    Run(tmp_path / "a").train(1).record.close()
    path = tmp_path / "a" / "model" / "ckpt.pth.tar"
    change(path, run=None, scaler=None, best_acc1=torch.tensor(8.0))
    record = Run(tmp_path / "b", str(path)).train(3).record
    assert record.best_score == 9.0 and [old["epoch"] for old in record.history] == [1, 2]
    assert weight(tmp_path / "b" / "model" / "ckpt.best.pth.tar") == 2


@pytest.mark.parametrize("named", [True, False])
def test_an_originals_run_goes_on_in_its_own_folders(tmp_path, named):
    """Its logs are gone on with, and its best checkpoint stays until it is beaten."""
    Run(tmp_path).train(1).record.close()
    path, best = (tmp_path / "model" / name for name in ("ckpt.pth.tar", "ckpt.best.pth.tar"))
    for file in (path, best):
        change(file, run=None, scaler=None, best_acc1=torch.tensor(9.0))
    (tmp_path / "log" / "metrics.csv").unlink()
    run = Run(tmp_path, str(path) if named else "auto").train(3)
    run.record.close()
    assert (tmp_path / "log" / "log").read_text() == "epoch 0\nepoch 1\nepoch 2\n"
    assert weight(best) == 1 and weight(path) == 3
    Run(tmp_path, "auto").train(3).record.close()
    assert weight(best) == 1
    change(best, best_acc1=torch.tensor(8.0))
    change(path, run=None, epoch=1, best_acc1=torch.tensor(8.0))
    with pytest.raises(
        UsageError, match="holds a run already"
    ):  # of these programs, by its metrics
        Run(tmp_path, str(path))
    (tmp_path / "log" / "metrics.csv").unlink()
    Run(tmp_path, "auto").train(2).record.close()
    assert weight(best) == 2


@pytest.mark.parametrize("name", ["ckpt.pth.tar", "ckpt.best.pth.tar"])
def test_an_originals_best_that_does_not_say_how_good_it_is_is_not_written_over(tmp_path, name):
    Run(tmp_path).train(1).record.close()
    path = tmp_path / "model" / name
    change(path, run=None, scaler=None)
    (tmp_path / "log" / "metrics.csv").unlink()
    before = files(tmp_path)
    with pytest.raises(UsageError) as error:
        Run(tmp_path, str(path))
    assert str(error.value) == (
        f"{path}: does not say what its best epoch reached, and {path.parent}/ckpt.best.pth.tar "
        "would be written over; give this run another folder"
    )
    assert files(tmp_path) == before


def test_an_originals_best_of_another_figure_is_not_the_one_to_beat(tmp_path):
    """Of top-1 on the test set, where the balanced accuracy on validation images chooses now."""
    Run(tmp_path / "a").train(1).record.close()
    path = tmp_path / "a" / "model" / "ckpt.pth.tar"
    change(path, run=None, scaler=None, best_acc1=torch.tensor(99.0))
    options = {"options": {"selection": Selection(chosen_on="held-out")}}
    record = Run(tmp_path / "b", str(path), **options).train(3).record
    assert record.best_score == 9.0 and record.best_row["epoch"] == 1


@pytest.mark.parametrize(("validated", "changed", "alike"), [
    (None, "test_pixels_sha256", False), (None, "pixels_sha256", True),
    ("val", "val_pixels_sha256", False), ("val", "test_pixels_sha256", True),
    ("val", "pixels_sha256", True),
])  # fmt: skip
def test_what_other_images_chose_is_not_the_one_to_beat(
    tmp_path, capsys, validated, changed, alike
):
    """The data were others, which --other_data accepts."""
    keys = ["pixels_sha256", "test_pixels_sha256"] + ["val_pixels_sha256"] * (validated == "val")
    facts = dict.fromkeys(keys, "0") | ({"val_set": "x"} if validated else {})
    options = {"options": {"selection": Selection(chosen_on=validated)} if validated else {}}
    Run(tmp_path, facts=facts, **options).train(2).record.close()
    now = facts | {changed: "1"}
    for epochs in (2, 3):  # that it is finished is no matter before the data
        with pytest.raises(UsageError, match="the data are not those of this run"):
            Run(tmp_path, "auto", epochs=epochs, facts=now, **options)
    capsys.readouterr()
    record = Run(tmp_path, "auto", facts=now, other_data=True, **options).train(3).record
    best = (1, 9.0) if alike else (2, 5.0)
    assert (record.best_row["epoch"], record.best_score) == best
    assert ("the best is looked for anew" in capsys.readouterr().out) != alike
    record.close()


def test_a_finished_run_is_evaluated_on_other_images(tmp_path, capsys):
    """Its best epoch, chosen on the former ones, is not there beside the new figures."""
    facts = FACTS | {"test_pixels_sha256": "0"}
    Run(tmp_path, epochs=3, facts=facts).train(3).finish()
    facts["test_pixels_sha256"] = "1"
    Run(tmp_path, "auto", epochs=3, facts=facts, other_data=True).train(3).finish()
    note = "its best epoch was chosen on another set; the last epoch is reported\n"
    assert note in capsys.readouterr().out
    report = json.loads((tmp_path / "log" / "report.json").read_text())
    for which in ("best", "final"):
        assert (report[which]["epoch"], report[which]["top1"]) == (2, 75.0)
    assert report["per_class"]["recall"][0] == 75.0
    assert weight(tmp_path / "model" / "ckpt.best.pth.tar") == 3


def test_what_another_set_chose_is_not_the_one_to_beat(tmp_path, capsys):
    """The best epoch is looked for anew, whichever of the two had validation images."""
    validated = {"options": {"selection": Selection(chosen_on="val")}}
    with_val = FACTS | {"val_set": "val.txt"}
    runs = {"test": {}, "val": {"facts": with_val, **validated}}
    for before, now in [("test", "val"), ("val", "test")]:
        folder = tmp_path / before
        Run(folder, **runs[before]).train(2).record.close()
        capsys.readouterr()
        record = Run(folder, "auto", **runs[now]).train(3).record
        assert (record.best_row["epoch"], record.best_score) == (2, 5.0)
        record.close()
        path = folder / "model" / "ckpt.pth.tar"
        assert capsys.readouterr().out.splitlines()[-1] == (
            f"note: {path}: its best epoch was chosen on another set; the best is looked for anew"
        )
        assert weight(folder / "model" / "ckpt.best.pth.tar") == 3
        record = Run(folder, "auto", **runs[now]).train(4).record
        assert (record.best_row["epoch"], record.best_score) == (3, 9.0)
        record.close()
        with pytest.raises(UsageError, match="4 epochs are done and 4 asked for; evaluate it, or"):
            Run(folder, "auto", **runs[before])


def test_a_checkpoint_says_what_it_is_of(tmp_path):
    Run(tmp_path).train(1).record.close()
    state = torch.load(tmp_path / "model" / "ckpt.pth.tar", weights_only=True)
    assert state["about"] == ABOUT


def test_without_a_validation_set_the_last_epoch_is_reported(tmp_path, capsys):
    last = Run(tmp_path).train().finish()
    report = json.loads((tmp_path / "log" / "report.json").read_text())
    assert report["reported"]["which"] == "final"
    assert last["top1"] == report["final"]["top1"] == report["best"]["top1"] == 9.0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "last epoch 3: top-1 9.000; best on the test set, epoch 1: top-1 9.000; "
        f"report in {tmp_path / 'log'}"
    )


@pytest.mark.parametrize("killed", [False, True])
def test_the_best_epoch_of_the_validation_set_is_tested_with_its_own_weights(
    tmp_path, capsys, killed
):
    options = {"options": {"selection": Selection(chosen_on="val")}}
    run = Run(tmp_path, **options).train()
    if killed:  # after its last epoch, before the report
        run.record.close()
        run = Run(tmp_path, "auto", **options).train()
    last = run.finish()
    assert (last["epoch"], last["top1"]) == (3, 100)
    report = json.loads((tmp_path / "log" / "report.json").read_text())
    # Epoch 1 has the weight 2: two of the four images. Its loss is that of its epoch.
    best, final = report["best"], report["final"]
    assert (best["epoch"], best["top1"], best["loss"], best["train_loss"]) == (1, 50, 1, 1)
    assert (final["epoch"], final["top1"], final["loss"], final["train_loss"]) == (3, 100, 3, 0.5)
    assert [report["validation"][key]["top1"] for key in ("best", "final")] == [9, 9]
    predictions = (tmp_path / "log" / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in predictions] == ["predicted", "a", "a", "b", "b"]
    line = (
        "last epoch 3: top-1 100.000, balanced accuracy 100.000; best on the validation set, "
        "epoch 1: top-1 50.000, balanced accuracy 50.000; both on the test set; "
        f"report in {tmp_path / 'log'}"
    )
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert (tmp_path / "log" / "log").read_text().splitlines()[-1] == line


@pytest.mark.parametrize("left", [None, "3_ckpt.pth.tar"])
def test_a_best_epoch_without_checkpoint_is_not_reported(tmp_path, capsys, left):
    """Neither with that of another epoch."""
    run = Run(tmp_path, options={"selection": Selection(chosen_on="held-out")}).train()
    run.record.best.unlink()
    if left:
        (tmp_path / "model" / left).rename(run.record.best)
    run.finish()
    report = json.loads((tmp_path / "log" / "report.json").read_text())
    assert report["best"]["epoch"] == 3 and report["best"]["top1"] == 100
    note = "note: the checkpoint of the best epoch, 1, is not there: the last epoch is reported\n"
    assert note in capsys.readouterr().out


VALIDATED = {"options": {"selection": Selection(chosen_on="held-out", score="top1")}}


@pytest.mark.parametrize(("scores", "epochs", "left", "best"), [
    ((3.0, 5.0, 9.0, 10.0), 3, 3, 2),  # the epoch that is gone back to is the best again
    ((3.0, 9.0, 5.0, 10.0), 3, None, 2),  # an earlier one is: its weights were written over
    ((3.0, 9.0, 5.0, 10.0), 4, 4, 3),
    ((3.0, 9.0, 5.0, 9.0), 4, 2, 1),  # the best is not gone back before
])  # fmt: skip
def test_a_run_that_goes_back_leaves_the_best_of_a_later_epoch_behind(
    tmp_path, monkeypatch, scores, epochs, left, best
):
    """The best checkpoint is of the epoch that it is reported as, or none."""
    monkeypatch.setattr(Run, "SCORES", scores)
    Run(tmp_path, **VALIDATED).train().record.close()
    source = str(tmp_path / "model" / "3_ckpt.pth.tar")
    Run(tmp_path, source, epochs=epochs, **VALIDATED).train(epochs).finish()
    kept = tmp_path / "model" / "ckpt.best.pth.tar"
    assert (weight(kept) if kept.is_file() else None) == left
    report = json.loads((tmp_path / "log" / "report.json").read_text())
    # As many of four images are recognised as the weight says, which is one more than the epoch.
    assert (report["best"]["epoch"], report["best"]["top1"]) == (best, 25 * (best + 1))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_kill_between_best_and_latest_checkpoint_leaves_no_best_of_an_epoch_that_is_not_done(
    tmp_path, monkeypatch, capsys, damaged
):
    """Unless the epoch is done again, which writes the same."""
    run = Run(tmp_path, **VALIDATED).train(3)
    run.record.close()
    latest, best = run.record.latest, run.record.best
    before = latest.read_bytes()
    monkeypatch.setattr(Run, "SCORES", (3.0, 9.0, 5.0, 10.0))
    Run(tmp_path, "auto", **VALIDATED).train().record.close()
    latest.write_bytes(before)
    if damaged:  # it is not needed
        best.write_bytes(b"no checkpoint")
        Run(tmp_path, "auto", **VALIDATED).train().finish()
        assert weight(best) == 4
        return
    copy = tmp_path / "model" / "copy"  # of the best weights, by the program itself
    copy.write_bytes(b"of epoch 3")
    Run(tmp_path, "auto", epochs=3, **VALIDATED).train(3).finish()
    assert not best.exists() and not copy.exists()
    report = json.loads((tmp_path / "log" / "report.json").read_text())
    assert (report["best"]["epoch"], report["best"]["top1"]) == (2, 75)
    assert f"note: {best} is of a later epoch, and removed" in capsys.readouterr().out


@pytest.mark.parametrize(("score", "best"), [(4.0, 1), (2.0, 0)])
def test_a_run_that_goes_back_to_an_epoch_between_two_evaluations_evaluates_it(
    tmp_path, score, best
):
    """In place of the missing figures of the last epoch, which may prove the best."""
    run = Run(tmp_path).train(1)
    run.record.log["log"].write("epoch 1\n")
    nn.init.constant_(run.model.weight, 2)
    unevaluated = {key: row(1, 0.0)[key] for key in ("epoch", "lr", "train_loss", "epoch_s")}
    run.record.end_epoch(unevaluated)
    run.record.close()
    run = Run(tmp_path, "auto", epochs=2)
    run.record.open(4)
    last = run.record.finish(None, run.test, figures=lambda tally: {"top1": score, "many": score})
    assert (last["epoch"], last["top1"], last["train_loss"]) == (1, score, 1.0)
    report = json.loads((tmp_path / "log" / "report.json").read_text())
    assert (report["final"]["top1"], report["best"]["epoch"]) == (score, best)
    assert pd.read_csv(tmp_path / "log" / "metrics.csv")["top1"].tolist() == [3.0, score]
    assert weight(run.record.best) == best + 1
