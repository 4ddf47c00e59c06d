"""Checkpoints appear complete or not at all, and are read without running what they hold."""

import errno
import io
import os

import pytest
import torch
from torch import nn

from common.training import checkpoint
from common.training.errors import RunError, UsageError


def test_saved_and_loaded_is_the_same(tmp_path):
    state = {"epoch": 3, "state_dict": {"w": torch.arange(3.0)}, "history": [{"top1": 1.5}]}
    checkpoint.save(state, tmp_path / "a.pth", tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        loaded = checkpoint.load(tmp_path / name)
        assert torch.equal(loaded["state_dict"].pop("w"), torch.arange(3.0))
        assert loaded["history"] == [{"top1": 1.5}] and loaded["epoch"] == 3
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.pth"]


def interrupted_write(path):
    with checkpoint.atomic_file(path) as file:
        file.write(b"half")
        assert path.read_text() == "good"
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_last_good_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("good")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "good" and os.listdir(tmp_path) == ["file"]


class FullDisk(io.BytesIO):
    """A file on a disk with room for so many bytes."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)

    def fileno(self):
        return os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_full_disk_is_one_line_and_leaves_the_last_good_file(tmp_path, monkeypatch, room):
    path = tmp_path / "ckpt.pth.tar"
    path.write_text("good")

    def full(handle, mode):
        os.close(handle)
        return FullDisk(room)

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(RunError) as error:
        checkpoint.save({"state_dict": {"w": torch.zeros(50_000)}}, path)
    assert str(error.value) == (
        f"{path}: cannot be written (No space left on device); mend that and start again, a "
        "training with --resume auto"
    )
    assert path.read_text() == "good" and os.listdir(tmp_path) == ["ckpt.pth.tar"]


def test_files_get_the_usual_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        with checkpoint.atomic_file(tmp_path / "file") as file:
            file.write(b"x")
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("length", [0, 100, 900])
def test_cut_short_is_said(tmp_path, length):
    path = tmp_path / "ckpt.pth"
    checkpoint.save({"epoch": 1, "state_dict": {"w": torch.zeros(100)}}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"ckpt\.pth: (not a complete checkpoint|refused)"):
        checkpoint.load(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 1, "state_dict": Trap()}, "evil.pth")
    with pytest.raises(UsageError, match=r"evil\.pth: refused"):
        checkpoint.load("evil.pth")
    assert not os.path.exists("sprung")


def test_find(tmp_path):
    latest = tmp_path / "ckpt.pth.tar"
    assert checkpoint.find("", latest) is None
    assert checkpoint.find("auto", latest) is None
    latest.touch()
    assert checkpoint.find("auto", latest) == latest
    with pytest.raises(UsageError, match=r"--resume other\.pth: no such file"):
        checkpoint.find("other.pth", latest)


def test_weights_load_with_either_prefix_and_without_counters():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.nn.init.ones_(model[0].weight)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    del state["module.1.num_batches_tracked"]
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    checkpoint.load_weights(other, state, "file")
    assert torch.equal(other[0].weight, torch.ones(3, 2))


@pytest.mark.parametrize(("model", "words"), [
    (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "it lacks 1.bias and 1 more"),
    (nn.Sequential(), "it has besides 0.bias and 1 more"),
    (nn.Sequential(nn.Linear(2, 4)), r"it differs: 0.bias is \(3,\), the model's \(4,\)"),
])  # fmt: skip
def test_another_architecture_is_refused_with_the_difference(model, words):
    state = nn.Sequential(nn.Linear(2, 3)).state_dict()
    with pytest.raises(UsageError, match=words):
        checkpoint.load_weights(model, state, "file")
