"""Flags, schedules, losses, training steps and log lines of the CIFAR program."""

import argparse
import shlex

import numpy as np
import pytest
import torch

from common.training.errors import UsageError
from common.training.files import Files
from common.training.launch import Process
from common.training.learner import Learner
from common.training.record import Record
from common.training.selection import Selection
from dbm_loss.augment.policies import POLICY_NAMES
from dbm_loss.cifar import engine, opts
from dbm_loss.cifar.models import build_model
from dbm_loss.cifar.schedule import Schedule
from tests.unit import fill_rules
from tests.unit.fill_rules import fill

CPU = Process(torch.device("cpu"))
README = "--imb_ratio 100 --use_norm --use_dbm --max_margin 0.1 --cos --cutout"


def parse(command=""):
    return opts.parse_args(shlex.split(command))


# ---------------------------------------------------------------------------------------- flags


def test_defaults_are_the_original(golden):
    """Names, order and values as the original logs them."""
    lines = golden("dbm_loss_cifar").facts["e2e"]["ce"]["log_lines"]
    logged = {}
    for line in lines[2:]:
        if not line.startswith("    └>"):
            break
        key, value = line[len("    └> ") :].split(":", 1)
        logged[key.strip()] = value.strip()
    changed = {"name", "epochs", "batch_size", "cutout", "aug_type", "use_norm", "use_dbm", "cos",
               "out", "workers", "seed", "dataset", "imb_ratio", "num_class",
               "cos_scale"}  # fmt: skip
    args = opts.get_parser().parse_args([])
    originals = [key for key in vars(args) if key in logged]
    assert originals == [key for key in logged if key != "num_class"]
    for key in set(logged) - changed:
        assert str(getattr(args, key)) == logged[key], key
    assert args.epochs == 200 and args.batch_size == 64 and args.workers == 4
    assert args.dataset == "cifar100" and args.imb_ratio == 100 and args.seed is None
    assert args.cos_scale is None  # the loss decides
    assert args.out == "./results/" and args.data_dir == "./dataset/" and args.name == "tmp"


def test_log_of_the_arguments(golden, tmp_path):
    """The head of the log is the original's; our flags stand between its own and num_class."""
    facts = golden("dbm_loss_cifar").facts["e2e"]["bcl"]
    args, _ = opts.parse_args([*facts["argv"], "--workers", "0"])
    record = Record(Files(tmp_path, tmp_path, text_logs=("log.txt",)), CPU, {})
    record.claim("")
    record.open(0)
    args.num_class = 10
    engine.log_arguments(record, args)
    record.close()
    written = (tmp_path / "log.txt").read_text().splitlines()
    end = facts["log_lines"].index("---> Epoch: [1 | 1]")
    head = facts["log_lines"][:end]
    assert written[: end - 1] == head[:-1]
    assert written[-1] == head[-1] == "    └> num_class   : 10"


def test_run_folder_with_and_without_slash():
    assert parse("--out here --name n")[0].out == "here/cifar100/n/ir_100/"
    assert parse("--out here/ --name n")[0].out == "here/cifar100/n/ir_100/"
    assert parse("--imb_ratio 12.5")[0].out.endswith("/ir_12.5/")
    assert parse("--imb_type none")[0].out.endswith("/ir_none/")


def test_ncl_scale_is_what_the_log_shows():
    assert parse("--loss_fn ncl")[0].cos_scale == 16
    assert parse("--loss_fn ncl --cos_scale 32")[0].cos_scale == 32
    assert parse("--loss_fn ncl --cos_scale=24")[0].cos_scale == 24
    assert parse("--loss_fn bcl")[0].cos_scale == 32
    args, schedule = parse("--loss_fn ncl --use_norm --use_dbm --margin_norm last")
    assert engine.build_criterion(args, [5, 3, 2], schedule).margin.scale == 16


def test_seed_may_be_the_word_none():
    assert parse("--seed None")[0].seed is None
    assert parse("--seed 3")[0].seed == 3


