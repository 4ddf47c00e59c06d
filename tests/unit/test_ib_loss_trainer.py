"""Flags, phases, rates, training steps and evaluation of the influence-balanced programs."""

import argparse
import re
import shlex
from itertools import product

import numpy as np
import pytest
import torch

from common.imbalance import class_counts
from common.models.resnet_cifar import resnet20
from common.training.errors import UsageError
from common.training.files import Files
from common.training.launch import Process
from common.training.learner import Learner
from common.training.record import Record
from ib_loss import engine, opts
from ib_loss.losses import IB_FocalLoss, IBLoss
from ib_loss.schedule import CIFAR, TINY_IMAGENET, in_ib_phase, learning_rate

CPU = Process(torch.device("cpu"))
RULES = {"ib": "IBReweight", "cb": "CBReweight", None: "None"}  # as the golden numbers name them


def parse(*argv, program="cifar"):
    schedule = TINY_IMAGENET if program == "tiny" else CIFAR
    return opts.parse_args(argv, program, schedule)[0]


def rate(epoch, loss_type, lr, start, schedule):
    return learning_rate(epoch, lr, in_ib_phase(epoch, loss_type, start), schedule)


def test_learning_rates_of_every_epoch(golden):
    for name, schedule in [("cifar", CIFAR), ("tiny", TINY_IMAGENET)]:
        g = golden("ib_loss")
        types = g.facts[f"lr_{name}_loss_type"]
        for (lr, start), loss_type, expected in zip(
            g[f"lr_{name}_cfg"], types, g[f"lr_{name}"], strict=True
        ):
            actual = [rate(e, loss_type, lr, int(start), schedule) for e in range(len(expected))]
            np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_ldam_drw_schedule_is_the_plain_one(golden):
    g = golden("ib_loss")
    for lr, expected in zip(g["lr_ldamdrw_base"], g["lr_ldamdrw"], strict=True):
        actual = [rate(e, "LDAM", lr, 0, CIFAR) for e in range(len(expected))]
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_a_stretched_schedule_is_a_miniature():
    small = CIFAR.stretched(20)
    assert small.plain == ((16, 0.01), (18, 0.0001)) and small.start_ib_epoch == 10
    assert small.ib[0] == (0, 0.01) and small.drw_epoch == 16
    args = parse("--epochs", "20", "--stretch_schedule", "--loss_type", "IB")
    assert args.start_ib_epoch == 10
    assert (
        parse("--epochs", "20", "--stretch_schedule", "--start_ib_epoch", "7").start_ib_epoch == 7
    )


def test_own_images_keep_the_side_of_tiny_imagenet():
    """Before they are enlarged to 224; to 32 pixels CIFAR's program alone shrinks them."""
    sides = {"imagefolder": 64, "npz": 64, "digits": 32, "tinyimagenet": 32}  # 32: nobody asked
    for dataset, side in sides.items():
        assert parse("--dataset", dataset, program="tiny").image_size == side
        assert parse("--dataset", dataset).image_size == 32
    asked = ["--dataset", "npz", "--image_size", "32"]
    assert parse(*asked, program="tiny").image_size == 32
    assert "(default: 64, as Tiny ImageNet; digits 32)" in " ".join(
        opts.get_parser("tiny").format_help().split()
    )


def test_class_weights(golden):
    for case, rule in product(range(4), ["CBReweight", "IBReweight", "DRW"]):
        g = golden("ib_loss")
        counts = g[f"w{case}_cls_num_list"].tolist()
        if rule == "DRW":
            for epoch in (159, 160):
                weights = engine.class_weights(rule, counts, epoch, drw_epoch=160)
                np.testing.assert_allclose(weights, g[f"w{case}_DRW_epoch{epoch}"], rtol=1e-6)
        else:
            weights = engine.class_weights(rule, counts, 0, drw_epoch=160)
            np.testing.assert_allclose(weights, g[f"w{case}_{rule}"], rtol=1e-6)
        assert engine.class_weights("None", counts, 0, 160) is None


