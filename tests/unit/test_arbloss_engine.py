"""The training loop of both stages and the evaluation, step by step against the original's."""

import gc
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from arbloss.engine import (
    FIELDS,
    build_criterion,
    class_counter,
    class_groups,
    evaluate,
    forward_pass,
    progress_line,
    result_lines,
    results,
    train_one_epoch,
)
from arbloss.losses import ARBFocalLoss, ARBLoss, LabelAwareSmoothing, WARBLoss
from arbloss.models import Network
from arbloss.opts import DEFAULTS
from common.evaluation import Tally
from common.training.launch import Process
from common.training.learner import Learner
from common.training.logs import AverageMeter
from tests.unit import fill_rules
from tests.unit.fill_rules import fill

CPU = Process(torch.device("cpu"))
STEP_VARIANTS = ["ce", "ce_mixup", "arb", "arb_ugcc", "arb_mixup", "arb_ugcc_mixup"]
S2_VARIANTS = ["las", "las_shift_mixup", "arb", "warb_ugcc", "fl"]


@pytest.fixture
def arb(golden):
    return golden("arbloss")


def settings(**changes):
    assert changes.keys() <= DEFAULTS.keys()
    return SimpleNamespace(**DEFAULTS | {"num_classes": 10, "mixup": False} | changes)


