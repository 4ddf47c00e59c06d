"""Accuracy figures against counting sample by sample."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from common.evaluation import (
    Tally,
    accuracy,
    calibration_bins,
    class_groups,
    expected_calibration_error,
    many_medium_few,
)
from common.training.errors import RunError


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
    assert result["few"] == pytest.approx(share[5])  # class 6 has no test images
    assert all(type(result[key]) is float for key in ("top1", "top5", "loss", "ece", "many"))


def test_thousands_of_classes_need_no_matrix():
    tally = Tally(8142)
    tally.update(torch.zeros(2, 8142), torch.tensor([0, 8141]), 0.0)
    assert tally.confusion is None and tally.result()["top1"] == 50.0


def test_many_medium_few_is_the_originals(golden):
    for case in range(4):
        g = golden("dbm_loss_cifar")
        key = f"section.case{case}."
        groups = many_medium_few(g[key + "classwise_acc"], g[key + "counts"])
        np.testing.assert_allclose(list(groups.values()), g[key + "many_med_few"], rtol=1e-6)


def test_calibration_error_is_the_originals(golden):
    for case in range(3):
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


def tally_of(true, predicted, num_classes, batch=4):
    """A tally of one-hot logits."""
    logits = 3.0 * torch.eye(num_classes)[torch.tensor(predicted)]
    tally = Tally(num_classes)
    for part in torch.arange(len(true)).split(batch):
        tally.update(logits[part], torch.tensor(true)[part], loss=1.0, index=part)
    tally.reduce()
    return tally


# Class 3 is predicted but has no image, class 4 neither; class 2 is never predicted.
TRUE, PREDICTED = [0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 3, 0, 1]


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_balanced_accuracy_precision_and_f1_are_those_of_scikit_learn():
    tally = tally_of(TRUE, PREDICTED, num_classes=5)
    result = tally.result()
    assert result["balanced_acc"] == pytest.approx(
        100 * metrics.balanced_accuracy_score(TRUE, PREDICTED)
    )
    precision, _, f1, _ = metrics.precision_recall_fscore_support(TRUE, PREDICTED, zero_division=0)
    assert result["macro_precision"] == pytest.approx(100 * precision.mean())
    assert result["macro_f1"] == pytest.approx(100 * f1.mean())
    by_class = tally.precision_recall_f1()
    np.testing.assert_allclose(by_class[0], [*precision, np.nan])
    np.testing.assert_allclose(by_class[1], [0.75, 0.5, 0, np.nan, np.nan])
    np.testing.assert_allclose(by_class[2], [*f1, np.nan])


def test_samples_are_in_the_order_of_the_data_set_and_counted_while_running():
    tally = Tally(3)
    logits = torch.tensor([[0.0, 2, 1], [9, 0, 0], [0, 0, 0.5]])
    target, index = torch.tensor([2, 0, 2]), torch.tensor([4, 0, 3])
    tally.update(logits, target, 0.5, index)
    tally.update(logits[:2], torch.tensor([1, 1]), 1.0, torch.tensor([2, 1]))
    loss, top1, top5 = tally.running()
    assert loss.val == 1.0 and loss.avg == pytest.approx((3 * 0.5 + 2 * 1.0) / 5)
    assert (top1.val, top1.avg) == (50.0, pytest.approx(60.0)) and (top5.val, top5.avg) == (
        100,
        100,
    )
    tally.reduce()
    assert tally.samples[:, 0].tolist() == [0, 1, 1, 2, 2]
    assert tally.samples[:, 1].tolist() == [0, 0, 1, 2, 1]
    largest = logits.softmax(dim=1).amax(dim=1)[[1, 1, 0, 2, 0]]
    np.testing.assert_allclose(tally.samples[:, 2], largest)


@pytest.mark.parametrize("index", [[4, 0, 0], [5, 0, 3], [7, 9, 4]])
def test_an_image_that_is_counted_twice_or_never_is_no_result(index):
    tally = Tally(2)
    for places in ([1, 2], index):
        tally.update(torch.eye(2).repeat(2, 1)[: len(places)], torch.tensor(places) % 2, 0.0,
                     torch.tensor(places))  # fmt: skip
    with pytest.raises(RunError) as error:
        tally.reduce()
    assert str(error.value) == (
        "of 5 images that were evaluated some came twice and others not at all; give all processes "
        "the same data"
    )


def test_probabilities_and_calibration_have_the_scale_of_the_loss():
    cosines, target = torch.tensor([[0.5, -0.5], [0.1, 0.2]]), torch.tensor([0, 1])
    plain, scaled = Tally(2), Tally(2, scale=30.0)
    for tally in (plain, scaled):
        tally.update(cosines, target, 0.0)
        tally.reduce()
    np.testing.assert_allclose(scaled.samples[:, 2], (30 * cosines).softmax(dim=1).amax(dim=1))
    np.testing.assert_allclose(plain.samples[:, 2], cosines.softmax(dim=1).amax(dim=1))
    # Both images are right: sure of the first, and with 1 / (1 + exp(-3)) of the second.
    assert scaled.result()["ece"] == pytest.approx(50 / (1 + np.exp(3)), abs=1e-4)
    assert scaled.result() | {"ece": 0} == plain.result() | {"ece": 0}


def test_groups_by_size_whatever_the_order():
    assert class_groups([20, 101, 19, 100]).tolist() == ["medium", "many", "few", "medium"]
