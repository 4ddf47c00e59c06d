"""dbm_loss/cifar/main.py end to end."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from common.training.errors import NonFiniteLoss, UsageError
from datasets import loaders, long_tail
from datasets.sources import Source
from dbm_loss.cifar import engine, main, models
from dbm_loss.cifar.opts import LOSSES
from tests.programs import tools

SCRIPT = tools.ROOT / "dbm_loss" / "cifar" / "main.py"
COMMANDS = tools.readme_commands(tools.ROOT / "dbm_loss/README.md", "python main.py --gpu 0")
COSINE = ["--use_norm", "--use_dbm"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """ResNet-8 instead of ResNet-32, in forked processes too."""
    monkeypatch.setattr(models, "BLOCKS", 1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Three classes of 8, 5 and 3 images of the CIFAR size."""
    folder = tmp_path_factory.mktemp("images")
    return tools.make_image_folder(folder, [8, 5, 3], test_per_class=2)


@pytest.fixture
def small(images):
    """Flags of a run of one epoch of two steps."""
    return ["--dataset", "imagefolder", "--data_dir", str(images), "--imb_type", "none",
            "--batch-size", "8", "--epochs", "1", "--seed", "1", "--workers", "0"]  # fmt: skip


RUN = "results/imagefolder/tmp/ir_none"


def test_readme_has_the_five_published_commands():
    assert [command[command.index("--name") + 1] for command in COMMANDS] == [
        "dbm_ce_m01", "dbm_drw_m01", "dbm_bs_m01", "dbm_bcl_m01", "dbm_ncl_m01"
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(5))
def test_readme_commands(here, small, number):
    """As printed, on small data for two epochs of the stretched schedule."""
    command = COMMANDS[number]
    row = main.main([*command, *small, "--epochs", "2", "--stretch_schedule"])
    assert row["epoch"] == 1 and np.isfinite(row["train_loss"])
    name = command[command.index("--name") + 1]
    assert (here / "results" / "imagefolder" / name / "ir_none" / "report.json").is_file()


def test_starts_from_the_papers_folder(tmp_path, small):
    done = tools.run_fresh(["main.py", *small, "--out", tmp_path / "out"], SCRIPT.parent)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/imagefolder/tmp/ir_none/checkpoint.pth.tar").is_file()
    assert "---> Epoch: [1 | 1]" in done.stderr


def test_starts_from_the_root_and_bad_usage_is_one_line_with_code_2():
    done = tools.run(["dbm_loss/cifar/main.py", "--dataset", "digits", "--use_dbm"], tools.ROOT)
    assert done.returncode == 2
    (message,) = done.stderr.strip().splitlines()
    assert message.startswith("main.py: error: --use_dbm") and "--use_norm" in message


def test_every_loss_without_margin(here, small):
    """The commands of the README have the margin."""
    for loss_fn in LOSSES:
        row = main.main([*small, "--loss_fn", loss_fn, "--overwrite"])
        assert np.isfinite(row["train_loss"])
        weights = torch.load(f"{RUN}/checkpoint.pth.tar", weights_only=True)["state_dict"]
        classifier = {"bcl": "fc", "ncl": "classifier_ce.0"}.get(loss_fn, "linear")
        assert f"{classifier}.bias" in weights


def test_policies_with_both_loaders(here, small, capsys):
    """One that has a version for whole batches, and one that has not; all are tested by unit."""
    for loader in ("device", "workers"):
        for aug_type in ("autoaug_cifar", "randaug"):
            row = main.main(
                [*small, "--aug_type", aug_type, "--cutout", "--loader", loader, "--overwrite"]
            )
            assert np.isfinite(row["train_loss"])
            one_by_one = aug_type == "randaug"
            assert ("runs image by image" in capsys.readouterr().out) == one_by_one