class Spy(nn.Module):
    """A criterion that remembers its values."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion = criterion
        self.values = []

    def forward(self, *args):
        value = self.criterion(*args)
        self.values.append(value.item())
        return value


def learner(network, optimizer=None, forward=forward_pass):
    optimizer = optimizer or torch.optim.SGD(network.parameters(), 0.1)
    return Learner(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), forward)


class Epoch:
    """One epoch of three golden batches."""

    def __init__(self, arb, group, stage, config, dtype, rates, global_counts):
        facts = arb.facts[group]
        counts = arb["step_class_cnt_global"].astype(int).tolist()
        network = Network("resnet32_fe", 10, stage=stage, shift_bn=config.shift_bn).to(dtype)
        fill(network.model, facts["fill_seed_model"], fill_rules.arbloss)
        fill(network.classifier, facts["fill_seed_classifier"], fill_rules.arbloss)
        modules = [network.model, network.classifier]
        if stage == 2:
            fill(network.lws_model, facts["fill_seed_lws"], fill_rules.arbloss)
            modules = [network.classifier, network.lws_model]
        labels = arb.tensor("step_labels")
        batches = []
        for seed, target in zip(facts["image_seeds"], labels, strict=True):
            images = np.random.RandomState(seed).standard_normal((len(target), 3, 32, 32))
            batches.append((torch.from_numpy(images.astype(np.float32)).to(dtype), target, None))
        optimizer = torch.optim.SGD(
            [
                {"params": module.parameters(), "lr": lr}
                for module, lr in zip(modules, rates, strict=True)
            ],
            momentum=facts["momentum"],
            weight_decay=facts["weight_decay"],
        )
        self.criterion = Spy(build_criterion(config, stage, counts))
        count = class_counter(config, stage, global_counts, CPU.device)
        self.lines = []
        np.random.seed(facts["np_seed"])
        torch.manual_seed(facts["torch_seed"])
        self.means, self.norms = train_one_epoch(
            learner(network, optimizer), batches, self.criterion, count, 0, config, CPU,
            lambda line, show: self.lines.append(line),
        )  # fmt: skip
        self.network = network
        state = [value.double() for value in network.model.state_dict().values()]
        self.sums = torch.stack([value.sum() for value in state])
        self.squares = torch.stack([value.square().sum() for value in state])


def step_epoch(arb, variant, dtype, **changes):
    facts = arb.facts["step"]
    switches = next(v for v in facts["variants"] if v["name"] == variant)
    config = settings(
        arbloss=switches["arbloss"],
        arb_loss_use_global_class_cnt=switches["ugcc"],
        mixup=switches["mixup"],
        alpha=facts["alpha"],
        print_freq=1,
        **changes,
    )
    counts = arb["step_class_cnt_global"].tolist()
    return Epoch(arb, "step", 1, config, dtype, [facts["lr"]] * 2, counts)


def close(value, expected, rtol, atol=0.0):
    torch.testing.assert_close(
        torch.as_tensor(value).double(), expected.double(), rtol=rtol, atol=atol
    )


def test_stage1_steps_float64(arb):
    for variant in STEP_VARIANTS:
        epoch = step_epoch(arb, variant, torch.float64)
        name = f"step64_{variant}"
        fc = epoch.network.classifier.fc
        close(epoch.criterion.values, arb.tensor(f"{name}_criterion_values"), 1e-6)
        close(fc.weight.detach(), arb.tensor(f"{name}_W"), 1e-6)
        close(fc.bias.detach(), arb.tensor(f"{name}_b"), 1e-6)
        close(epoch.sums, arb.tensor(f"{name}_model_sum"), 1e-6, 1e-9)
        close(epoch.squares, arb.tensor(f"{name}_model_sumsq"), 1e-6)


def test_stage1_steps_float32(arb):
    for variant in STEP_VARIANTS:
        epoch = step_epoch(arb, variant, torch.float32, diagnostic=True)
        name = f"step_{variant}"
        values = arb.tensor(f"{name}_criterion_values")
        fc = epoch.network.classifier.fc
        close(epoch.criterion.values[0], values[0], 1e-4)
        close(epoch.criterion.values, values, 5e-3, 2e-3)
        close(fc.weight.detach(), arb.tensor(f"{name}_W"), 5e-3, 2e-3)
        close(fc.bias.detach(), arb.tensor(f"{name}_b"), 5e-3, 2e-3)
        close(epoch.sums, arb.tensor(f"{name}_model_sum"), 0, 0.5)
        close(epoch.squares, arb.tensor(f"{name}_model_sumsq"), 5e-3, 0.2)
        close(epoch.norms, arb.tensor(f"{name}_diag"), 0, 0.1)
        logged = [float(line.split("Loss ")[1].split(" ")[0]) for line in epoch.lines]
        close(logged, arb.tensor(f"{name}_logged_loss"), 5e-3, 2e-3)


def test_the_diagnostic_changes_no_training_number(arb):
    with_it = step_epoch(arb, "arb_mixup", torch.float32, diagnostic=True)
    without = step_epoch(arb, "arb_mixup", torch.float32)
    assert without.norms is None
    assert torch.equal(with_it.sums, without.sums)


def test_stage2_steps(arb):
    for variant in S2_VARIANTS:
        facts = arb.facts["s2"]
        switches = dict(next(v for v in facts["variants"] if v["name"] == variant))
        name = f"s2_{switches.pop('name')}"
        config = settings(
            arb_loss_use_global_class_cnt=switches.pop("ugcc"),
            alpha=facts["alpha"],
            smooth_head=facts["smooth_head"],
            smooth_tail=facts["smooth_tail"],
            **switches,
        )
        rates = [facts["lr_classifier"], facts["lr_lws"]]
        counts = arb["step_class_cnt_global"].tolist()
        epoch = Epoch(arb, "s2", 2, config, torch.float32, rates, counts)
        network = epoch.network
        fc, bn1 = network.classifier.fc, network.model.bn1
        close(epoch.criterion.values, arb.tensor(f"{name}_criterion_values"), 1e-3)
        close(fc.weight.detach(), arb.tensor(f"{name}_W"), 1e-3, 1e-6)
        close(fc.bias.detach(), arb.tensor(f"{name}_b"), 1e-3, 1e-6)
        close(network.lws_model.learned_norm.detach(), arb.tensor(f"{name}_norm"), 1e-3)
        close(bn1.running_mean, arb.tensor(f"{name}_bn1_running_mean"), 1e-3, 1e-6)
        close(bn1.running_var, arb.tensor(f"{name}_bn1_running_var"), 1e-3)
        close(epoch.sums, arb.tensor(f"{name}_model_sum"), 1e-3, 1e-2)


class AsItIs(nn.Module):
    def forward(self, images):
        return images, images


def test_evaluation_and_its_lines(arb):
    facts = arb.facts["val"]
    size = facts["batch_size"]
    logits, target = arb.tensor("val_logits"), arb.tensor("val_target")
    config = settings(**{key: facts[key] for key in facts if key in DEFAULTS})
    batches = list(zip(logits.split(size), target.split(size), [None] * 9, strict=False))
    lines = []
    tally = evaluate(AsItIs(), batches, config, CPU, lines.append)
    figures = results(tally, [1] * 10, config)
    assert figures["top1"] == pytest.approx(float(arb["val_top1_avg"]))
    assert figures["ece"] == pytest.approx(float(arb["val_ece_percent"]), rel=1e-5)
    lines += result_lines(figures, tally, [1] * 10, config)
    lines[0] = "\t".join(
        "Time <t>" if field.startswith("Time ") else field for field in lines[0].split("\t")
    )
    assert lines == facts["log_lines"]


def test_groups_are_places_by_size_whatever_the_order_of_the_classes():
    """Class 3 is the largest, 0 and 2 follow, 1 and 4 are the smallest."""
    counts = [40, 6, 12, 120, 3]
    config = settings(
        num_classes=5, head_class_idx=[0, 1], med_class_idx=[1, 3], tail_class_idx=[3, 5]
    )
    groups = {name: classes.tolist() for name, classes in class_groups(config, counts).items()}
    assert groups == {"head": [3], "med": [0, 2], "tail": [1, 4]}
    tally = Tally(5)
    target = torch.tensor([0, 0, 1, 2, 3, 3, 3, 3, 4])
    predicted = torch.tensor([0, 1, 1, 0, 3, 3, 3, 0, 0])
    tally.update(torch.eye(5)[predicted], target, 0.0)
    tally.reduce()
    figures = results(tally, counts, config)
    assert figures["head"] == 75 and figures["med"] == 25 and figures["tail"] == 50
    assert result_lines(figures, tally, counts, config)[0] == (
        "* Acc@1 55.556; Acc@5 100.000; many: 75.000 (3/4); median 25.000 (1/3); low 50.000 (1/2)."
    )
    # Sorted by size, as in the paper, places are labels.
    config.med_class_idx = [3, 3]
    sorted_groups = class_groups(config, [9, 9, 8, 2, 2])
    assert [sorted_groups[name].tolist() for name in ("head", "med", "tail")] == [[0], [], [3, 4]]
    assert np.isnan(results(tally, counts, config)["med"])


def test_progress_lines(arb):
    facts = arb.facts["progress"]
    meters = [AverageMeter() for _ in FIELDS[:3]]
    for update, line in zip(facts["updates"], facts["lines"], strict=True):
        for meter, key in zip(meters, ("time", "loss", "acc1"), strict=True):
            meter.update(update[key], 1 if key == "time" else update["n"])
        shown = progress_line(
            facts["prefix"], update["shown_at_batch"], facts["num_batches"], meters
        )
        assert shown == line


def test_a_forward_pass_of_any_loss_is_one_graph():
    """Nothing is read from the device; what would be breaks the graph."""
    network = nn.Linear(8, 3)
    images, target = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])

    def with_features(images):
        return network(images), images

    for stage, switches in [
        (1, {}), (1, {"arbloss": True}), (1, {"LAS": True}), (1, {"LAS": True, "arbloss": True}),
        (2, {}), (2, {"arbloss": True}), (2, {"arbloss_fl": True}), (2, {"warbloss": True}),
    ]:  # fmt: skip
        config = settings(num_classes=3, smooth_head=0.3, smooth_tail=0.1, **switches)
        criterion = build_criterion(config, stage, [5, 3, 1])
        count = class_counter(config, stage, [5, 3, 1], CPU.device)
        counts = None if count is None else count(target)
        torch._dynamo.reset()
        compiled = torch.compile(forward_pass, backend="eager", fullgraph=True)
        batch = images, target, counts, target.flip(0), 0.3
        loss = compiled(with_features, criterion, *batch)[0]
        assert torch.equal(loss, forward_pass(with_features, criterion, *batch)[0])
    torch._dynamo.reset()


def test_the_first_criterion_that_the_keys_name():
    cases = [
        (1, {}, nn.CrossEntropyLoss, False),
        (1, {"arbloss": True}, ARBLoss, True),
        (1, {"LAS": True}, LabelAwareSmoothing, False),
        (1, {"LAS": True, "arbloss": True}, LabelAwareSmoothing, True),
        (1, {"warbloss": True, "arbloss_fl": True}, nn.CrossEntropyLoss, False),
        (2, {}, LabelAwareSmoothing, False),
        (2, {"LAS": True}, LabelAwareSmoothing, False),
        (2, {"warbloss": True}, WARBLoss, True),
        (2, {"warbloss": True, "arbloss_fl": True}, ARBFocalLoss, True),
        (2, {"warbloss": True, "arbloss_fl": True, "arbloss": True}, ARBLoss, True),
    ]
    for stage, switches, kind, counted in cases:
        config = settings(num_classes=3, smooth_head=0.3, smooth_tail=0.1, **switches)
        criterion = build_criterion(config, stage, [5, 3, 1])
        assert type(criterion) is kind
        if kind is LabelAwareSmoothing:  # tail + (head - tail) sin(πt/2) of t = 1, 1/2 and 0
            assert criterion.smooth.tolist() == pytest.approx([0.3, 0.1 + 0.2 * 0.5**0.5, 0.1])
        count = class_counter(config, stage, [5, 3, 1], CPU.device)
        assert (count is not None) == counted
        if counted:
            assert count(torch.tensor([1, 1])).tolist() == [0, 2, 0]
            config.arb_loss_use_global_class_cnt = True
            count = class_counter(config, stage, [5, 3, 1], CPU.device)
            assert count(torch.tensor([1, 1])).tolist() == [5, 3, 1]


def test_losses_are_float32_under_autocast():
    for arbloss in [False, True]:
        config = settings(num_classes=3, arbloss=arbloss, amp="bf16")
        network = Network("resnet20_fe", 3)
        criterion, seen = build_criterion(config, 1, [5, 3, 1]), []

        def spy(logits, *args):
            seen.append(logits.dtype)
            return criterion(logits, *args)

        batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), None)]
        count = class_counter(config, 1, [5, 3, 1], CPU.device)
        train_one_epoch(learner(network), batches, spy, count, 0, config, CPU, lambda *_: None)
        assert seen == [torch.float32]


def test_mixup_has_the_alpha_of_the_keys():
    """With 0 no image is mixed, with a large one all are, by halves."""
    images, target = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    for alpha, share in ((0.0, 1.0), (1e6, 0.5)):
        network, seen = Network("resnet20_fe", 3), []

        def spy(network, criterion, images, target, counts, other, lam):
            seen.append(lam)
            return forward_pass(network, criterion, images, target, counts, other, lam)

        train_one_epoch(
            learner(network, forward=spy), [(images, target, None)], nn.CrossEntropyLoss(), None,
            0, settings(num_classes=3, mixup=True, alpha=alpha), CPU, lambda *_: None,
        )  # fmt: skip
        assert seen == [pytest.approx(share, abs=0.01)]


def test_warb_weights_follow_the_counts():
    config = settings(warbloss=True, arb_loss_use_global_class_cnt=True)
    assert build_criterion(config, 2, [5, 3, 1]).ugcc
    config.arb_loss_use_global_class_cnt = False
    assert not build_criterion(config, 2, [5, 3, 1]).ugcc


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc")
def test_memory_is_flat_over_200_steps():
    """The original's diagnostic kept the graph of every batch: here some 2 MB a step."""
    config = settings(num_classes=100, arbloss=True, mixup=True, diagnostic=True, print_freq=10**6)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = network, nn.Linear(64, 100)

        def forward(self, images):
            features = self.body(images)
            return self.fc(features), features

    small = Small()
    optimizer = torch.optim.SGD(small.parameters(), 0.01)
    batches = [(torch.randn(64, 1, 8, 8), torch.randint(100, (64,)), None)] * 50
    count = class_counter(config, 1, [], CPU.device)

    def epoch():
        train_one_epoch(
            learner(small, optimizer), batches, ARBLoss(), count, 0, config, CPU, lambda *_: None
        )
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20  # MB

    before = epoch()
    for _ in range(4):
        after = epoch()
    assert after - before < 20
