"""Logs that can be cut back, meters, the report of a run."""

import io
import json
import os
import struct

import numpy as np
import pytest
import torch
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from common.training import logs
from common.training.errors import RunError, UsageError
from common.training.schedules import stretch, unreached


def test_a_log_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "log"
    log = logs.TextLog(path)
    log.write("one\n")
    offset = log.offset
    log.write("two, lost by a kill\n")
    log.close()
    again = logs.TextLog(path, offset)
    again.write("zwei\n")
    again.close()
    assert path.read_text() == "one\nzwei\n"
    path.write_text("on")  # what a power failure left of it
    again = logs.TextLog(path, offset)
    again.write("e\n")
    again.close()
    assert path.read_text() == "one\n"
    logs.TextLog(path).close()
    assert path.read_text() == ""


def test_meter_weighs_by_batch_size_and_reads_tensors_late():
    meter = logs.AverageMeter()
    meter.update(torch.tensor(2.0), 3)
    meter.update(torch.tensor(6.0), 1)
    assert meter.val == 6.0 and meter.avg == 3.0
    meter.reduce()
    assert meter.avg == 3.0


def test_folders_are_created_with_parents_and_said_once(tmp_path, capsys):
    folder = tmp_path / "a" / "b"
    logs.prepare_folders(folder)
    logs.prepare_folders(folder)
    assert capsys.readouterr().out == f"creating folder {folder}\n"
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write there"):
        logs.prepare_folders(tmp_path / "file" / "log")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        logs.prepare_folders(tmp_path)


def test_json_has_no_nan(tmp_path):
    logs.write_json(tmp_path / "x.json", {"a": float("nan"), "b": np.float32(1.5), 3: [np.inf]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": 1.5, "3": [None]}


def test_a_log_on_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "log").symlink_to("/dev/full")
    log = logs.TextLog(tmp_path / "log")
    with pytest.raises(RunError, match=r"/log: cannot be written \(No space left on device\)"):
        log.write("epoch 0\n")


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path):
    (tmp_path / "log").mkdir()
    with pytest.raises(RunError, match=r"/log: cannot be written \(Is a directory\)"):
        logs.TextLog(tmp_path / "log")
    with pytest.raises(RunError, match=r"/log: cannot be written \(Is a directory\)"):
        logs.write_json(tmp_path / "log", {})
    assert os.listdir(tmp_path) == ["log"]


def test_names_that_are_no_text_are_written_as_they_are(tmp_path):
    logs.write_text(tmp_path / "args.txt", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "args.txt").read_bytes() == b"caf\xe9"


def scalars(folder):
    """(step, tag, value) of all event files, and (step, None, None) where a run went on."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, None, None))
            data = data[16 + length :]
    return found


def test_tensorboard_gets_finite_scalars(tmp_path, capsys):
    events = logs.Events(tmp_path / "a")
    events.add_scalar("acc/few", 0.5, 3)
    events.add_scalar("acc/few", float("nan"), 4)
    events.add_scalar("acc/few", np.float64(0.25), 5)
    events.flush()
    assert scalars(tmp_path / "a") == [(3, "acc/few", 0.5), (5, "acc/few", 0.25)]
    events.close()
    logs.Events(tmp_path / "b", start_epoch=2).close()
    assert scalars(tmp_path / "b") == [(2, None, None)]
    assert capsys.readouterr() == ("", "")


def test_tensorboard_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(record_writer, "open_file", lambda path: open("/dev/full", "wb"))  # noqa: SIM115
    events = logs.Events(tmp_path)
    events.add_scalar("loss", 1.0, 0)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
        events.flush()


def test_stretch_keeps_the_fraction():
    assert stretch(160, 30, 200) == 24 and stretch(1, 10, 200) == 1
    assert unreached([10], 11, False) is None
    note = "note: the schedule's step at epoch 160, 180 is never reached with --epochs 30"
    assert unreached([180, 160, 180, 5], 30, True) == note
    cure = "; --stretch_schedule fits the whole schedule into the run"
    assert unreached([160, 180, 5], 30, False) == note + cure


def test_a_csv_has_a_column_for_every_key_and_gaps_for_what_is_missing(tmp_path):
    rows = [
        {"epoch": 0, "lr": 0.1, "top1": float("nan"), "name": "a,b"},
        {"epoch": 1, "lr": 1e-5, "top1": 12.345678901234567, "few": 2.5},
    ]
    logs.write_csv(tmp_path / "table.csv", rows)
    text = 'epoch,lr,top1,name,few\n0,0.1,,"a,b",\n1,1e-05,12.345678901234567,,2.5\n'
    assert (tmp_path / "table.csv").read_text() == text


def test_a_log_line_takes_the_place_of_the_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    progress = logs.Progress("check", 2)
    progress.step()
    assert "check |" in terminal.getvalue() and "1/2" in terminal.getvalue()
    progress.line("broken")
    assert terminal.getvalue().endswith("\r\x1b[Kbroken\n")
    progress.step()
    progress.close()
    assert terminal.getvalue().endswith("\r\x1b[K\n\x1b[?25h")  # the cursor is back
