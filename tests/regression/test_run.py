"""The runner: real programs on made-up images, killed and started again."""

import hashlib
import json
import time

import pytest

from tests.programs.tools import make_image_folder
from tests.regression import made_up, run
from tests.regression.results import write_result
from tools import programs, runner
from tools.programs import code_sha256

ID = "ib_loss-cifar10-exp10-ce"
EPOCHS = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp("images"), [10] * 10, test_per_class=1)


def flags(folder, images, *more):
    return [
        "-k", ID, "--method", "CE", "--data", "imagefolder", "--data-root", str(images),
        "--epochs", str(EPOCHS), "--results", str(folder / "results"),
        "--scratch", str(folder / "scratch"), *more,
    ]  # fmt: skip


def make_job(tmp_path, images, *more):
    args = run.get_parser().parse_args(flags(tmp_path, images, *more))
    return run.make_jobs(args, run.select_rows(args))


def starts(scratch):
    text = (scratch / "output.txt").read_text()
    return sum(line.startswith("$ ") for line in text.splitlines()), text


def test_an_interrupted_run_goes_on_and_a_finished_one_is_kept(tmp_path, images, capsys):
    name = f"{ID}_imagefolder_e{EPOCHS}_s0"
    scratch, result = tmp_path / "scratch" / name, tmp_path / "results" / f"{name}.json"
    (job,) = make_job(tmp_path, images)
    assert runner.start(job, 0, 1, images, [])
    deadline = time.monotonic() + 240
    while not list(scratch.rglob("ckpt.pth.tar")):
        assert job.process.poll() is None, "the program ended before its first epoch"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.process.kill()
    job.process.wait()
    job.lock.close()  # as if the runner had been killed too
    assert not result.exists()

    assert run.main(flags(tmp_path, images)) == 0
    count, text = starts(scratch)
    assert count == 2 and "=> loaded checkpoint" in text
    stored = json.loads(result.read_text())
    assert stored["epochs"] == EPOCHS and len(stored["curves"]["top1"]) == EPOCHS
    assert stored["data"]["dataset"] == "imagefolder" and len(stored["data"]["pixels_sha256"]) == 64
    assert "{root}" in stored["command"] and str(tmp_path) not in json.dumps(stored)
    assert stored["settings"][0]["stretch_schedule"] is True
    output = capsys.readouterr().out
    assert f"1/1 runs done, 0 running, epoch {EPOCHS}/{EPOCHS}, 0:00 h left" in output
    assert f"{EPOCHS} of 200" in output

    before = result.read_bytes()
    assert run.main(flags(tmp_path, images)) == 0
    assert starts(scratch)[0] == 2 and result.read_bytes() == before


def test_a_run_that_fails_is_told_and_leaves_no_result(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run.main(flags(tmp_path, tmp_path / "empty")) == 1
    output = capsys.readouterr().out
    assert "exit code 2" in output and "no such folder" in output and "1 failed" in output
    assert not list(tmp_path.rglob("*.json"))


def test_seeds_come_in_turn_and_rows_of_one_command_are_one_job(tmp_path, images):
    args = run.get_parser().parse_args(["--seeds", "0", "1", "--paper", "dbm_loss", "--dataset",
                                        "cifar100", "--ratio", "100"])  # fmt: skip
    rows = run.select_rows(args)
    jobs = run.make_jobs(args, rows)
    assert len(jobs) == 2 * len({row.id for row in rows}) < 2 * len(rows)
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)


def test_teacher_and_student_are_one_job(tmp_path):
    args = run.get_parser().parse_args(["-k", "cifar100-exp100-dbm_gml"])
    (job,) = run.make_jobs(args, run.select_rows(args))
    assert [words[1].rsplit("/")[-1] for words in job.commands] == ["cifar_ce.py", "cifar_main.py"]
    assert job.total == 400 and "{out}/cifar100/teacher" in runner.command_line(job)


def test_a_broken_result_is_told_before_anything_is_trained(tmp_path, images, capsys):
    (job, *_) = make_job(tmp_path, images)
    job.result.parent.mkdir()
    job.result.write_text("{")
    assert run.main(flags(tmp_path, images, "--seeds", "1", "0")) == 2
    assert f"{job.result}: not a result (" in capsys.readouterr().err
    assert not (tmp_path / "scratch").exists()


def keep(job, **more):
    """A made-up result of a job, which nothing trained."""
    write_result(job.result, made_up.result(ID, 70.0, data="imagefolder", epochs=EPOCHS) | more)


def test_kept_results_are_told_and_those_of_other_code_named(tmp_path, images, capsys):
    words = ["--seeds", "0", "1"]
    stale, fresh = make_job(tmp_path, images, *words)
    keep(stale, code_sha256="0" * 64, commit="1234")
    keep(fresh, code_sha256=code_sha256(), commit="5678")
    assert run.main(flags(tmp_path, images, *words)) == 0
    output = capsys.readouterr().out
    assert "note: 2 of 2 runs are kept as they are; their images are not read again\n" in output
    stale_note = f"note: {stale.result}: of other code (commit 1234); remove the file to train"
    assert output.endswith(f"\n{stale_note} again\n") and output.count("other code") == 1
    assert not (tmp_path / "scratch").exists()


def test_the_code_of_a_result_is_that_of_its_start(tmp_path, images, monkeypatch):
    (job,) = make_job(tmp_path, images)
    monkeypatch.setattr(runner, "code_sha256", lambda: "at the start")
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *_, **__: None)
    assert runner.start(job, 0, 1, images, [])
    monkeypatch.setattr(runner, "code_sha256", lambda: "edited meanwhile")
    assert runner.start(job, 0, 1, images, [])  # its next command
    job.lock.close()
    monkeypatch.setattr(run, "from_report", lambda *_, code, **__: {"code": code})
    job.store(job, tmp_path / "report.json")
    assert json.loads(job.result.read_text()) == {"code": "at the start"}


def test_bad_usage_is_told_in_a_line(capsys):
    cases = [
        (["--dataset", "cifar10", "cifar1000"], "--dataset cifar1000: no row of reported.csv"),
        (["--method", "ib", "nonsense"], "--method nonsense: no row of reported.csv is of it; run"),
        (["--ratio", "101"], "--ratio 101: no row of reported.csv is of it"),
        (["--paper", "hmloss", "--method", "IB"], "no row of reported.csv matches all conditions"),
        (["--list", "--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--list", "--seeds", "0", "-1"], "--seeds -1: must be at least 0"),
        (["--paper", "ib_loss", "--data-root", "/nowhere"], "no data in /nowhere/cifar10"),
        (["--data", "digits", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--data", "nothing"], "argument --data: invalid choice: 'nothing'"),
    ]
    for words, message in cases:
        assert run.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("run.py: error: ") and error.count("\n") == 1 and message in error


def test_what_runs_leave_beside_the_code_is_no_code(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    code = ["ib_loss/losses.py", "arbloss/config/a/b.yaml", "dbm_loss/augment/policies.json"]
    left = ["ib_loss/log/run/report.json", "arbloss/saved/run/logs/config.yaml"]
    seen = []
    for name in [*reversed(code), *left]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        if (tmp_path / code[-1]).is_file():
            seen.append(programs.code_sha256())
    assert seen[0] != seen[1] != seen[2] and seen[2] == seen[3] == seen[4]
    digest = hashlib.sha256(b"".join(f"{n}\0{n}".encode() for n in sorted(code)))
    assert seen[-1] == digest.hexdigest()