@pytest.mark.parametrize("loader", ["device", "workers"])
@pytest.mark.parametrize("loss_fn", ["bcl", "ncl"])
def test_views_of_one_image_from_both_loaders(images, loss_fn, loader, here, small, monkeypatch):
    """View A first, then independent contrastive views."""
    seen = []

    def spy(model, criterion, views, *rest):
        seen.append(views)
        return original(model, criterion, views, *rest)

    original = getattr(engine, f"{loss_fn}_pass")
    monkeypatch.setattr(engine, f"{loss_fn}_pass", spy)
    main.main([*small, "--loss_fn", loss_fn, "--loader", loader])
    assert len(seen) == 2
    for views in seen:
        assert len(views) == {"bcl": 3, "ncl": 2}[loss_fn]
        assert all(view.shape == (8, 3, 32, 32) for view in views)
        assert not torch.equal(views[-1], views[-2])


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_cmo_pastes_rare_classes_in_the_middle_of_the_run(here, small, monkeypatch, loader):
    """Active when 3 < t < epochs − 3, for about half of the steps, with class-balanced images."""
    steps = []
    original = engine.base_pass

    def spy(model, criterion, images, target, stage, *pasted):
        steps.append(pasted)
        return original(model, criterion, images, target, stage, *pasted)

    monkeypatch.setattr(engine, "base_pass", spy)
    main.main([*small, "--cmo", "--epochs", "10", "--loader", loader])
    with_box = {step: pasted for step, pasted in enumerate(steps) if pasted}
    assert {step // 2 for step in with_box} <= {4, 5, 6} and len(steps) == 20
    assert 1 <= len(with_box) <= 5  # of 3 epochs of 2 steps
    assert all(0.4 < share <= 1 for _, share in with_box.values())


@pytest.mark.parametrize("loader", ["device", "workers"])
def test_cmo_has_one_loader_more_and_says_nothing_twice(here, small, monkeypatch, capsys, loader):
    plans = []
    original = loaders._EpochPlan.__init__

    def spy(plan, *args, **options):
        plans.append(plan)
        original(plan, *args, **options)

    monkeypatch.setattr(loaders._EpochPlan, "__init__", spy)
    main.main([*small, "--cmo", "--batch-size", "5", "--loader", loader])
    assert len(plans) == 3  # training, its balanced draws, test
    assert capsys.readouterr().out.count("16 images in batches of 5 leave 1 over") == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    """A finished run of three epochs, pictures included, that others compare with."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(models, "BLOCKS", 1)
        main.main(["--dataset", "imagefolder", "--data_dir", str(images), "--imb_type", "none",
                   "--batch-size", "8", "--epochs", "3", "--seed", "1", *COSINE])  # fmt: skip
    return folder / RUN


def test_a_run_leaves_logs_report_and_pictures(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"checkpoint.pth.tar", "last.pth.tar", "metrics.csv", "report.json", "curves.png",
            "per_class.png", "confusion.png"} <= names  # fmt: skip
    facts = json.loads((finished / "report.json").read_text())
    assert facts["cls_num_list"] == [8, 5, 3]
    assert facts["epochs"] == 3 and facts["seed"] == 1
    assert facts["settings"]["cos_scale"] == 32
    metrics = pd.read_csv(finished / "metrics.csv")
    assert metrics["epoch"].tolist() == [0, 1, 2]
    assert {"train_loss", "top1", "many", "medium", "few", "images_per_s"} <= set(metrics.columns)
    logs = list(finished.glob("*.txt"))
    assert len(logs) == 1
    text = logs[0].read_text()
    assert text.startswith("---> ---imagefolder---\n---> Argument\n    └> name        : tmp\n")
    assert text.count("[Best ]") == 3
    assert f"best bAcc (test):\t{facts['best']['top1']}" in text
    assert len(list(finished.glob("events.out.tfevents.*"))) == 1


def test_the_best_epoch_is_the_later_one_of_equals(finished):
    metrics = pd.read_csv(finished / "metrics.csv")
    best = metrics[metrics["top1"] == metrics["top1"].max()]["epoch"].max()
    state = torch.load(finished / "checkpoint.pth.tar", weights_only=True)
    assert state["epoch"] == best + 1
    last = torch.load(finished / "last.pth.tar", weights_only=True)
    assert last["epoch"] == 3
    assert {"epoch", "state_dict", "optimizer"} <= state.keys()


def test_evaluate_repeats_the_figures_of_the_checkpoint(finished, here, small, capsys):
    facts = json.loads((finished / "report.json").read_text())
    path = str(finished / "last.pth.tar")
    result = main.main([*small, *COSINE, "--evaluate", "--resume", path])
    for key in ("top1", "loss", "few"):
        assert result[key] == pytest.approx(facts["final"][key], rel=1e-6)
    assert f"Acc:\t{result['top1']:.4f}" in capsys.readouterr().out


def test_checkpoints_of_the_original_load_and_train_on(finished, here, small):
    state = torch.load(finished / "last.pth.tar", weights_only=True)
    original = {key: state[key] for key in ("epoch", "state_dict", "optimizer")}
    torch.save(original, here / "original.pth.tar")
    row = main.main([*small, *COSINE, "--epochs", "4", "--resume", "original.pth.tar"])
    assert row["epoch"] == 3


@pytest.mark.parametrize(("loss_fn", "loader"), [("ce", "workers"), ("ncl", "device")])
def test_killed_and_resumed_is_unbroken_bit_for_bit(tmp_path, images, loss_fn, loader):
    """NCL: the queues, their pointers and the moving averages are in the weights compared."""
    command = [SCRIPT, "--dataset", "imagefolder", "--data_dir", images, "--imb_type", "none",
               "--batch-size", "8", "--epochs", "4", "--seed", "3", "--loss_fn", loss_fn,
               "--loader", loader, "--workers", "1", "--cutout", *COSINE,
               "--aug_type", "autoaug_cifar"]  # fmt: skip
    for kind in ("killed", "whole"):
        (tmp_path / kind).mkdir()
    tools.run_with_kills(command, tmp_path / "killed", kills=3, max_lines=76, seed=7)
    tools.run_to_the_end(command, tmp_path / "whole")
    killed, whole = (tmp_path / kind / RUN for kind in ("killed", "whole"))
    tools.assert_same_weights(killed / "last.pth.tar", whole / "last.pth.tar")
    tables = [
        pd.read_csv(folder / "metrics.csv").drop(columns=["images_per_s", "epoch_s"])
        for folder in (killed, whole)
    ]
    pd.testing.assert_frame_equal(*tables)


def invented(spec):
    """The made-up CIFAR of the original's recorded runs."""
    r = np.random.RandomState(spec["seed"])
    classes = spec["num_class"]
    prototypes = r.randint(0, 256, (classes, 8, 8, 3))
    splits = {}
    for split in ("train", "test"):
        per_class = spec[f"per_class_{split}"]
        labels = r.permutation(np.repeat(np.arange(classes), per_class))
        large = prototypes[labels].repeat(4, axis=1).repeat(4, axis=2)
        pixels = np.clip(large + r.randint(-40, 41, large.shape), 0, 255).astype(np.uint8)
        names = [str(c) for c in range(classes)]
        splits[split] = Source("cifar10", labels, names, lambda i, pixels=pixels: pixels[i])
    return lambda name, root, split, image_size: splits[split]


def figures_masked(lines):
    """Log lines with the figures of losses and accuracies replaced by a mark."""
    kept = []
    for line in lines:
        if line.startswith(("    └> [Param]", "    └> [")) and "LR" not in line:
            fields = line.split("\t")
            line = "\t".join(f if f.endswith(":") or "[" in f else "#" for f in fields)
        if not line.startswith(("    └> best", "---> Training Time")):
            kept.append(line)
    return kept


def test_a_recorded_run_of_the_original(golden, here, monkeypatch, capsys):
    """The same stdout, log lines, learning rates, counts and checkpoint, figures aside."""
    facts = golden("dbm_loss_cifar").facts["e2e"]["ce"]
    monkeypatch.setattr(long_tail, "open_source", invented(facts["dataset"]))
    monkeypatch.setattr(models, "BLOCKS", 5)
    main.main([*facts["argv"], "--workers", "0"])
    out = capsys.readouterr().out.splitlines()
    for line in facts["stdout"][2:-1]:
        assert line in out
    assert "==> Preparing imbalanced CIFAR-10" in out  # the original says CIFAR-100
    folder = here / "results" / "cifar10" / "e2e" / "ir_10"
    (log,) = folder.glob("*.txt")
    ours = ("loader", "amp", "channels_last", "compile", "eval_every", "stretch_schedule",
            "image_size", "imb_type", "resume", "evaluate", "overwrite", "other_data",
            "margin_norm", "val_fraction")  # fmt: skip
    lines = log.read_text().splitlines()
    lines = [line for line in lines if line[7:].split(":")[0].strip() not in ours]
    assert figures_masked(lines) == figures_masked(facts["log_lines"][:-1])
    state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    sizes = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    assert sizes == facts["checkpoint"]["optimizer_group_sizes"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("bs", 70), ("bcl", 50), ("ncl", 90)])
