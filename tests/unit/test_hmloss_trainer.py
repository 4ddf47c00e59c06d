"""Flags and training trace of the CIFAR and ISIC programs against the originals."""

import re
from argparse import Namespace

import numpy as np
import pytest
import torch

from common.models.resnet_cifar import resnet32
from common.training.errors import UsageError
from common.training.launch import Process
from common.training.learner import Learner
from hmloss import flags
from hmloss.cifar_implementation import opts as cifar_opts
from hmloss.engine import (
    build_criterion,
    evaluate,
    forward_pass,
    result_lines,
    train_one_epoch,
)
from hmloss.inat_implementation import opts as inat_opts
from hmloss.isic2019_implementation import engine as isic_engine
from hmloss.isic2019_implementation import opts as isic_opts
from hmloss.isic2019_implementation.schedule import cyclic_lr
from hmloss.losses import HMLoss
from hmloss.schedule import Schedule, in_hml_stage, learning_rate
from tests.unit import fill_rules
from tests.unit.fill_rules import fill

CPU = Process(torch.device("cpu"))
PARSERS = {"cifar": cifar_opts.get_parser, "isic": isic_opts.get_parser}
# Defaults that the program fills in itself: a crash in the original, or a stretched schedule.
FILLED_IN = {"ir_list", "imb_factor", "start_hm_epoch"}


@pytest.fixture(scope="module")
def g(golden):
    return golden("hmloss")


def test_flags_are_the_originals(g):
    for program in ["cifar", "isic"]:
        parser = PARSERS[program]()
        actions = {flag: action for action in parser._actions for flag in action.option_strings}
        for flag in g.facts[f"cli_{program}"]:
            for name in flag["flags"]:
                assert actions[name].dest == flag["dest"], name
                if flag["dest"] not in FILLED_IN:
                    assert actions[name].default == flag["default"], name
                assert flag["nargs"] in (actions[name].nargs, None), name


def test_command_lines_parse_as_before(g):
    for program in ["cifar", "isic"]:
        for case in g.facts["cli_parse_examples"]:
            if case["program"] != program or not case["result"]["ok"]:
                continue
            args = vars(PARSERS[program]().parse_args(case["argv"]))
            for name, value in case["result"]["values"].items():
                if name == "use_cuda" and "False" in case["argv"]:
                    assert args[name] is False  # the original took every text for true
                elif name not in FILLED_IN or args[name] is not None:
                    assert args[name] == value, name


def test_every_spelling_of_the_readme():
    argv = ["--loss_function", "HML", "--weighting_type", "CS", "--dataset_name", "cifar100"]
    argv += ["--imb_type", "exp", "--imb_ratio", "0.02", "--gpu", "0"]
    args, _ = cifar_opts.parse_args(argv)
    assert (args.loss_type, args.dataset, args.ir_list) == ("HML", "cifar100", [0.02])
    assert args.start_hm_epoch == 100 and args.num_runs == 10
    store = cifar_opts.store_name(args, "exp", 0.02)
    run = "cifar100_exp_0.02_resnet32_HML_W_CS_D_10000_run0"
    assert cifar_opts.run_name(args, store, 0) == run
    for flag in ("--ir_list", "--imb_ratio_list"):
        assert cifar_opts.parse_args([flag, "1", "0.1"])[0].ir_list == [1.0, 0.1]
    assert cifar_opts.parse_args(["--imb_factor", "0.1"])[0].ir_list == [0.1]
    assert cifar_opts.parse_args([])[0].ir_list == [0.01]
    assert isic_opts.parse_args(["--loss_type", "HML1"]).start_hm_epoch == 50
    args, _ = inat_opts.parse_args(["--loss_type", "HML", "--delta", "10000"])
    assert inat_opts.run_name(args, 0) == "inat2018_resnet50_HML_W_None_D_10000_run0"


