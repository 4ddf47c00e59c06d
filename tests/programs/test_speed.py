"""What makes programs fast changes nothing that they compute."""

import csv
import json

import pytest
import torch

from common.training import speed
from tests.programs import small_runs, tools


@pytest.fixture
def here(tmp_path, monkeypatch):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def traced(monkeypatch):
    """torch.compile traces, but its graphs run as they are: a compiler takes half a minute."""
    monkeypatch.setitem(speed.COMPILER, "cpu", {"backend": "aot_eager"})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def with_flag(name, argv, flag, *value):
    """The command with a flag more; the programs of arbloss have keys."""
    if name.startswith("arb"):
        return [*argv, flag, *(value or ("True",))]
    return [*argv, f"--{flag}", *value]


def metrics(here):
    """The rows of the newest metrics.csv."""
    path = max(here.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def set_aside(here):
    """Make room for a second run of the same command."""
    for folder in ("log", "checkpoint", "history", "results", "outputs", "saved"):
        if (here / folder).exists():
            (here / folder).rename(here / f"{folder}_of_the_first")


def losses(here):
    return [float(row["train_loss"]) for row in metrics(here)]


@pytest.mark.parametrize("name", small_runs.PROGRAMS)
def test_a_compiled_run_is_the_eager_one_and_is_compiled_once(
    here, traced, name, monkeypatch, capsys
):
    # Its seconds are taken off those of the epoch: as if they were many less than none.
    compile_seconds = speed.compile_seconds
    monkeypatch.setattr(speed, "compile_seconds", lambda process: compile_seconds(process) - 1e6)
    program, argv = small_runs.command(name)
    program.main(argv)
    eager = losses(here)
    set_aside(here)
    if name == "arb_stage2":
        (path,) = here.glob("saved_of_the_first/*stage1*/ckps/current.pth.tar")
        argv = [*argv, "resume", str(path)]
    program.main(with_flag(name, argv, "compile"))
    assert losses(here) == pytest.approx(eager, rel=1e-4)
    assert "compiled in " in capsys.readouterr().out
    assert float(metrics(here)[0]["images_per_s"]) < 0.01
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # One for each kind of batch, CMO's plain and mixed ones; and the one that tries the compiler.
    assert graphs == (3 if name.endswith("cmo") else 2)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_run_compiled_for_real(here, monkeypatch, capsys):
    """With the compiler of this machine, anew; the network is tiny, but it takes a while."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(here / "cache"))
    program, argv = small_runs.command("ib_tiny")
    program.main(argv)
    eager = losses(here)
    set_aside(here)
    program.main([*argv, "--compile"])
    assert losses(here) == pytest.approx(eager, rel=1e-5)
    said = capsys.readouterr().out
    if "there is no working compiler" in said:
        pytest.skip("there is no C++ compiler")
    assert "compiled in " in said


def test_a_compiled_run_goes_on_where_it_stopped(here, traced):
    program, argv = small_runs.command("ib_cifar")
    argv = [*argv, "--compile", "--amp", "bf16"]
    program.main(argv)
    unbroken = losses(here)
    set_aside(here)
    program.main([*argv, "--epochs", "2"])
    program.main([*argv, "--resume", "auto"])
    assert losses(here) == unbroken


def test_two_processes_train_compiled_as_they_do_eager(here, traced):
    program, argv = small_runs.command("ib_cifar")
    tools.run_to_the_end([program.__file__, *argv], here, processes=2)
    eager = losses(here)
    set_aside(here)
    tools.run_to_the_end([program.__file__, *argv, "--compile"], here, processes=2)
    assert losses(here) == pytest.approx(eager, rel=1e-4)


def test_the_report_says_which_memory_format_and_another_one_on_resume_is_a_note(here, capsys):
    program, argv = small_runs.command("ib_cifar")
    program.main([*argv, "--epochs", "1"])
    (report,) = here.rglob("report.json")
    assert json.loads(report.read_text())["settings"]["channels_last"] is True
    program.main([*argv, "--epochs", "2", "--resume", "auto", "--no-channels_last"])
    assert json.loads(report.read_text())["settings"]["channels_last"] is False
    assert "channels_last True -> False" in capsys.readouterr().out


def test_channels_last_is_a_key_of_arbloss(here):
    program, argv = small_runs.command("arb_stage1")
    argv = [*argv, "num_epochs", "1"]
    for words, used in (([], True), (["channels_last", "False"], False)):
        program.main([*argv, *words])
        report = max(here.rglob("report.json"), key=lambda path: path.stat().st_mtime)
        assert json.loads(report.read_text())["settings"]["channels_last"] is used


ONE_LOSS = [name for name in small_runs.PROGRAMS if not name.endswith(("bcl", "ncl", "cmo"))]


@pytest.mark.parametrize("name", ONE_LOSS)
def test_not_every_epoch_is_evaluated_but_the_first_and_the_last_are(here, name):
    program, argv = small_runs.command(name)
    program.main(with_flag(name, argv, "eval_every", "5"))
    figure = "bacc" if name == "hml_isic" else "top1"
    assert [bool(row[figure]) for row in metrics(here)] == [True, False, True]
    report = max(here.rglob("report.json"), key=lambda path: path.stat().st_mtime)
    facts = json.loads(report.read_text())
    assert facts["note"].endswith("; 2 of 3 epochs were evaluated")
    assert facts["final"][figure] is not None