def test_learns_what_the_original_learns(golden, here, monkeypatch, name, least):
    facts = golden("dbm_loss_cifar").facts["e2e"][f"learn_{name}"]
    monkeypatch.setattr(long_tail, "open_source", invented(facts["dataset"]))
    monkeypatch.setattr(models, "BLOCKS", 5)
    main.main(facts["argv"])
    (path,) = (here / "results").rglob("report.json")
    assert json.loads(path.read_text())["best"]["top1"] >= least


# ------------------------------------------------------------------------------------- bad input


def bad(words, *argv):
    with pytest.raises(UsageError, match=words):
        main.main(list(argv))


def test_bad_data_is_named(images, here, small):
    bad("nowhere: no such folder", "--dataset", "imagefolder", "--data_dir", "nowhere")
    own = ["--dataset", "imagefolder", "--data_dir", str(images)]
    bad("class 2 has 3 images, but 5 are asked for", *own, "--imb_ratio", "1")
    bad("--imb_ratio 500 .* no image of class 8", "--dataset", "digits", "--imb_ratio", "500")
    bad("--batch-size 32: there are 16 training images", *small, "--loss_fn", "ncl",
        "--batch-size", "32")  # fmt: skip
    one = tools.make_image_folder(here / "one", [8], size=8, test_per_class=1)
    bad("--loss_fn bcl: it contrasts classes, and the images are of one, class_000; take another "
        "loss", *small, "--data_dir", str(one), "--loss_fn", "bcl")  # fmt: skip
    broken = here / "broken"
    shutil.copytree(images, broken)
    (broken / "train" / "class_001" / "0000.jpg").write_bytes(b"")
    bad(r"class_001.0000\.jpg: not a readable image", *small, "--data_dir", str(broken))


