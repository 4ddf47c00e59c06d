"""What the GML programs share: evaluation figures, log lines, optimiser, teacher, resumed means."""

from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from common.evaluation import Tally, accuracy
from common.models.resnet_cifar import resnet20, resnet32
from common.training.errors import UsageError
from common.training.launch import Process
from common.training.logs import AverageMeter
from dbm_loss.GML import engine
from dbm_loss.GML.losses import GMLLoss
from dbm_loss.GML.moco import MoCo

CPU = Process(torch.device("cpu"))
network = partial(resnet20, head="fc")


def test_group_accuracies_are_the_originals_but_nan_where_a_group_is_empty(golden):
    for i in range(2):
        g = golden("dbm_loss_gml")
        counts, labels = g[f"shot{i}_train_counts"], g.tensor(f"shot{i}_labels")
        tally = Tally(len(counts))
        tally.update(
            nn.functional.one_hot(g.tensor(f"shot{i}_preds"), len(counts)).float(), labels, 0
        )
        result = tally.result(counts)
        np.testing.assert_allclose(result["cls_acc"], g[f"shot{i}_cls_acc"])
        groups = np.asarray([result[name] for name in ("many", "medium", "few")]) / 100
        np.testing.assert_allclose(np.nan_to_num(groups), g[f"shot{i}_many_median_low"])
        empty = [not m.any() for m in (counts > 100, (counts >= 20) & (counts <= 100), counts < 20)]
        assert np.isnan(groups).tolist() == empty


def test_topk_accuracies_are_the_originals(golden):
    g = golden("dbm_loss_gml")
    found = accuracy(g.tensor("acc_logits"), g.tensor("acc_target"), topk=(1, 5))
    np.testing.assert_allclose(found, g["acc_top1_top5"], rtol=1e-6)


def flags(**changed):
    given = {
        "program": "cifar_main", "print_freq": 2, "moco_dim": 4, "moco_k": 16, "moco_m": 0.999,
        "mlp": True, "normalize": True, "num_classes": 3, "feat_dim": None, "feat_t": None,
        "base_k": 2, "alpha": 1.0, "beta": 2.0, "gamma": 0.5, "moco_t": 0.1, "use_dbm": True,
        "max_margin": 0.2, "tau": 1.5, "lambda_inst": 0.7, "margin_norm": "last", "lr": 0.1,
        "momentum": 0.9, "weight_decay": 5e-4, "arch": "resnet20", "arch_t": "resnet20",
    }  # fmt: skip
    return Namespace(**{**given, **changed})


def test_criterion_takes_weights_and_margin_from_the_flags():
    loss = engine.build_criterion(flags(), [5, 4, 3])
    assert (loss.alpha, loss.beta, loss.gamma) == (1.0, 2.0, 0.5)
    assert loss.log_T_c__no_wd__.exp().item() == pytest.approx(0.1)
    margin = loss.margin
    assert (margin.max_margin, margin.tau, margin.scale, margin.lambda_inst) == (0.2, 1.5, 30, 0.7)
    assert engine.build_criterion(flags(use_dbm=False), [5, 4, 3]).margin is None


def test_only_the_temperature_goes_without_weight_decay():
    moco = MoCo(network, dim=4, K=16, num_classes=3)
    criterion = GMLLoss([5, 4, 3])
    first, second = engine.build_optimizer(moco, criterion, flags()).param_groups
    assert len(first["params"]) == len(list(moco.parameters()))  # the frozen too, as in its files
    assert first["weight_decay"] == 5e-4 and second["weight_decay"] == 0
    assert second["params"] == [criterion.log_T_c__no_wd__]


