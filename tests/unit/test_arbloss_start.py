"""Which run ``resume auto`` goes on with."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from arbloss import start
from arbloss.opts import load_config
from common.training import launch
from common.training.errors import UsageError

CFG = Path(start.__file__).parent / "config/cifar10/cifar10_imb001.yaml"


def config(*words):
    return load_config(CFG, words)


FACTS = {"pixels_sha256": "A", "test_pixels_sha256": "T"}
DATA = SimpleNamespace(facts=FACTS, classes=["cat", "dog"])


def made(name, minute, *words, pixels="A", classes=("cat", "dog")):
    """The checkpoint of a run of these keys, images and classes, written in this minute."""
    folder = Path("saved") / f"cifar10_imb001_{name}"
    for part in ("logs", "ckps"):
        (folder / part).mkdir(parents=True)
    (folder / "logs/config.yaml").write_text(config(*words).dump())
    path = folder / "ckps/current.pth.tar"
    state = {"epoch": 1, "about": {"classes": list(classes)}}
    torch.save(state | {"run": {"facts": {**FACTS, "pixels_sha256": pixels}}}, path)
    os.utime(path, (60 * minute, 60 * minute))
    return str(path)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_resume_auto_goes_on_with_the_newest_run_of_the_same_settings():
    assert start.newest_run("cifar10_imb001", config(), DATA) == ("", [])
    made("202601010000", 1, "lr", "0.05")
    slow = made("202601010001", 2, "lr", "0.05")
    fast = made("202601010001-2", 3, "seed", "1")
    made("202601010002", 4, "num_epochs", "3", "seed", "2")
    words = ("lr", "0.05", "workers", "0", "name", "other", "mode", "stage2")  # three of no effect
    path, (note,) = start.newest_run("cifar10_imb001", config(*words), DATA)
    assert path == slow
    assert note == (
        "note: resume auto passes over saved/cifar10_imb001_202601010002/ckps/current.pth.tar, a "
        "run with other settings (lr 0.1 -> 0.05, num_epochs 3 -> 200, seed 2 -> None); give "
        "resume saved/cifar10_imb001_202601010002/ckps/current.pth.tar to go on with it"
    )
    assert start.newest_run("cifar10_imb001", config("seed", "1"), DATA)[0] == fast
    newest = config("num_epochs", "3", "seed", "2", "resume", "auto")
    assert start.newest_run("cifar10_imb001", newest, DATA)[1] == []


def test_a_run_that_nothing_tells_about_is_passed_over():
    path = Path(made("202601010000", 1))
    (path.parents[1] / "logs/config.yaml").unlink()
    assert start.newest_run("cifar10_imb001", config(), DATA) == (
        "",
        [
            f"note: resume auto passes over {path}, a run with other settings (it has no "
            f"config.yaml to compare); give resume {path} to go on with it"
        ],
    )


def test_a_run_on_other_training_images_is_passed_over(tmp_path):
    mine = made("202601010000", 1)
    other = made("202601010001", 2, pixels="B")

    def newest(*words, **facts):
        data = SimpleNamespace(facts=FACTS | facts, classes=DATA.classes)
        return start.newest_run("cifar10_imb001", config(*words), data)

    note = (
        f"note: resume auto passes over {other}, a run on other training images (another "
        f"pixels_sha256); give resume {other} other_data True to go on with it"
    )
    assert newest() == (mine, [note])
    assert newest(test_pixels_sha256="U") == (mine, [note])  # the record refuses those
    assert newest(pixels_sha256="B") == (other, [])
    assert newest("other_data", "True") == (other, [])
    assert newest(pixels_sha256="C")[0] == ""
    # A folder that was named holds one run: the record says how its data have changed.
    ckps, logs = (str(tmp_path / Path(other).parents[1] / part) for part in ("ckps", "logs"))
    words = ["model_dir", ckps, "log_dir", logs]
    Path(logs, "config.yaml").write_text(config(*words).dump())
    assert newest(*words) == (f"{ckps}/current.pth.tar", [])


def test_a_run_of_other_classes_is_passed_over_whatever_is_accepted():
    mine = made("202601010000", 1)
    other = made("202601010001", 2, pixels="B", classes=("car", "plane"))
    note = f"note: resume auto passes over {other}, a run of other classes, or in another order"
    for words in ((), ("other_data", "True")):
        assert start.newest_run("cifar10_imb001", config(*words), DATA) == (mine, [note])


def test_the_folder_of_a_run_is_looked_for_in_one_process(monkeypatch):
    """The others are told: they read no checkpoint, which may be many and large."""
    mine = made("202601010000", 1)
    found = start.run_folder(str(CFG), config("resume", "auto"), 1, DATA)
    assert found.resume == mine
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(launch, "broadcast_object", lambda value: (None, found))
    monkeypatch.setattr(start.checkpoint, "load", None)
    assert start.run_folder(str(CFG), config("resume", "auto"), 1, DATA) == found


def test_stage_2_needs_something_to_start_from():
    made("202601010000", 1, "lr", "0.05")
    with pytest.raises(UsageError) as error:
        start.run_folder(str(CFG), config("resume", "auto"), 2, DATA)
    said = str(error.value)
    assert said.startswith("resume auto: no stage-2 run with these settings to continue; note: ")
    assert said.endswith("; give the stage-1 checkpoint")


def test_of_processes_by_hand_each_has_the_first_gpu_of_its_machine(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(launch.peers, "meet", lambda *args: None)
    by_hand = config("world_size", "2", "rank", "1", "dist_url", "tcp://127.0.0.1:29500")
    process, _ = start.start_process(by_hand, None)
    assert process == launch.Process(torch.device("cuda", 0), 1, 2)


def test_a_stage_1_of_other_images_is_noted():
    """The same images without the part that chooses now, say."""
    facts = {"labels_sha256": "ab", "pixels_sha256": "cd", "test_labels_sha256": "ef"}
    assert start.other_images({"epoch": 1}, facts) == []  # an original
    assert start.other_images({"run": {"facts": dict(facts)}}, facts) == []
    facts["val_labels_sha256"] = "kl"
    before = facts | {"test_labels_sha256": "ij", "val_labels_sha256": "mn"}
    assert start.other_images({"run": {"facts": before}}, facts) == []  # trained on the same
    before["labels_sha256"] = "gh"
    assert start.other_images({"run": {"facts": before}}, facts) == [
        "note: stage 1 was trained on other images (another labels_sha256); those that choose the "
        "best epoch, or test it, may be among them"
    ]


def test_the_score_of_stage_1_counts_where_it_is_the_same_figure_of_the_same_images():
    facts = {"labels_sha256": "ab", "test_labels_sha256": "ef"}
    validated = facts | {"labels_sha256": "gh", "val_set": "0.2 of the training images"}

    def beat(stage1, chosen_on="test"):
        data = SimpleNamespace(facts=facts, split="test", chosen_on=chosen_on)
        return start.score_to_beat(stage1, data)

    def run(its_facts):
        return {"best_acc1": 11.3, "run": {"facts": its_facts}}

    end = ", so the best score of stage 1 is not the one to beat"
    assert beat({"best_acc1": 11.3}) == (11.3, [])  # an original
    assert beat({}) == (0.0, [])
    assert beat(run(facts | {"labels_sha256": "gh"})) == (11.3, [])
    chosen = "note: stage 1 chose its best epoch on 0.2 of the training images"
    assert beat(run(validated)) == (0.0, [chosen + end])
    tested = "note: stage 1 was tested on other images"
    assert beat(run(facts | {"test_labels_sha256": "ij"})) == (0.0, [tested + end])
    here = "note: validation images choose the best epoch of this stage"
    for stage1 in (run(facts), run(validated), {"best_acc1": 11.3}):
        assert beat(stage1, "held-out") == (0.0, [here + end])