def test_documented_commands(golden):
    """Namespace, run name, criteria, class weights and rates of the six commands of the README."""
    for index in range(6):
        g = golden("ib_loss")
        command = g.facts["commands"][index]
        program = "tiny" if "tinyimage" in command["script"] else "cifar"
        schedule = TINY_IMAGENET if program == "tiny" else CIFAR
        args = parse(*command["argv"], program=program)
        expected = command["namespace"]
        pretrained = {
            "pretrained"
        }  # on by default for Tiny ImageNet: there the original always loads
        for key in expected.keys() - pretrained:
            if key not in ("cls_num_list", "store_name"):
                assert getattr(args, key) == expected[key], key
        assert args.store_name == command["store_name"]

        rates = [
            rate(e, args.loss_type, args.lr, args.start_ib_epoch, schedule)
            for e in range(args.epochs)
        ]
        np.testing.assert_allclose(rates, g[f"cmd{index}_lr"], rtol=1e-12)
        per_class = 500
        counts = class_counts(
            per_class * args.num_classes, args.num_classes, args.imb_type, args.imb_factor
        )
        for when, epoch in (("first", 0), ("last", args.epochs - 1)):
            weights = engine.class_weights(args.train_rule, counts, epoch, schedule.drw_epoch)
            weights = torch.zeros(0) if weights is None else weights
            np.testing.assert_allclose(weights, g[f"cmd{index}_weight_{when}"], rtol=1e-6)
        last = engine.build_criterion(args, counts, args.epochs - 1, schedule.drw_epoch)
        kinds = {"CE": torch.nn.CrossEntropyLoss, "IB": IBLoss, "IBFocal": IB_FocalLoss}
        assert type(last) is kinds[args.loss_type]


def test_flags_keep_their_names_and_defaults(golden):
    ours = {flag: action for action in opts.get_parser()._actions for flag in action.option_strings}
    changed = {"num_classes", "start_ib_epoch"}  # from the data; from the schedule
    for flag in golden("ib_loss").facts["cli"]:
        for spelling in flag["flags"] if "flags" in flag else flag["option_strings"]:
            assert spelling in ours, spelling
            action = ours[spelling]
            assert action.dest == flag["dest"]
            if action.dest not in changed and flag["dest"] != "help":
                assert action.default == flag["default"], spelling


def test_bad_flags_are_named():
    cases = [
        (["--loss_type", "Hinge"], "--loss_type"),
        (["--train_rule", "Sometimes"], "--train_rule"),
        (["--dataset", "mnist"], "--dataset"),
        (["-a", "vgg"], "--arch"),
        (["--num_classes", "100"], "--num_classes 100: cifar10 has 10 classes"),
        (["--imb_factor", "0"], "--imb_factor 0.0"),
        (["--imb_factor", "1.5"], "--imb_factor 1.5"),
        (["--epochs", "0"], "--epochs 0"),
        (["--evaluate"], "--resume"),
        (["--no-pretrained", "--weights", "x"], "^--weights and --no-pretrained exclude each oth"),
    ]
    for argv, words in cases:
        with pytest.raises(UsageError, match=words):
            parse(*argv)


def test_notes_speak_up_once():
    args, schedule = opts.parse_args(["--loss_type", "IB", "--epochs", "30"], "cifar", CIFAR)
    found = opts.notes(args, schedule)
    assert len(found) == 2 and "THE WHOLE RUN IS CROSS ENTROPY" in found[0]
    assert "160, 180" in found[1] and "--stretch_schedule" in found[1]
    args, schedule = opts.parse_args(shlex.split("--epochs 200"), "cifar", CIFAR)
    assert opts.notes(args, schedule) == []