@pytest.mark.parametrize("use_norm", [True, False])
def test_a_teacher_is_a_bare_network_or_the_query_encoder_of_a_moco(use_norm):
    torch.manual_seed(0)
    bare = network(3, use_norm=use_norm)
    moco = MoCo(network, dim=4, K=16, normalize=use_norm, num_classes=3)
    x = torch.randn(2, 3, 32, 32)
    for name, model, expected in (("bare", bare, bare), ("moco", moco, moco.encoder_q)):
        state = {f"module.{key}": value for key, value in model.state_dict().items()}
        teacher = engine.load_network({"state_dict": state}, name, "resnet20", 3)
        assert torch.equal(teacher.eval()(x), expected.eval()(x))
    student = engine.build_model(flags(), teacher)
    assert student.encoder_k is teacher and student.has_teacher


def test_a_teacher_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"^T: entry 'epoch' of its state dict is no tensor, but"):
        engine.load_network({"epoch": 1}, "T", "resnet20", 3)
    state = {"state_dict": resnet32(3, head="fc").state_dict()}
    with pytest.raises(UsageError, match=r"^T: made with another architecture"):
        engine.load_network(state, "T", "resnet20", 3)


def test_feature_sizes_are_checked():
    cases = [
        ({"feat_dim": 2048}, "--feat_dim 2048: the network has 64 features"),
        ({"feat_t": 2048}, "--feat_t 2048: the network has 64 features"),
    ]
    for changed, words in cases:
        with pytest.raises(UsageError, match=words):
            engine.build_model(flags(**changed), None)


def test_a_queue_too_short_for_its_shares_is_refused():
    counts = {"cls_num_list": [5, 4, 3]}
    moco = engine.build_model(flags(moco_k=5), None)
    with pytest.raises(UsageError, match=r"--base_k 2: a queue of 5 gives 3 classes"):
        engine.partition(moco, flags(**counts))
    engine.partition(moco, flags(base_k=0, **counts))
    assert moco.base_k == 0


def test_log_lines_are_the_originals():
    means = engine.Means(CPU)
    logits, target = -torch.arange(6.0).repeat(2, 1), torch.tensor([0, 5])
    means.update(torch.tensor(1.25), logits, target)
    timer = AverageMeter()
    timer.update(0.5)
    line = engine.train_line(flags(), 3, 4, 100, means, timer, timer)
    assert line == (
        "Epoch: [3][  4/100]\tLoss 1.2500 (1.2500)\tAcc@1  50.00 ( 50.00)\tAcc@5  50.00 ( 50.00)"
    )
    assert engine.train_line(flags(), 3, 5, 100, means, timer, timer) is None
    args = flags(program="main")
    assert engine.train_line(args, 3, 4, 100, means, timer, timer) is None
    assert engine.train_line(args, 3, 5, 100, means, timer, timer) == (
        "Epoch: [3][  5/100]\tTime  0.500 ( 0.500)\tData  0.500 ( 0.500)\t"
        "Loss 1.2500e+00 (1.2500e+00)\tAcc@1  50.00 ( 50.00)\tAcc@5  50.00 ( 50.00)"
    )
    result = {"top1": 12.3456, "top5": 50.0, "many": 20.0, "medium": float("nan"), "few": 5.0}
    assert engine.result_lines(result) == (
        " * Acc@1 12.346 Acc@5 50.000\nMany_acc: 0.20000, Medium_acc: nan Low_acc: 0.05000"
    )


def test_means_go_on_where_the_checkpoint_left_them():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand((), generator=generator), torch.rand(n, 7, generator=generator), torch.zeros(n))
        for n in (4, 4, 2)
    ]
    whole, before = engine.Means(CPU), engine.Means(CPU)
    for loss, logits, target in batches:
        whole.update(loss, logits, target)
    before.update(*batches[0])
    after = engine.Means(CPU, state=before.state())
    for batch in batches[1:]:
        after.update(*batch)
    assert whole.row() == after.row()
    loss = sum(float(b[0]) * len(b[2]) for b in batches) / 10
    assert whole.row()["train_loss"] == pytest.approx(loss)
    second = engine.Means(Process(torch.device("cpu"), rank=1), state=before.state())
    assert second.state().sum() == 0  # the sums are of all processes: one of them goes on with them