def test_runs_never_share_a_folder(g):
    for loss_type in ("CE", "HML2"):
        args, _ = cifar_opts.parse_args(["--loss_type", loss_type, "--num_runs", "3"])
        store = cifar_opts.store_name(args, "exp", 0.1)
        assert len({cifar_opts.run_name(args, store, run) for run in range(3)}) == 3
    args, _ = cifar_opts.parse_args(["--loss_type", "CE", "--num_runs", "1"])
    assert cifar_opts.run_name(args, "store", 0) == "store"  # the original's name
    sample = g.facts["cifar_run_files"]["store_name"]
    args, _ = cifar_opts.parse_args(["--loss_type", "HML1", "--weighting_type", "CS"])
    store = cifar_opts.store_name(args, "exp", 0.1)
    assert cifar_opts.run_name(args, store, 0) == sample


def test_isic_store_names(g):
    sample = g.facts["isic_run_files"]["files"][0].split("/")[1]
    argv = ["--loss_type", "HML", "--delta", "10000", "--weighting_type", "CS"]
    assert isic_opts.parse_args(argv).store_name == sample
    given = isic_opts.parse_args([*argv[:2], "--ratio_finetune", "32", "--loss_type", "CE"])
    assert given.store_name == "isic2019_efficientb3_CE_W_None_F_32.0"


def test_network_and_hml_gradients_are_the_originals(g):
    for name in ["plain", "normed", "plain100"]:
        facts = g.facts["models"][name]
        model = resnet32(facts["num_classes"], use_norm=facts["use_norm"]).double()
        fill(model, facts["fill_seed"], fill_rules.hmloss)
        rs = np.random.RandomState(facts["input_seed"])
        images = torch.as_tensor(rs.standard_normal((facts["batch"], 3, 32, 32)))
        target = torch.arange(facts["batch"]) % facts["num_classes"]
        logits, features = model(images, return_features=True)
        norm = features.abs().sum(1, keepdim=True)
        np.testing.assert_allclose(norm.detach(), g[f"model_{name}_train_featnorm_f64"], rtol=1e-8)
        loss = HMLoss(delta=10000)(logits, target)
        loss.backward()
        np.testing.assert_allclose(loss.item(), g[f"model_{name}_hml_loss"], rtol=1e-8)
        for key, weight in (("conv1", model.conv1.weight), ("linear", model.linear.weight)):
            expected = g[f"model_{name}_grad_{key}"]
            np.testing.assert_allclose(weight.grad, expected, rtol=1e-7, atol=1e-9)


class Log:
    """Collects what a run writes to its text log."""

    def __init__(self):
        self.lines = []
        self.log, self.process = {"train_history.csv": self}, CPU

    def write(self, text):
        self.lines.append(text.rstrip("\n"))


def without_times(line):
    """Without the rate, of which the original prints a tenth."""
    line = re.sub(r", lr: [\d.]+", "", line)
    return re.sub(r"(Time|Data) [\d.]+ \([\d.]+\)", r"\1 <t> (<t>)", line)


