"""Learning rates and stage criteria of the original worker, and the stretched schedule."""

import numpy as np
import pytest

from hmloss.cifar_implementation.opts import parse_args
from hmloss.engine import build_criterion, class_weights
from hmloss.schedule import Schedule, in_hml_stage, learning_rate


@pytest.fixture(scope="module")
def g(golden):
    return golden("hmloss")


def rates(args, schedule):
    for epoch in range(args.epochs):
        stage = in_hml_stage(epoch, args.loss_type, args.start_hm_epoch)
        yield learning_rate(epoch, args.lr, stage, schedule)


def test_learning_rates_are_the_originals(g):
    for name, case in g.facts["lr_scenarios"].items():
        args, schedule = parse_args(case["argv"])
        np.testing.assert_allclose(
            list(rates(args, schedule)), g[f"lr_cifar_{name}"], rtol=1e-12, err_msg=name
        )


def test_criteria_are_the_originals(g):
    names = {"CrossEntropyLoss": "CELoss", "SoftmaxHardMiningLoss": "HMLoss"}
    for case in g.facts["lr_scenarios"].values():
        args, _ = parse_args([*case["argv"], "--weighting_type", "CS"])
        first, second = (build_criterion(args, [5, 1], stage) for stage in (False, True))
        assert type(first).__name__ == names[case["criterion"]]
        if case["hm_delta"] is None:  # CE: the same throughout, weighted
            assert type(second) is type(first) and first.weight is not None
            continue
        assert type(second).__name__ == names[case["criterion_hm"]]
        assert second.delta == case["hm_delta"]
        assert first.weight is None and second.weight is not None  # deferred re-weighting


def test_focal_and_ldam_have_weights_margins_and_scale():
    """In both stages; ISIC builds them here, too."""
    weights = class_weights("CS", [16, 1])
    for stage in (False, True):
        args, _ = parse_args(["--loss_type", "Focal", "--gamma", "2", "--weighting_type", "CS"])
        focal = build_criterion(args, [16, 1], stage)
        assert focal.weight.tolist() == weights.tolist() and focal.gamma == 2
        args, _ = parse_args(["--loss_type", "LDAM", "--weighting_type", "CS"])
        ldam = build_criterion(args, [16, 1], stage)
        assert ldam.weight.tolist() == weights.tolist()
        assert ldam.m_list.tolist() == [0.25, 0.5] and ldam.s == 30


def test_hml2_ignores_delta():
    args, _ = parse_args(["--loss_type", "HML2", "--delta", "77"])
    assert {build_criterion(args, [5, 1], stage).delta for stage in (False, True)} == {10**10}


def test_class_weights_are_the_originals(g):
    case = 0
    while f"weights{case}_counts" in g:
        counts = g[f"weights{case}_counts"].tolist()
        for name in ("CS", "CB"):
            weight = class_weights(name, counts).numpy()
            np.testing.assert_allclose(weight, g[f"weights{case}_{name.lower()}"], rtol=1e-6)
        assert class_weights("None", counts) is None
        case += 1
    assert case


def test_stretched_schedule_is_a_miniature():
    full, small = Schedule(), Schedule().stretched(20)
    assert small.milestones == (16, 18) and small.start_hm_epoch == 10
    for loss_type in ("CE", "HML1"):
        for epoch in range(6, 20):
            large = learning_rate(
                10 * epoch, 0.1, in_hml_stage(10 * epoch, loss_type, full.start_hm_epoch), full
            )
            stage = in_hml_stage(epoch, loss_type, small.start_hm_epoch)
            assert learning_rate(epoch, 0.1, stage, small) == large