def test_contradictions_are_refused():
    cases = [
        ("--use_dbm", "--use_norm"),
        ("--loss_fn ncl --use_dbm", "--use_norm"),
        ("--loss_fn bcl --cmo", "--cmo"),
        ("--loss_fn ncl --cmo", "--cmo"),
        ("--loss_fn ncl --batch-size 60", "1024"),
        ("--imb_ratio 0.5", "--imb_ratio"),
        ("--epochs 0", "--epochs"),
        ("--lr nan", "--lr"),
        ("--wd -1", "--wd"),
        ("--momentum 0 --nesterov", "--momentum"),
        ("--evaluate", "--resume"),
    ]
    for command, names in cases:
        with pytest.raises(UsageError, match=names):
            parse(command)


def test_unknown_values_list_the_choices():
    cases = [
        "--loss_fn ride",
        "--dataset cifar",
        "--aug_type xx_none",
        "--scheduler cosin",
        "--lr fast",
    ]
    for command in cases:
        with pytest.raises(UsageError, match=command.split()[0]):
            parse(command)


def test_a_policy_without_a_version_for_whole_batches_is_said():
    one_by_one = []
    for policy in POLICY_NAMES:
        args, schedule = parse(f"--aug_type {policy}")
        transform = engine.batch_transform(args)
        note = f"note: --aug_type {policy} runs image by image: the loader is 'workers'"
        if note in opts.notes(args, schedule):
            one_by_one.append(policy)
            with pytest.raises(ValueError, match=policy):
                transform(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.Generator())
        else:
            images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
            assert transform(images, torch.Generator()).shape == (2, 3, 8, 8)
    assert one_by_one == [name for name in POLICY_NAMES if name.startswith(("dada", "faa", "rand"))]


def test_help_says_which_flags_are_dead():
    actions = {action.dest: action for action in opts.get_parser()._actions}
    for name in opts.DEAD_FLAGS:
        assert "no effect" in actions[name].help


def test_silent_traps_speak_up():
    cases = [
        (f"--epochs 200 {README}", []),
        (f"--loss_fn bcl --lr_decay 0.1 {README}", ["--lr_decay"]),
        (f"--loss_fn ncl --epochs 400 {README}", ["--cos"]),
        (f"--epochs 400 {README}", ["--cos"]),
        (f"--epochs 100 {README}", ["constant", "--cos"]),
        (f"--epochs 100 --stretch_schedule {README}", []),
        ("--epochs 30", ["constant"]),
        ("--loss_fn ce_drw --epochs 100 --stretch_schedule", []),
        ("--loss_fn ce_drw --epochs 100", ["constant", "160"]),
        ("--loss_fn ce_drw --epochs 2 --stretch_schedule", ["at epoch 2 is never reached"]),
        ("--scheduler cosine --cos", ["--cos"]),
        (
            "--aug_prob 0.1 --update-epoch 2 --ride_distill",
            ["--update-epoch", "--aug_prob", "ride"],
        ),
        ("--use_norm --use_dbm --loss_fn ldam", ["--use_dbm"]),
        ("--use_norm --loss_fn ncl --epochs 400", ["not scaled"]),
    ]
    for command, words in cases:
        notes = opts.notes(*parse(command))
        assert len(notes) == len(words)
        for note, word in zip(notes, words, strict=True):
            assert word in note and note.count("note: ") == 1
            if "constant" in note or "epoch 160" in note:
                assert "--stretch_schedule" in note


# ------------------------------------------------------------------------------------ schedules


def test_golden_learning_rates(golden):
    g = golden("dbm_loss_cifar")
    for name, flags in g.facts["lr_cases"].items():
        expected = g[f"lr.{name}"]
        settings = {"lr": 0.1, "epochs": 200, **flags}
        schedule = Schedule(**settings)
        tol = 1e-9 if name == "torch_cosine" else 1e-12
        actual = [schedule(epoch) for epoch in range(len(expected))]
        np.testing.assert_allclose(actual, expected, rtol=tol, atol=tol, err_msg=name)


