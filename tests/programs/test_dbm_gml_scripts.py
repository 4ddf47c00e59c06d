"""The six scripts of dbm_loss/GML/sh: what they call, and that it runs, from any folder."""

import itertools
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from common.models import archs
from common.models.resnet_cifar import resnet20
from dbm_loss.GML import cifar_ce, cifar_main, main, opts
from tests.programs import tools
from tests.programs.test_dbm_gml_main import Tiny

SH = tools.ROOT / "dbm_loss" / "GML" / "sh"
PAIRS = ["CIFAR100", "ImageNetLT", "iNaturalist"]
PROGRAMS = {"cifar_ce.py": cifar_ce, "cifar_main.py": cifar_main, "main.py": main}


def run(name, cwd, *args, **env):
    return subprocess.run(
        [SH / f"{name}.sh", *args],
        cwd=cwd,
        env=tools.environment(**{key: str(value) for key, value in env.items()}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def command(name, folder, *args, **env):
    """The command line that a script ends in: folder, then the words behind python or torchrun."""
    recorder = folder / "recorder"
    if not recorder.exists():
        recorder.write_text('#!/bin/sh\nprintf \'%s\\n\' "$PWD" "$@"\n')
        recorder.chmod(0o755)
    done = run(name, folder, *args, PYTHON=recorder, TORCHRUN=recorder, **env)
    assert done.returncode == 0, done.stderr
    cwd, *words = done.stdout.splitlines()
    assert cwd == str(SH.parent)
    return words


def ours(name):
    """What the scripts say beyond the published ones."""
    extra = ["--data", "./data"] if name.startswith("CIFAR") else ["--nnodes", "1"]
    return [*extra, "--root_path", "./outputs", "--use_dbm", "--max_margin", "0.1"]


def test_commands_are_the_published_ones_with_the_margin(golden, tmp_path):
    for stage, pair in product(["teacher", "student"], ["CIFAR100", "ImageNetLT"]):
        name = f"{pair}_train_{stage}"
        expected = golden("dbm_loss_gml").facts["scripts"][f"{name}.sh"][1:]
        expected = [os.path.expanduser(word) for word in expected]
        words = command(name, tmp_path, HOME=os.path.expanduser("~"))
        assert sorted(words) == sorted([*expected, *ours(name)])
        for flag, value in itertools.pairwise(expected):
            if flag.startswith("--") and not value.startswith("--"):
                assert words[words.index(flag) + 1] == value


def test_inferred_scripts_say_so_and_copy_the_rest_from_imagenet(tmp_path):
    for stage in ("teacher", "student"):
        assert "INFERRED" in (SH / f"iNaturalist_train_{stage}.sh").read_text()
        words = command(f"iNaturalist_train_{stage}", tmp_path)
        other = command(f"ImageNetLT_train_{stage}", tmp_path)
        assert words[words.index("--num_classes") + 1] == "8142"
        may_differ = {"--dataset", "--arch", "--path_t", "--data", "--mark", "--epochs", "--moco_k"}
        for flag in {word for word in other if word.startswith("--")} - may_differ:
            i, j = words.index(flag), other.index(flag)
            assert words[i + 1] == other[j + 1], flag


@pytest.mark.parametrize("pair", PAIRS)
def test_student_looks_where_the_teacher_wrote(tmp_path, pair):
    program, parsed = {}, {}
    for stage in ("teacher", "student"):
        words = command(f"{pair}_train_{stage}", tmp_path, OUTPUTS=tmp_path / "out")
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        program[stage] = {"cifar_ce.py": "cifar_ce", "cifar_main.py": "cifar_main"}.get(
            words[at], "main"
        )
        parsed[stage], _ = opts.parse_args(words[at + 1 :], program[stage])
    teacher, student = parsed["teacher"], parsed["student"]
    folder = Path(teacher.root_path) / teacher.dataset / teacher.mark
    assert student.path_t == str(folder / "moco_ckpt.pth.tar")
    assert student.arch_t == teacher.arch
    assert teacher.beta == 0 and student.beta == 1 and teacher.use_dbm and student.use_dbm


def test_the_environment_overrides_every_path_and_the_margin(tmp_path):
    words = command(
        "ImageNetLT_train_student", tmp_path, "--epochs", "1", DBM="", DATA="/d", OUTPUTS="/o",
        MARK="m", TEACHER="/t", ENDPOINT="host:1", NNODES="2",
    )  # fmt: skip
    args, _ = opts.parse_args(words[words.index("main.py") + 1 :], "main")
    assert (args.data, args.root_path, args.mark, args.path_t) == ("/d", "/o", "m", "/t")
    assert not args.use_dbm and args.epochs == 1
    assert words[:4] == ["--nnodes", "2", "--rdzv_backend=c10d", "--rdzv_endpoint=host:1"]


@pytest.mark.parametrize("pair", PAIRS)
def test_both_stages_run_on_generated_images(tmp_path, monkeypatch, pair):
    """What the scripts call, in this process; the networks of 224 pixels replaced by a tiny one."""
    network = resnet20 if pair == "CIFAR100" else Tiny
    monkeypatch.setattr(archs, "constructor", lambda arch: network)
    small = ["--epochs", "1", "--fake_data", "6", "--workers", "0", "--seed", "1"]
    if pair != "CIFAR100":
        small += ["--moco_dim", "8"]
    for stage in ("teacher", "student"):
        extra = ["--feat_t", "6"] if stage == "student" and pair != "CIFAR100" else []
        words = command(f"{pair}_train_{stage}", tmp_path, *small, *extra, OUTPUTS=tmp_path)
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        row = PROGRAMS[words[at]].main(words[at + 1 :])
        assert row["epoch"] == 0
        assert row["train_loss"] == row["train_loss"]
    marks = sorted(path.parent.name for path in tmp_path.glob("*/*/moco_ckpt.pth.tar"))
    assert len(marks) == 2


def test_a_script_runs_for_real_from_another_folder(tmp_path):
    """With torchrun, ResNet-18 and two generated images."""
    torchrun = shutil.which("torchrun", path=str(Path(sys.executable).parent)) or "torchrun"
    done = run(
        "ImageNetLT_train_teacher", tmp_path, "--epochs", "1", "--fake_data", "2", "--num_classes",
        "5", "--arch", "resnet18", "--workers", "0", "--moco_k", "16", "--moco_dim", "8",
        OUTPUTS=tmp_path, MARK="m", TORCHRUN=torchrun, ENDPOINT="localhost:0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "imagenet/m/moco_ckpt.pth.tar", weights_only=True)
    assert state["epoch"] == 1 and state["arch"] == "resnet18"