def test_bad_checkpoints_are_refused(finished, here, small):
    good = str(finished / "last.pth.tar")
    small = [*small, "--epochs", "4"]
    bad("--resume gone.pth: no such file", *small, "--resume", "gone.pth")
    bad("another architecture, classes or loss", *small, "--resume", good)  # a linear head
    bad("another architecture", *small, *COSINE, "--loss_fn", "bcl", "--resume", good)
    bad(
        "another architecture",
        *small,
        "--loss_fn",
        "ncl",
        "--batch-size",
        "32",
        "--evaluate",
        "--resume",
        good,
    )  # and not: no full batch, as nothing is trained
    bad("there is no results/imagefolder/tmp/ir_none/last.pth.tar yet",
        *small, "--evaluate", "--resume", "auto")  # fmt: skip
    weights = torch.load(good, weights_only=True)["state_dict"]
    torch.save({"epoch": 1, "state_dict": weights}, here / "weights.pth")
    bad("weights.pth: has no 'optimizer', .*; weights alone can only be evaluated",
        *small, *COSINE, "--resume", "weights.pth")  # fmt: skip


def test_a_diverging_run_stops(here, small):
    with pytest.raises(NonFiniteLoss, match=r"epoch 0, step 1, learning rate 1e\+38"):
        main.main([*small, "--lr", "1e38"])


def test_the_margin_names_its_reference_class(tmp_path, here, small, capsys):
    root = tools.make_image_folder(tmp_path / "unsorted", [6, 2, 4], test_per_class=1)
    main.main([*small, *COSINE, "--data_dir", str(root)])
    assert "class class_001, the rarest, has --max_margin" in capsys.readouterr().out


# --------------------------------------------------------------------------------- two processes


def test_two_processes_evaluate_like_one(finished, here, small, capsys):
    command = [*small, *COSINE, "--evaluate", "--resume", str(finished / "last.pth.tar")]
    main.main(command)
    alone = capsys.readouterr().out
    pair = tools.run_to_the_end([SCRIPT, *command], here, processes=2)
    figures = [text[text.index("[Test ]") :] for text in (alone, pair)]
    losses = [re.search(r"Loss:\t(\S+)", text).group(1) for text in figures]
    assert figures[0].replace(losses[0], "") == figures[1].replace(losses[1], "")
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-4, abs=1e-4)


def test_two_processes_train_on_one_batch(here, small):
    """The queue of a contrastive loss sees the whole batch; one process writes."""
    output = tools.run_to_the_end([SCRIPT, *small, *COSINE, "--loss_fn", "ncl"], here, processes=2)
    assert output.count("==> creating") == 1
    metrics = pd.read_csv(f"{RUN}/metrics.csv")
    assert np.isfinite(metrics["train_loss"]).all()
    state = torch.load(f"{RUN}/last.pth.tar", weights_only=True)["state_dict"]
    assert state["MOCO.0.queue_ptr"] == 16  # two batches of 8, not of 4


def test_two_processes_give_the_gradients_of_one(here, small, monkeypatch):
    """Batch norm aside, which sees each process's share: in evaluation mode a step is the same."""

    def stay_in_evaluation_mode(self, mode=True):
        for module in self.modules():
            module.training = False
        return self

    monkeypatch.setattr(torch.nn.Module, "train", stay_in_evaluation_mode)
    weights = []
    for processes in (1, 2):
        command = [SCRIPT, *small, *COSINE, "--loss_fn", "bcl", "--batch-size", "16",
                   "--loader", "workers", "--name", str(processes), "--lr", "0.001"]  # fmt: skip
        tools.run_to_the_end(command, here, processes)
        path = f"results/imagefolder/{processes}/ir_none/last.pth.tar"
        weights.append(torch.load(path, weights_only=True)["state_dict"])
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-6)
    assert not torch.equal(weights[0]["fc.weight"], weights[1]["fc.weight"])  # two runs they were