def fill(model, seed):
    """The golden numbers' rule for weights."""
    rs = np.random.RandomState(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if value.dim() >= 2:
                drawn = rs.standard_normal(value.shape) * np.sqrt(2 / np.prod(value.shape[1:]))
            elif name.endswith(("running_var", "weight")):
                drawn = rs.uniform(0.5, 1.5, value.shape)
            else:
                drawn = rs.standard_normal(value.shape) * 0.1
            value.copy_(torch.from_numpy(drawn))


def without_times(text):
    """Log text with times masked as in the golden numbers, and without the learning rate.

    The originals print a tenth of the rate; ours print the rate.
    """
    text = re.sub(r"(Time|Data) [\d.]+ \([\d.]+\)", r"\1 <T>", text)
    return re.sub(r", lr: [\d.]+", "", text)


@pytest.mark.parametrize("case", range(5))
def test_training_steps_are_the_originals(golden, case, tmp_path, monkeypatch):
    """Two epochs of three batches in float64: losses, log lines, weights, running statistics."""
    g = golden("ib_loss")
    step = g.facts["steps"][case]
    classes, batch = step["num_classes"], step["batch"]
    model = resnet20(num_classes=classes, use_norm=step["use_norm"]).double()
    fill(model, step["fill_seed"])
    rs = np.random.RandomState(step["data_seed"])
    images = torch.from_numpy(rs.standard_normal((6, batch, 3, 32, 32)))
    targets = torch.from_numpy(rs.randint(0, classes, (6, batch)))
    args = argparse.Namespace(
        loss_type=step["loss_type"], train_rule=RULES[step["weight"]],
        start_ib_epoch=step["start_ib_epoch"], amp="none", channels_last=False, print_freq=2,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    record = Record(
        Files(tmp_path / "log", tmp_path / "model", text_logs=("log_train.csv",)), CPU, {}
    )
    record.claim("")
    record.open(seed=0)
    learner = Learner(model, optimizer, scaler, engine.forward_pass)
    losses = []
    compute = engine.compute_loss

    def spy(*inputs):
        losses.append(compute(*inputs))
        return losses[-1]

    monkeypatch.setattr(engine, "compute_loss", spy)
    for epoch in (0, 1):
        optimizer.param_groups[0]["lr"] = step[f"lr_epoch{epoch}"]
        loader = [(images[i], targets[i], None) for i in range(3 * epoch, 3 * epoch + 3)]
        criterion = engine.build_criterion(args, step["cls_num_list"], epoch, drw_epoch=160)
        engine.train_one_epoch(learner, loader, criterion, epoch, args, record)
    record.close()
    losses = torch.stack(losses).detach()
    np.testing.assert_allclose(losses, g[f"step{case}_losses"], rtol=1e-6)
    log = (tmp_path / "log" / "log_train.csv").read_text()
    expected = "".join(line + "\n" for line in step["log_lines"])
    assert without_times(log) == without_times(expected)
    assert f"lr: {step['lr_epoch0']:.5f}" in log
    final = model.state_dict()
    cases = (
        ("linear", "linear.weight"),
        ("conv1", "conv1.weight"),
        ("bn1_weight", "bn1.weight"),
        ("running_mean", "bn1.running_mean"),
    )
    for name, key in cases:
        # The trace had class weights in float64, those of the program are in float32.
        np.testing.assert_allclose(final[key], g[f"step{case}_{name}"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("case", range(3))
def test_evaluation_is_the_originals(golden, case, capsys):
    g = golden("ib_loss")
    facts = g.facts["evals"][case]
    key = f"eval{case}_"
    logits, features = g.tensor(key + "logits"), g.tensor(key + "features")
    target = g.tensor(key + "target")
    counts = class_counts(500 * facts["num_classes"], facts["num_classes"], "exp", 0.02)

    class Given(torch.nn.Module):
        def forward(self, index, return_features):
            return logits[index], features[index]

    index = torch.arange(len(target))
    loader = [(part, target[part], part) for part in index.split(facts["batch_size"])]
    args = argparse.Namespace(
        loss_type=facts["loss_type"], train_rule=RULES[facts["weight"]],
        start_ib_epoch=facts["start_ib_epoch"], amp="none", channels_last=False, print_freq=1,
    )  # fmt: skip
    criterion = engine.build_criterion(args, counts, facts["epoch"], 160)
    tally = engine.evaluate(Given(), loader, criterion, logits.shape[1], args, CPU)
    result = tally.result()
    for name in ("top1", "top5", "loss"):
        assert result[name] == pytest.approx(float(g[key + name]), rel=1e-5)
    np.testing.assert_allclose(result["cls_acc"], g[key + "cls_acc"], rtol=1e-5)
    assert engine.result_lines(result) == facts["log_test_text"]
    shown = without_times(capsys.readouterr().out)
    assert facts["stdout"].startswith(shown) and shown.count("Test:") == len(loader)


def test_only_a_loss_that_reads_the_features_has_them_gathered(monkeypatch):
    images, target = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    model = resnet20(num_classes=3)
    gathered = []
    monkeypatch.setattr(engine, "gather_batch", lambda x: gathered.append(x.shape[1:]) or x)
    for criterion, widths in (
        (torch.nn.CrossEntropyLoss(), [3, ()]),
        (IBLoss(), [3, (), 64]),
        (IB_FocalLoss(), [3, (), 64]),
    ):
        gathered.clear()
        engine.forward_pass(model, criterion, images, target)
        assert gathered == [torch.Size([w] if w else []) for w in widths]
