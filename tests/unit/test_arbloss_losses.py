"""ARB-Loss, its stage-2 variants, and label-aware smoothing: golden numbers, formulas, edges."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from arbloss.losses import (
    ARBFocalLoss,
    ARBLoss,
    LabelAwareSmoothing,
    WARBLoss,
    batch_class_counts,
)

DTYPES = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": {"rtol": 1e-4, "atol": 1e-6}, "f64": {"rtol": 1e-9, "atol": 1e-12}}


@pytest.fixture
def arb(golden):
    return golden("arbloss")


def value_and_grad(criterion, logits, *args):
    logits = logits.clone().requires_grad_()
    loss = criterion(logits, *args)
    loss.backward()
    return loss.detach(), logits.grad


def batch(b=6, c=5, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, c, generator=generator, dtype=dtype) * scale
    target = torch.randint(c, (b,), generator=generator)
    return logits, target


def test_arb_loss_golden(arb):
    for precision, k in product(["f32", "f64"], range(8)):
        dtype = DTYPES[precision]
        tolerance = TOLERANCE[precision]
        if k == 2:  # a batch of one class: everything is 0 up to rounding
            tolerance = tolerance | {"atol": {"f32": 1e-6, "f64": 1e-14}[precision]}
        feats, weight, bias = (
            arb.tensor(f"arb{k}_{name}", dtype).requires_grad_() for name in ("feats", "W", "b")
        )
        target, class_cnt = arb.tensor(f"arb{k}_labels"), arb.tensor(f"arb{k}_class_cnt")
        if arb.facts["arb_cases"][k]["counts"] == "batch":
            torch.testing.assert_close(
                batch_class_counts(target, len(class_cnt)), class_cnt, check_dtype=False
            )
        logits = feats @ weight.T + bias
        logits.retain_grad()

        def golden(name):
            return arb.tensor(f"arb{k}_{name}_{precision}")

        total = ARBLoss("sum")(logits, target, class_cnt)
        loss = ARBLoss("mean")(logits, target, class_cnt)
        loss.backward()
        torch.testing.assert_close(logits, golden("logits"), **tolerance)
        torch.testing.assert_close(loss, golden("loss_mean"), **tolerance)
        torch.testing.assert_close(total, golden("loss_sum"), **tolerance)
        torch.testing.assert_close(logits.grad, golden("grad_logits"), **tolerance)
        torch.testing.assert_close(feats.grad, golden("grad_feats"), **tolerance)
        torch.testing.assert_close(weight.grad, golden("grad_W"), **tolerance)
        torch.testing.assert_close(bias.grad, golden("grad_b"), **tolerance)


def test_variants_golden(arb):
    for precision, case in product(["f32", "f64"], ["fl0", "fl1", "warb0", "warb1"]):

        def criterion(reduction):
            if case.startswith("fl"):
                facts = arb.facts["fl_cases"][int(case[-1])]
                return ARBFocalLoss(reduction, alpha=facts["alpha"], gamma=facts["gamma"])
            return WARBLoss(reduction, ugcc=arb.facts["warb_cases"][int(case[-1])]["ugcc"])

        logits = arb.tensor(f"{case}_logits", DTYPES[precision])
        counts = (arb.tensor(f"{case}_labels"), arb.tensor(f"{case}_class_cnt"))
        loss, grad = value_and_grad(criterion("mean"), logits, *counts)
        total, _ = value_and_grad(criterion("sum"), logits, *counts)
        tolerance = TOLERANCE[precision]
        torch.testing.assert_close(loss, arb.tensor(f"{case}_loss_mean_{precision}"), **tolerance)
        torch.testing.assert_close(total, arb.tensor(f"{case}_loss_sum_{precision}"), **tolerance)
        torch.testing.assert_close(grad, arb.tensor(f"{case}_grad_logits_{precision}"), **tolerance)


def test_label_aware_smoothing_golden(arb):
    for k, shape in product([0, 1], ["concave", "linear", "convex", "exp"]):
        facts = arb.facts["las_cases"][k]
        criterion = LabelAwareSmoothing(
            arb[f"las{k}_cls_num_list"],
            facts["smooth_head"],
            facts["smooth_tail"],
            shape,
            facts["power"],
        )
        loss, grad = value_and_grad(
            criterion, arb.tensor(f"las{k}_logits"), arb.tensor(f"las{k}_labels")
        )
        tolerance = TOLERANCE["f32"]
        torch.testing.assert_close(
            criterion.smooth, arb.tensor(f"las{k}_smooth_{shape}"), **tolerance
        )
        torch.testing.assert_close(loss, arb.tensor(f"las{k}_loss_{shape}"), **tolerance)
        torch.testing.assert_close(grad, arb.tensor(f"las{k}_grad_{shape}"), **tolerance)


def test_label_aware_smoothing_with_counts_golden(arb):
    for k in [0, 1]:
        facts = arb.facts["las_cases"][k]
        counts = arb.tensor(f"las{k}_cls_num_list")
        criterion = LabelAwareSmoothing(counts, facts["smooth_head"], facts["smooth_tail"])
        loss, grad = value_and_grad(
            criterion,
            arb.tensor(f"las{k}_logits", torch.float64),
            arb.tensor(f"las{k}_labels"),
            counts,
        )
        tolerance = TOLERANCE["f64"]
        torch.testing.assert_close(loss, arb.tensor(f"x_lasarb{k}_loss_f64"), **tolerance)
        torch.testing.assert_close(grad, arb.tensor(f"x_lasarb{k}_grad_f64"), **tolerance)


def test_arb_loss_is_the_authors_formula():
    logits, target = batch(scale=25.0)  # some beyond the clamp
    assert (logits.abs() > 30).any()
    n = torch.tensor([50.0, 20.0, 7.0, 3.0, 1.0])
    losses = []
    for z, y in zip(logits.clamp(-30, 30), target, strict=True):
        s = sum(float(n[k] / n[y]) * math.exp(z[k]) for k in range(5))
        losses.append(-math.log(math.exp(z[y]) / s))
    expected = torch.tensor(losses, dtype=torch.float64)
    torch.testing.assert_close(ARBLoss("sum")(logits, target, n), expected.sum())
    torch.testing.assert_close(ARBLoss()(logits, target, n), expected.mean())


def test_no_gradient_outside_the_clamp_and_none_beyond_overflow():
    logits = torch.tensor([[100.0, -200.0, 3.0, math.inf]])
    loss, grad = value_and_grad(ARBLoss(), logits, torch.tensor([2]), torch.ones(4))
    assert loss.isfinite()
    assert grad[0, [0, 1, 3]].tolist() == [0, 0, 0]
    assert grad[0, 2] < 0


def test_balanced_softmax_with_global_counts():
    logits, target = batch()
    n = torch.tensor([500, 120, 30, 8, 2])
    expected = F.cross_entropy(logits + n.double().log(), target)
    torch.testing.assert_close(ARBLoss()(logits, target, n), expected)


def test_equal_counts_give_cross_entropy():
    logits, target = batch()
    torch.testing.assert_close(
        ARBLoss()(logits, target, torch.full((5,), 7)), F.cross_entropy(logits, target)
    )


def test_absent_classes_get_no_gradient_at_all():
    logits, _ = batch(b=4, c=6)
    target = torch.tensor([0, 2, 2, 5])
    for criterion in (ARBLoss(), ARBFocalLoss(), WARBLoss()):
        _, grad = value_and_grad(criterion, logits, target, batch_class_counts(target, 6))
        assert (grad[:, [1, 3, 4]] == 0).all()
        assert (grad[:, [0, 2, 5]] != 0).all()


def test_a_batch_of_one_class_has_no_loss():
    for b in [1, 5]:
        logits, _ = batch(b=b, dtype=torch.float32, scale=8.0)
        target = torch.full((b,), 3)
        for criterion in (ARBLoss(), ARBFocalLoss(), WARBLoss()):
            loss, grad = value_and_grad(criterion, logits, target, batch_class_counts(target, 5))
            assert loss == 0
            assert grad.abs().max() == 0


def test_nan_propagates():
    logits, target = batch()
    logits[0, 0] = math.nan
    assert ARBLoss()(logits, target, torch.ones(5)).isnan()


def test_a_label_without_count_is_named():
    logits, _ = batch(b=3)
    target = torch.tensor([1, 4, 1])
    n = torch.tensor([3.0, 2.0, 1.0, 1.0, 0.0])
    smoothing = LabelAwareSmoothing([3, 2, 1, 1, 1], 0.3, 0.0)
    for criterion in (ARBLoss(), ARBFocalLoss(), WARBLoss(), smoothing):
        with pytest.raises(ValueError, match=r"\[4\]"):
            criterion(logits, target, n)
    assert ARBLoss(validate=False)(logits, target, n).isinf()


def test_wrong_arguments_are_refused():
    logits, target = batch()
    with pytest.raises(ValueError, match="class_cnt has shape"):
        ARBLoss()(logits, target, torch.ones(4))
    with pytest.raises(ValueError, match="reduction"):
        ARBLoss("none")
    with pytest.raises(ValueError, match="smooth_head"):
        LabelAwareSmoothing([2, 1], None, 0.0)
    with pytest.raises(ValueError, match="power"):
        LabelAwareSmoothing([2, 1], 0.3, 0.0, shape="exp")
    with pytest.raises(ValueError, match="shape"):
        LabelAwareSmoothing([2, 1], 0.3, 0.0, shape="round")


def test_equal_classes_are_all_head():
    for shape in ["concave", "linear", "convex", "exp"]:
        criterion = LabelAwareSmoothing([9, 9, 9], 0.3, 0.1, shape, power=2.0)
        torch.testing.assert_close(criterion.smooth, torch.full((3,), 0.3))


def test_smoothing_without_smoothing_is_arb_or_cross_entropy():
    logits, target = batch(scale=12.0)
    n = torch.tensor([50, 20, 7, 3, 1])
    criterion = LabelAwareSmoothing(n, 0.0, 0.0)
    torch.testing.assert_close(criterion(logits, target), F.cross_entropy(logits, target))
    torch.testing.assert_close(criterion(logits, target, n), ARBLoss()(logits, target, n))


def test_half_precision_logits_are_computed_in_float32():
    for dtype in [torch.float16, torch.bfloat16]:
        logits, target = batch(dtype=torch.float32, scale=12.0)
        logits = logits.to(dtype)
        n = torch.tensor([50, 20, 7, 3, 1])
        criteria = [ARBLoss(), ARBFocalLoss(), WARBLoss(), LabelAwareSmoothing(n, 0.3, 0.1)]
        for criterion in criteria:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, grad = value_and_grad(criterion, logits, target, n)
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, criterion(logits.float(), target, n))
            assert grad.dtype == dtype
            assert grad.isfinite().all()


def test_losses_have_no_state_to_save():
    for module in (ARBLoss(), LabelAwareSmoothing([3, 1], 0.3, 0.0)):
        assert not module.state_dict()


def test_gradients_agree_with_finite_differences():
    logits, target = batch(b=3, c=4)
    n = torch.tensor([9, 4, 2, 1])
    for criterion in (ARBLoss(), ARBFocalLoss(gamma=1.5), WARBLoss(), WARBLoss(ugcc=True)):
        assert torch.autograd.gradcheck(
            lambda z, f=criterion: f(z, target, n), logits.clone().requires_grad_()
        )


def test_batch_counts():
    counts = batch_class_counts(torch.tensor([3, 0, 3]), 5)
    assert counts.tolist() == [1, 0, 0, 2, 0]
    assert counts.dtype == torch.float32
    with pytest.raises(IndexError):
        batch_class_counts(torch.tensor([5]), 5)