def test_published_runs_use_the_golden_rates(golden):
    """The README's five commands, through the parser."""
    g = golden("dbm_loss_cifar")
    extra = {
        "ce": "",
        "ce_drw": "",
        "bs": "",
        "bcl": "--wd 5e-4 --lr_decay 0.1 --lr 0.15",
        "ncl": "--epochs 400",
    }
    for loss_fn, flags in extra.items():
        args, schedule = parse(f"--gpu 0 --dataset cifar100 --loss_fn {loss_fn} {README} {flags}")
        actual = [schedule(epoch) for epoch in range(args.epochs)]
        np.testing.assert_allclose(actual, g[f"lr.readme_{loss_fn}"], rtol=1e-12, atol=1e-12)
        assert args.cos_scale == (16 if loss_fn == "ncl" else 32)
        assert schedule.drw_epoch == (160 if loss_fn == "ce_drw" else None)


def test_stretched_schedules_are_miniatures():
    steps = Schedule("ce_drw", 0.1, 20, stretched=True, lr_decay=0.1)
    assert steps.milestones == (16, 18) and steps.drw_epoch == 16
    assert steps(15) == pytest.approx(0.1)  # epoch 16
    assert steps(16) == pytest.approx(0.01)
    assert steps(18) == pytest.approx(0.001)
    assert Schedule("bcl", 0.1, 20, stretched=True).milestones == (16, 18)
    ncl = Schedule("ncl", 0.1, 40, cos=True, stretched=True)
    assert ncl.kind == "steps" and ncl.milestones == (32, 36)
    cosine = Schedule("bs", 0.1, 50, cos=True, stretched=True)
    assert cosine.kind == "cosine"
    assert cosine(4) == pytest.approx(0.1)
    assert cosine(48) == pytest.approx(0, abs=1e-12)
    same = Schedule("bs", 0.1, 200, cos=True)
    stretched = Schedule("bs", 0.1, 200, cos=True, stretched=True)
    assert [same(e) for e in range(200)] == [stretched(e) for e in range(200)]


# -------------------------------------------------------------------------------- training steps


def step_args(case):
    names = ("loss_fn", "use_norm", "use_dbm", "max_margin", "tau", "lambda_inst", "cos_scale")
    return argparse.Namespace(
        **{name: case[name] for name in names},
        amp="none",
        channels_last=False,
        wd=case["wd"],
        margin_norm="last",
    )


def run_steps(case, counts, steps):
    """The first of three steps of the training function, on the golden run's random data."""
    args = step_args(case)
    classes, views, size = case["num_class"], case["views"], case["batch"]
    model = build_model(args.loss_fn, classes, args.use_norm)
    fill(model, case["seed"], fill_rules.dbm_loss_cifar)
    schedule = Schedule(case["loss_fn"], case["lr"], case["epochs"], cos=case["cos"], lr_decay=0.01)
    criterion = engine.build_criterion(args, counts, schedule)
    values = []
    criterion.register_forward_hook(lambda module, inputs, output: values.append(output.item()))
    optimizer = torch.optim.SGD(
        model.parameters(),
        schedule(case["epoch"]),
        momentum=0.9,
        weight_decay=case["wd"],
        nesterov=case["nesterov"],
    )

    r = np.random.RandomState(case["seed"] + 1)

    def batches(count):
        images = [r.standard_normal((count, size, 3, 32, 32)).astype(np.float32) for _ in "123"]
        labels = [r.randint(0, classes, size=size) for _ in "123"]
        for views_of_step, target in zip(images, labels, strict=True):
            x = [torch.from_numpy(view.copy()) for view in views_of_step]
            yield x if count > 1 else x[0], torch.from_numpy(target), None

    loader = list(batches(views))
    balanced = list(batches(1)) if case["cmo"] else None
    np.random.seed(case["seed"] + 2)
    torch.manual_seed(case["seed"] + 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    learner = Learner(model, optimizer, scaler, engine.forward_pass(args.loss_fn))
    balanced = balanced[:steps] if balanced else None
    result = engine.train_one_epoch(
        learner, loader[:steps], criterion, case["epoch"], args, CPU, balanced
    )
    return model, before, values, result["train_loss"], optimizer.param_groups[0]["lr"]


CASES = ["ce", "ce_plain", "ce_drw", "bs", "ldam_drw", "ce_cmo", "bcl", "ncl"]


def test_golden_first_step(golden):
    """At the published rates the later steps are chaotic; the small ones below are compared."""
    for name in ["ce_cmo", "bcl", "ncl"]:
        g = golden("dbm_loss_cifar")
        case = g.facts["steps_cases"][name]
        *_, values, _, lr = run_steps(case, g["cmo.counts"].tolist(), steps=1)
        expected = g[f"steps.{name}.criterion_values"]
        np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-4)
        assert lr == pytest.approx(float(g[f"steps.{name}.lr"]), rel=1e-9)


