"""Several processes: the README's launcher, and two launchers that meet over loopback."""

import json
import subprocess
import sys

import pytest
import torch

from arbloss import eval as evaluation
from tests.programs import tools
from tests.programs.arbloss_data import CONFIG, GROUPS, PROGRAMS, SMALL, make_folder, make_lists

ARB = ["--cfg", str(CONFIG / "cifar10" / "cifar10_imb001_stage1_mixup.yaml")]


def the_run(where):
    (folder,) = where.glob("saved/*")
    return folder, json.loads((folder / "logs" / "report.json").read_text())


def evaluate_alone(where, monkeypatch, argv):
    """The same checkpoint in one process: its figures must be those of all processes."""
    folder, report = the_run(where)
    monkeypatch.chdir(where)
    alone = evaluation.main([*argv, "resume", str(folder / "ckps" / "current.pth.tar")])
    for key in ("top1", "top5", "head", "med", "tail"):
        assert alone[key] == pytest.approx(report["final"][key], rel=1e-9)
    # Confidences are float32, and kernels differ with the size of the batch on each process.
    assert alone["ece"] == pytest.approx(report["final"]["ece"], rel=1e-5)
    assert alone["loss"] == pytest.approx(report["final"]["loss"], rel=1e-4)
    return folder, report


def test_the_readmes_launcher(tmp_path, monkeypatch):
    """As printed for ImageNet-LT, with two processes and small data; the flag has a dash today."""
    data = make_lists(
        tmp_path / "data", "ImageNet_LT_train.txt", "ImageNet_LT_test.txt", [7, 4, 3, 2, 1]
    )
    (tmp_path / "config").symlink_to(CONFIG)
    (tmp_path / "train_stage1.py").symlink_to(PROGRAMS / "train_stage1.py")
    words = ["--cfg", "./config/imagenet/imagenet_resnet50_arbloss_ugcc_mixup.yaml",
             "data_path", str(data), "num_classes", "5", "backbone", "resnet10_fe",
             "batch_size", "8", "workers", "0", "num_epochs", "1", "print_freq", "1",
             *GROUPS]  # fmt: skip
    done = tools.run_fresh(
        ["-m", "torch.distributed.launch", "--nproc_per_node", "2",
         "--master_port", tools.free_port(), "train_stage1.py", *words],
        tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "world_size 8 of the configuration gives way to the launcher's 2" in done.stdout
    # 17 images in batches of 8; said once
    assert done.stdout.count("leave 1 over, too few for batch norm") == 1
    assert done.stdout.count("Epoch: [0][1/2]") == 1
    evaluate_alone(tmp_path, monkeypatch, words)


def test_two_launchers_over_loopback(tmp_path, monkeypatch):
    """Two machines of one process each: each brings a whole batch_size."""
    folder = make_folder(tmp_path / "images")
    port = tools.free_port()
    words = [*ARB, *SMALL, "data_path", str(folder), "deterministic", "true"]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", rank,
             "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port,
             PROGRAMS / "train_stage1.py", *words],
            cwd=tmp_path,
            env=tools.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    outputs = [node.communicate(timeout=300) for node in nodes]
    assert all(node.returncode == 0 for node in nodes), outputs
    assert outputs[0][0].count("Epoch: [0][1/2]") == 1  # 58 images in global batches of 32
    assert "Epoch" not in outputs[1][0]
    run, _ = evaluate_alone(tmp_path, monkeypatch, words)

    # Started by the configuration's keys instead, the same two processes train the same weights.
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    keys = ["world_size", "2", "dist_url", f"tcp://127.0.0.1:{tools.free_port()}"]
    command = [PROGRAMS / "train_stage1.py", *words, *keys]
    done = tools.run_together([[*command, "rank", rank] for rank in "01"], by_hand, [{}, {}])
    assert done.returncode == 0, done.stderr
    (same,) = by_hand.glob("saved/*/ckps/current.pth.tar")
    tools.assert_same_weights(same, run / "ckps" / "current.pth.tar", key="state_dict_model")


@pytest.mark.parametrize("flag", ["--local_rank", "--local-rank"])
def test_old_and_new_spelling_of_the_launchers_flag(tmp_path, monkeypatch, flag):
    folder = make_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")  # monkeypatch takes back what the program may set
    from arbloss import train_stage1

    row = train_stage1.main(
        [f"{flag}=0", *ARB, *SMALL, "data_path", str(folder), "num_epochs", "1"]
    )
    assert row["epoch"] == 0
    assert torch.isfinite(torch.tensor(row["train_loss"]))
