"""Checkpoints appear complete or not at all, and are read without running what they hold."""

import argparse
import collections
import decimal
import errno
import io
import os
import pickle

import numpy as np
import pytest
import torch

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
        f"{path}: cannot be written (No space left on device); fix that and start again, a "
        "training with --resume auto (arbloss: resume auto)"
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


def test_cut_short_is_said(tmp_path):
    for length in [0, 100, 900]:
        path = tmp_path / "ckpt.pth"
        checkpoint.save({"epoch": 1, "state_dict": {"w": torch.zeros(100)}}, path)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(UsageError, match=r"ckpt\.pth: (not a complete checkpoint|refused)"):
            checkpoint.load(path)


def test_why_a_file_is_no_checkpoint_without_advice_or_warning(tmp_path, recwarn):
    cases = [
        (b"", "not a complete checkpoint, cut short? (EOFError)"),
        (b"PK\x03\x04xxxx", "not a complete checkpoint, cut short? (RuntimeError: PytorchStream"),
        (pickle.dumps([1], protocol=4), "damaged, or no checkpoint of torch.save"),
    ]
    for content, words in cases:
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(UsageError) as error:
            checkpoint.load(tmp_path / "x.pth")
        assert str(error.value).startswith(f"{tmp_path / 'x.pth'}: {words}")
        assert len(str(error.value)) < len(str(tmp_path)) + 150
    assert not recwarn.list


def test_every_damaged_byte_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "ckpt.pth"
    state = {"epoch": 1, "state_dict": {"w": torch.arange(40.0), "b": torch.ones(3)}}
    checkpoint.save(state, path)
    good = path.read_bytes()
    refused = 0
    for at in range(0, len(good), 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        try:
            loaded = checkpoint.load(path)
        except UsageError:
            refused += 1
            continue
        assert loaded["epoch"] == 1 and loaded["state_dict"].keys() == {"w", "b"}
        for key, value in state["state_dict"].items():
            assert torch.equal(loaded["state_dict"][key], value), at
    assert refused > 100


def test_a_damaged_weight_is_named(tmp_path):
    path = tmp_path / "ckpt.pth"
    checkpoint.save({"epoch": 1, "state_dict": {"w": torch.full((100,), 1.5)}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(1.5).tobytes() * 100) + 5] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["state_dict"]["w"][1] != 1.5  # torch takes it
    with pytest.raises(UsageError) as error:
        checkpoint.load(path)
    assert str(error.value) == (
        f"{path}: damaged, the checksum of archive/data/0 is wrong; take another copy, or an "
        "earlier checkpoint"
    )


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_code_in_a_file_is_never_run_and_the_entry_named(tmp_path, monkeypatch):
    cases = [
        ({"state_dict": Trap()}, "entry 'state_dict' is of posix.mkdir"),
        (
            {"epoch": 1, "args": {"lr": [0.1, decimal.Decimal(2)]}},
            "entry 'args'['lr'][1] is of decimal.Decimal",
        ),
        (Trap(), "all of it is of posix.mkdir"),
    ]
    for value, where in cases:
        monkeypatch.chdir(tmp_path)
        torch.save(value, "evil.pth")
        with pytest.raises(UsageError) as error:
            checkpoint.load("evil.pth")
        message = str(error.value)
        assert message.startswith(
            f"evil.pth: refused, {where}, and to make one could run code; only"
        )
        assert "torch.save it anew" in message
        assert "weights_only" not in message and "\n" not in message
        assert not os.path.exists("sprung")


def test_what_published_checkpoints_hold_is_read(tmp_path):
    state = {
        "args": argparse.Namespace(lr=0.1, cls_num_list=np.array([5, 2])),
        "best_acc1": np.float64(71.5),
        "per_class": np.ones((2, 3), dtype=np.float32),
        "state_dict": collections.OrderedDict(w=torch.ones(2)),
    }
    torch.save(state, tmp_path / "original.pth")
    loaded = checkpoint.load(tmp_path / "original.pth")
    assert loaded["best_acc1"] == 71.5 and loaded["args"].cls_num_list.tolist() == [5, 2]
    assert loaded["per_class"].shape == (2, 3)


def test_find(tmp_path):
    latest = tmp_path / "ckpt.pth.tar"
    assert checkpoint.find("", latest) is None
    assert checkpoint.find("auto", latest) is None
    latest.touch()
    assert checkpoint.find("auto", latest) == latest
    with pytest.raises(UsageError, match=r"--resume other\.pth: no such file"):
        checkpoint.find("other.pth", latest)
    with pytest.raises(UsageError, match=f"--resume {tmp_path}: a folder; give a checkpoint"):
        checkpoint.find(str(tmp_path), latest)
