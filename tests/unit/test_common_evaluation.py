"""Accuracy figures against counting sample by sample."""

import math

import numpy as np
import pytest
import torch

from arbloss.engine import group_means
from common.evaluation import (
    Tally,
    accuracy,
    calibration_bins,
    expected_calibration_error,
    many_medium_few,
)


def test_accuracy_is_the_originals(golden):
    g = golden("hmloss")
    expected = g["acc_top1_top5"]
    result = accuracy(g.tensor("acc_logits"), g.tensor("acc_targets"), topk=(1, 5))
    np.testing.assert_allclose([float(x) for x in result], np.ravel(expected), rtol=1e-6)


def test_top5_of_three_classes_is_all():
    logits = torch.eye(3)
    top1, top5 = accuracy(logits, torch.tensor([0, 2, 1]), topk=(1, 5))
    assert float(top1) == pytest.approx(100 / 3) and float(top5) == pytest.approx(100)


def test_tally_counts_like_a_loop():
    rng = np.random.RandomState(0)
    logits, target = torch.from_numpy(rng.randn(57, 7)), torch.from_numpy(rng.randint(0, 6, 57))
    tally = Tally(7)
    for part in torch.arange(57).split(10):
        tally.update(logits[part], target[part], loss=float(len(part)))
    result = tally.result([200, 150, 100, 50, 20, 19, 1])

    confusion, correct, total, top5 = np.zeros((7, 7)), np.zeros(7), np.zeros(7), 0
    for z, y in zip(logits.tolist(), target.tolist(), strict=True):
        order = sorted(range(7), key=lambda c: -z[c])
        confusion[y, order[0]] += 1
        total[y] += 1
        correct[y] += order[0] == y
        top5 += y in order[:5]
    np.testing.assert_array_equal(tally.confusion, confusion)
    assert result["top1"] == pytest.approx(correct.sum() / 57 * 100)
    assert result["top5"] == pytest.approx(top5 / 57 * 100)
    assert result["loss"] == pytest.approx((5 * 10 * 10 + 7 * 7) / 57)
    np.testing.assert_allclose(result["cls_acc"][:6], correct[:6] / total[:6])
    assert math.isnan(result["cls_acc"][6])  # no test image of this class
    share = correct / np.maximum(total, 1) * 100
    assert result["many"] == pytest.approx(share[:2].mean())
    assert result["medium"] == pytest.approx(share[2:5].mean())
    assert math.isnan(result["few"])  # contains the class without test images
    assert all(type(result[key]) is float for key in ("top1", "top5", "loss", "ece", "many"))


def test_thousands_of_classes_need_no_matrix():
    tally = Tally(8142)
    tally.update(torch.zeros(2, 8142), torch.tensor([0, 8141]), 0.0)
    assert tally.confusion is None and tally.result()["top1"] == 50.0


@pytest.mark.parametrize("case", range(4))
def test_many_medium_few_is_the_originals(golden, case):
    g = golden("dbm_loss_cifar")
    key = f"section.case{case}."
    groups = many_medium_few(g[key + "classwise_acc"], g[key + "counts"])
    np.testing.assert_allclose(list(groups.values()), g[key + "many_med_few"], rtol=1e-6)


def test_groups_by_index_range():
    ranges = {"head": [0, 2], "med": [2, 3], "tail": [3, 3]}
    means = group_means([1.0, 0.0, 0.25, 0.5], ranges)
    assert means["head"] == 0.5 and means["med"] == 0.25 and math.isnan(means["tail"])


@pytest.mark.parametrize("case", range(3))
def test_calibration_error_is_the_originals(golden, case):
    g = golden("arbloss")
    key = f"cal{case}_"
    correct = g.tensor(key + "true") == g.tensor(key + "pred")
    num_bins = g.facts["cal_cases"][case]["num_bins"]
    bins = calibration_bins(g.tensor(key + "conf"), correct, num_bins)
    np.testing.assert_array_equal(bins[0], g[key + "out_counts"])
    expected = float(g[key + "out_expected_calibration_error"])
    assert expected_calibration_error(bins) == pytest.approx(expected, rel=1e-9)


def test_no_samples_have_no_calibration():
    assert math.isnan(expected_calibration_error(torch.zeros(3, 15)))