def test_training_trace_is_the_originals(g, capsys):
    """Four epochs over both stages: scalars, weights and every printed line."""
    facts = g.facts["cifar_trace"]
    config = facts["config"]
    rs = np.random.RandomState(config["seed"] + 1000)
    sizes = [int(n) for n in g["trace_train_batch_sizes"]]
    val_sizes = [int(n) for n in g["trace_val_batch_sizes"]]
    images = [torch.as_tensor(rs.standard_normal((n, 3, 32, 32))) for n in sizes]
    target = [torch.as_tensor(rs.randint(0, config["C"], size=n)) for n in sizes]
    train = [(x, y, None) for x, y in zip(images, target, strict=True)]
    np.testing.assert_array_equal(torch.cat(target), g["trace_train_targets"])
    val = [
        (torch.as_tensor(rs.standard_normal((len(y), 3, 32, 32))), y, index)
        for y, index in zip(
            g.tensor("trace_val_targets").split(val_sizes),
            torch.arange(sum(val_sizes)).split(val_sizes),
            strict=True,
        )
    ]
    model = fill(resnet32(config["C"]).double(), facts["fill_seed"], fill_rules.hmloss)
    optimizer = torch.optim.SGD(
        model.parameters(), config["lr"], momentum=config["mom"], weight_decay=config["wd"]
    )
    args = Namespace(
        loss_type=config["lt"], weighting_type=config["wt"], delta=config["delta"], gamma=0.0,
        amp="none", channels_last=False, print_freq=2,
    )  # fmt: skip
    scaler, record = torch.amp.GradScaler("cpu", enabled=False), Log()
    learner = Learner(model, optimizer, scaler, forward_pass)
    rows, texts = [], []
    for epoch in range(config["epochs"]):
        stage = in_hml_stage(epoch, config["lt"], config["start"])
        lr = learning_rate(epoch, config["lr"], stage, Schedule())
        for group in optimizer.param_groups:
            group["lr"] = lr
        criterion = build_criterion(args, config["counts"], stage)
        if criterion.weight is not None:  # the trace's weights were not rounded to float32
            counts = np.array(config["counts"])
            criterion.weight = torch.as_tensor(len(counts) / counts / (1 / counts).sum())
        row = {"lr": lr}
        row |= train_one_epoch(learner, train, criterion, epoch, args, record)
        tally = evaluate(model, val, criterion, config["C"], args, CPU)
        rows.append(row | tally.result(config["counts"]))
        texts += result_lines(rows[-1]).splitlines()
        print("\n".join(texts[-2:]))
    cases = (
        ("loss_train", "train_loss"),
        ("acc_train_top1", "train_top1"),
        ("acc_train_top5", "train_top5"),
        ("lr", "lr"),
        ("loss_test_val", "loss"),
        ("acc_test_val_top1", "top1"),
        ("acc_test_val_top5", "top5"),
        ("acc_test_val_cls_acc", "cls_acc"),
    )
    for tag, name in cases:
        ours = [row[name] for row in rows]
        np.testing.assert_allclose(ours, g[f"trace_scalar_{tag}"], rtol=1e-6, err_msg=tag)
    state = model.state_dict()
    cases = (
        ("conv1", "conv1.weight"),
        ("linear_weight", "linear.weight"),
        ("linear_bias", "linear.bias"),
        ("bn1_running_var", "bn1.running_var"),
    )
    for key, name in cases:
        np.testing.assert_allclose(state[name], g[f"trace_final_{key}"], rtol=1e-6, atol=1e-9)
    expected = [without_times(line) for line in facts["train_log"]]
    assert [without_times(line) for line in record.lines] == expected
    assert texts == facts["test_log"]
    printed = capsys.readouterr().out.splitlines()
    assert [without_times(line) for line in printed] == list(map(without_times, facts["stdout"]))