def test_golden_steps(golden):
    for name in CASES:
        g, tag = golden("dbm_loss_cifar"), f"small_{name}"
        case = g.facts["steps_cases"][tag]
        model, before, values, average, lr = run_steps(case, g["cmo.counts"].tolist(), steps=3)
        assert lr == pytest.approx(float(g[f"steps.{tag}.lr"]), rel=1e-9)
        expected = g[f"steps.{tag}.criterion_values"]
        np.testing.assert_allclose(values, expected, rtol=5e-4)
        assert average == pytest.approx(float(g[f"steps.{tag}.avg_loss"]), rel=5e-4)
        state = {key: value.double() for key, value in model.state_dict().items()}
        abs_sums = g[f"steps.{tag}.state_abs_sum"]
        for what, sums in (
            ("state_sum", [x.sum() for x in state.values()]),
            ("state_abs_sum", [x.abs().sum() for x in state.values()]),
        ):
            error = np.abs(np.array(sums) - g[f"steps.{tag}.{what}"])
            assert (error <= 3e-3 * (1 + abs_sums)).all(), what
        deltas = [key for key in g.arrays.files if key.startswith(f"steps.{tag}.delta.")]
        assert deltas
        for entry in deltas:
            key = entry.removeprefix(f"steps.{tag}.delta.")
            moved = (state[key] - before[key]).numpy()
            expected = g[entry]
            if key.startswith("classifier_MA"):
                assert (moved == 0).all() and (expected == 0).all()
            else:
                tol = 1e-4 if key.startswith("backbone_MA") else 5e-3
                assert np.abs(moved - expected).max() <= tol * np.abs(expected).max(), key


# ----------------------------------------------------------------------------------------- log


def test_log_lines_are_the_original(golden, tmp_path):
    """Two epochs of the original's log, from the figures that it shows."""
    lines = golden("dbm_loss_cifar").facts["e2e"]["ce"]["log_lines"]
    start = lines.index("---> Epoch: [1 | 2]")
    nan = float("nan")
    shared = {"top1": 10.0, "many": nan, "lr": 0.1, "epoch_s": 3661.5}
    rows = [
        {"epoch": 0, "train_loss": 9.7594, "loss": 2.3636, "medium": 20.0, "few": 0.0, **shared},
        {"epoch": 1, "train_loss": 4.4688, "loss": 2.3564, "medium": 0.0, "few": 20.0, **shared},
    ]
    record = Record(
        Files(tmp_path, tmp_path, text_logs=("log.txt",)),
        CPU,
        {},
        selection=Selection(later_of_equals=True),
    )
    model = torch.nn.Linear(1, 1)
    record.restore(model, torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu"))
    record.claim("")
    record.open(0)
    for row in rows:
        engine.log_epoch(record, row, epochs=2)
        record.end_epoch(row)
    engine.log_end(record)
    record.close()
    written = (tmp_path / "log.txt").read_text().splitlines()
    expected = [line.replace("0.20000000298023224", "0.2") for line in lines[start:-2]]
    assert written[:-1] == expected
    assert written[-1] == "---> Training Time: 2:02:03.00"
