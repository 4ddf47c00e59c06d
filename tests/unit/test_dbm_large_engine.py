"""dbm_loss.large_scale.engine: the loss of each flag, evaluation, CMO and the log's words."""

from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.evaluation import Tally
from common.training.launch import Process
from common.training.learner import Learner
from common.training.logs import TextLog
from dbm_loss.large_scale.engine import (
    Sums,
    base_pass,
    bcl_pass,
    build_criterion,
    hms,
    train_one_epoch,
)
from dbm_loss.large_scale.models import BCLModel

CPU = Process(torch.device("cpu"))
COUNTS = [200, 40, 6]


def flags(**changed) -> Namespace:
    defaults = {
        "use_norm": True, "use_dbm": True, "max_margin": 0.1, "tau": 1.0, "cos_scale": 30.0,
        "lambda_inst": 1.0, "margin_norm": "last",
    }  # fmt: skip
    return Namespace(**{**defaults, **changed})


def test_flags_choose_the_originals_loss(golden):
    """Every configuration of the golden file, built from the flags."""
    for i in range(15):
        g = golden("dbm_loss_large_scale")
        case = g.facts["cases"]["cls"][i]
        criterion = build_criterion(flags(**case), g["cls_counts"].tolist(), drw_epoch=160)
        loss = criterion(
            g.tensor("cls_cosine", torch.float32), g.tensor("cls_target"), case["epoch"]
        )
        np.testing.assert_allclose(loss, g[f"cls{i}_loss_f32"], rtol=2e-5)


def test_bcl_classifies_view_0_and_contrasts_the_others():
    torch.manual_seed(0)
    model = BCLModel("resnet10", 3, use_norm=True).eval()
    criterion = build_criterion(flags(loss_fn="bcl"), COUNTS, drw_epoch=160)
    views = torch.randn(3, 4, 3, 32, 32)
    target = torch.tensor([0, 1, 2, 1])
    loss, logits = bcl_pass(model, criterion, views.flatten(0, 1), target, 0)
    each = [model(view) for view in views]
    torch.testing.assert_close(logits, each[0][1])
    features = torch.stack([each[1][0], each[2][0]], dim=1)
    torch.testing.assert_close(loss, criterion(each[0][1], features, each[0][2], target))


def test_cmo_pastes_as_often_as_the_flag_says():
    batches = [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), None)] * 40
    args = flags(amp="none", print_freq=10**9, save_every=0)
    for args.mixup_prob, least, most in ((0.0, 0, 0), (0.2, 3, 15), (1.0, 40, 40)):
        model, pasted = nn.Linear(192, 3), []

        def forward(model, criterion, x, target, stage, *mixed):
            pasted.append(bool(mixed))
            logits = model(x.flatten(1))
            return criterion(logits, target), logits

        record = SimpleNamespace(process=CPU, seed=0, log={"log_train.csv": TextLog(None)})
        learner = Learner(
            model, torch.optim.SGD(model.parameters(), 0.1),
            torch.amp.GradScaler("cpu", enabled=False), forward,
        )  # fmt: skip
        loaders = batches, batches
        train_one_epoch(learner, loaders, nn.CrossEntropyLoss(), 0, args, record, Sums(CPU))
        assert len(pasted) == 40 and least <= sum(pasted) <= most


def test_pasted_labels_count_by_their_share():
    torch.manual_seed(0)
    logits = torch.randn(4, 3)
    own, pasted = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 2, 1])
    args = flags(loss_fn="ce", use_norm=False)
    criterion = build_criterion(args, COUNTS, drw_epoch=160)
    loss, _ = base_pass(lambda x: x, criterion, logits, own, 0, pasted, 0.7)
    expected = 0.7 * F.cross_entropy(logits, own) + 0.3 * F.cross_entropy(logits, pasted)
    torch.testing.assert_close(loss, expected)


def test_evaluation_is_the_originals(golden):
    for i in range(2):
        g = golden("dbm_loss_large_scale")
        logits, target = g.tensor(f"eval{i}_logits"), g.tensor(f"eval{i}_target")
        tally = Tally(logits.shape[1])
        for part in (slice(0, 7), slice(7, None)):
            tally.update(logits[part], target[part], F.cross_entropy(logits[part], target[part]))
        result = tally.result(g[f"eval{i}_counts"].tolist())
        assert result["loss"] == pytest.approx(float(g[f"eval{i}_loss"]), rel=1e-6)
        assert result["top1"] == pytest.approx(float(g[f"eval{i}_top1"]), rel=1e-6)
        assert result["top5"] == pytest.approx(float(g[f"eval{i}_acc1_acc5_single_batch"][1]))
        groups = np.array([result[name] for name in ("many", "medium", "few")]) / 100
        np.testing.assert_allclose(groups, g[f"eval{i}_many_med_few"], rtol=1e-6)


def test_sums_go_on_from_a_checkpoint():
    logits, target = torch.tensor([[2.0, 0], [0, 1], [3, 1]]), torch.tensor([0, 0, 0])
    whole, first = Sums(CPU), Sums(CPU)
    for sums in (whole, first):
        sums.update(torch.tensor(0.3), logits, target)
    second = Sums(CPU, before=first.total())
    for sums in (whole, second):
        sums.update(torch.tensor(0.9), logits[:1], target[:1])
    assert second.means() == whole.means()
    assert whole.means()["train_loss"] == pytest.approx((3 * 0.3 + 0.9) / 4)
    assert whole.means()["train_top1"] == pytest.approx(75.0)


def test_running_time_is_printed_as_the_original_does(golden):
    for seconds, text in golden("dbm_loss_large_scale").facts["hms"]:
        assert hms(seconds) == text