class Recorder(torch.nn.Module):
    """A criterion that remembers its values: the original averages over batches, we over images."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion, self.values = criterion, []

    def forward(self, logits, target):
        value = self.criterion(logits, target)
        self.values.append(float(value.detach()))
        return value


def test_isic_trace_is_the_originals(g):
    """A linear layer over both stages: rates, losses, metrics, final weights and scores."""
    config = g.facts["isic_trace"]["config"]

    def batches(part):
        sizes = [int(n) for n in g[f"isictrace_{part}_batch_sizes"]]
        index = torch.arange(sum(sizes)).split(sizes)
        x, y = g.tensor(f"isictrace_{part}_x"), g.tensor(f"isictrace_{part}_y")
        return [(x[i], y[i], i) for i in index]

    model = torch.nn.Linear(config["D"], 2).double()
    model.load_state_dict({"weight": g.tensor("isictrace_W0"), "bias": g.tensor("isictrace_b0")})
    optimizer = torch.optim.Adam(model.parameters(), lr=config["max_lr"])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    args = Namespace(
        loss_type="HML", weighting_type=config["wt"], delta=config["delta"], gamma=1.0,
        amp="none", channels_last=False, print_freq=100,
    )  # fmt: skip
    counts = np.array(config["counts"])
    args.cls_num_list = config["counts"]
    learner = Learner(model, optimizer, scaler, forward_pass)
    rows = []
    for epoch in range(1, config["epochs"] + 1):
        stage = in_hml_stage(epoch, "HML", config["start"])
        criterion = build_criterion(args, config["counts"], stage)
        if criterion.weight is not None:  # the trace's weights were not rounded to float32
            criterion.weight = torch.as_tensor(2 / counts / (1 / counts).sum())
        train_loss, val_loss = Recorder(criterion), Recorder(criterion)
        lr = cyclic_lr(config["max_lr"], epoch - 1)
        isic_engine.train_one_epoch(
            learner, batches("train"), train_loss, epoch, lambda _, lr=lr: lr, args, CPU
        )
        found = isic_engine.predict(
            model, batches("val"), len(g["isictrace_val_y"]), val_loss, args, CPU
        )
        figures = found.figures()
        rows.append(
            [lr, np.mean(train_loss.values), np.mean(val_loss.values), figures["bacc"],
             figures["auc"]]
        )  # fmt: skip
    columns = [g.facts["isic_trace"]["row_columns"].index(name) for name in
               ("lr", "train_loss", "val_loss", "val_bacc", "val_auc")]  # fmt: skip
    np.testing.assert_allclose(rows, g["isictrace_rows"][:, columns], rtol=1e-6)
    np.testing.assert_allclose(model.weight.detach(), g["isictrace_W"], rtol=1e-6)
    np.testing.assert_allclose(model.bias.detach(), g["isictrace_b"], rtol=1e-6)
    np.testing.assert_allclose(found.scores, g["isictrace_scores"], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, g["isictrace_val_y"])


def test_a_second_stage_that_is_never_reached_speaks_up():
    """CIFAR counts epochs from 0, ISIC from 1: there epoch 50 is the last of 50."""
    whole = "THE WHOLE RUN IS CROSS ENTROPY. Lower --start_hm_epoch"
    stretch = ", or leave it out and give --stretch_schedule"
    start = "WARNING: the second stage of --loss_type HML starts at epoch"
    for words, said in [
        ("--epochs 100", [f"{start} 100 of 0 to 99: {whole}{stretch}"]),
        ("--epochs 101", []),
        ("--epochs 2 --start_hm_epoch 2", [f"{start} 2 of 0 to 1: {whole}{stretch}"]),
        ("--epochs 1 --stretch_schedule", [f"{start} 1 of 0 to 0: {whole}"]),
        ("--epochs 2 --stretch_schedule", []),
    ]:
        args, schedule = cifar_opts.parse_args(["--loss_type", "HML", *words.split()])
        found = flags.loss_notes(args, args.epochs, start=schedule.start_hm_epoch)
        assert found == said
    for words, said in [
        ("--num_epochs 49", [f"{start} 50 of 1 to 49: {whole}{stretch}"]),
        ("--num_epochs 50", []),
        ("--num_epochs 2 --start_hm_epoch 2", []),
        ("--num_epochs 1 --start_hm_epoch 2", [f"{start} 2 of 1 to 1: {whole}{stretch}"]),
        ("--num_epochs 1 --stretch_schedule", []),
    ]:
        args = isic_opts.parse_args(words.split())
        assert isic_opts.notes(args) == said


def test_bad_flags_are_named():
    cases = [
        (cifar_opts.parse_args, ["--loss_type", "HML3"], "HML2"),
        (cifar_opts.parse_args, ["--dataset", "svhn"], "cifar100"),
        (cifar_opts.parse_args, ["--weighting_type", "cs"], "CB"),
        (cifar_opts.parse_args, ["--imb_ratio", "0"], "--imb_ratio 0.0"),
        (cifar_opts.parse_args, ["--imb_factor", "2"], "--imb_factor 2.0"),
        (
            cifar_opts.parse_args,
            ["--imb_ratio", "0.1", "--imb_factor", "0.5"],
            "^--imb_ratio and --imb_factor 0.5 say the same: leave one out$",
        ),
        (
            cifar_opts.parse_args,
            ["--ir_list", "0.1", "0.2", ".10"],
            "^--imb_ratio 0.1 0.2 0.1: names a ratio twice$",
        ),
        (
            cifar_opts.parse_args,
            ["--imb_type", "none", "--imb_ratio", "0.1", "0.2"],
            "^--imb_ratio 0.1 0.2: --imb_type none takes the data as they are, whatever the ratio; "
            "give one$",
        ),
        (cifar_opts.parse_args, ["--delta", "-3"], "--delta -3"),
        (cifar_opts.parse_args, ["--num_runs", "0"], "--num_runs 0"),
        (cifar_opts.parse_args, ["--pretrained"], "resnet32"),
        (cifar_opts.parse_args, ["--evaluate"], "--resume"),
        (inat_opts.parse_args, ["--arch", "resnet32"], "resnet50"),
    ]
    for parse, argv, text in cases:
        with pytest.raises(UsageError, match=text):
            parse(argv)
