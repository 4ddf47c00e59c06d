"""Losses of hmloss: the numbers of the original, the formula as a loop, the edges."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hmloss.losses import (
    HIGHEST,
    CELoss,
    FocalLoss,
    HMLoss,
    LDAMLoss,
    SoftmaxHardMiningLoss,
    softmax_hard_mining_loss,
)

TOLERANCE = {"f64": {"rtol": 1e-8, "atol": 1e-10}, "f32": {"rtol": 1e-4}}
DTYPES = {"f64": torch.float64, "f32": torch.float32}


def assert_golden(actual, expected, kind, atol=2e-5):
    expected = np.asarray(expected, dtype=np.float64)
    tolerance = dict(TOLERANCE[kind])
    tolerance.setdefault("atol", atol * max(1.0, np.abs(expected).max()))
    np.testing.assert_allclose(np.asarray(actual, dtype=np.float64), expected, **tolerance)


@pytest.fixture(scope="module")
def g(golden):
    return golden("hmloss")


def case(g, i, kind):
    """Logits, labels and the three weight choices (None, CS, CB) in the dtype of `kind`."""
    dtype = DTYPES[kind]
    weights = [None] + [g.tensor(f"loss{i}_w_{name}", dtype) for name in ("cs", "cb")]
    return g.tensor(f"loss{i}_logits", dtype), g.tensor(f"loss{i}_targets"), weights


def check(g, i, kind, name, row, make):
    logits, target, weights = case(g, i, kind)
    values, grads = g[f"loss{i}_{name}_val_{kind}"][row], g[f"loss{i}_{name}_grad_{kind}"][row]
    for k, weight in enumerate(weights):
        z = logits.clone().requires_grad_()
        loss = make(weight)(z, target)
        loss.backward()
        assert loss.dtype == logits.dtype
        assert_golden(loss.detach(), values[k], kind)
        assert_golden(z.grad, grads[k], kind)


def test_losses_and_gradients_are_the_originals(g):
    for kind in ["f64", "f32"]:
        max_m, s = (float(v) for v in g["ldam_max_m_s"])
        for i in range(int(g["n_loss_cfg"])):
            check(g, i, kind, "ce", ..., CELoss)
            for row, gamma in enumerate(g["focal_gammas"]):
                check(g, i, kind, "focal", row, lambda w, gamma=gamma: FocalLoss(w, float(gamma)))
            for row, delta in enumerate(g["hml_deltas"]):
                check(g, i, kind, "hml", row, lambda w, delta=delta: HMLoss(w, int(delta)))
            counts = g[f"loss{i}_counts"].tolist()
            check(g, i, kind, "ldam", ..., lambda w, n=counts: LDAMLoss(n, max_m, w, s))
            margins = LDAMLoss(counts, max_m, None, s).m_list
            assert margins.dtype == torch.float32
            np.testing.assert_array_max_ulp(margins.numpy(), g[f"loss{i}_ldam_m_list"], 1)


def test_hml_curve_over_all_regimes(g):
    for kind in ["f64", "f32"]:
        for row, delta in enumerate(g["curve_deltas"]):
            loss, grad = [], []
            for value in g["curve_ce"]:
                ce = torch.tensor([value], dtype=DTYPES[kind], requires_grad=True)
                out = softmax_hard_mining_loss(ce, int(delta))
                out.backward()
                loss.append(out.item())
                grad.append(ce.grad.item())
            assert_golden(loss, g[f"curve_loss_{kind}"][row], kind, atol=2e-4)
            # On the very bound of p the last bit of exp decides whether m carries gradient.
            inside = np.abs(np.exp(-g["curve_ce"]) - HIGHEST) > 1e-15
            assert inside.sum() >= len(inside) - 1
            grad, expected = np.array(grad)[inside], g[f"curve_grad_{kind}"][row][inside]
            assert_golden(grad, expected, kind, atol=2e-4)


def test_defaults_are_the_originals(g):
    facts = g.facts["loss_defaults"]["cifar"]
    assert HMLoss().delta == facts["HML.delta"]
    assert FocalLoss().gamma == facts["FocalLoss.gamma"]
    assert SoftmaxHardMiningLoss is HMLoss


def test_hml_equals_a_loop_over_the_formula():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(12, 6, generator=generator, dtype=torch.float64) * 4
    target = torch.randint(0, 6, (12,), generator=generator)
    weight = torch.rand(6, generator=generator, dtype=torch.float64) + 0.2
    delta = 50.0
    total = 0.0
    for z, y in zip(logits.tolist(), target.tolist(), strict=True):
        ce = weight[y].item() * (math.log(sum(math.exp(v) for v in z)) - z[y])
        p = min(max(math.exp(-ce), 1e-10), 1 - 1e-10)
        m = math.sin(math.pi * p) / (math.pi * p)
        x = delta * p
        m -= math.exp(-x) * math.sin(math.pi * x) / (math.pi * x)
        total += 10 * m * ce
    actual = HMLoss(weight, delta)(logits, target).item()
    assert actual == pytest.approx(total / len(target), rel=1e-12)


def test_hml_gradient_is_the_derivative():
    for delta in [1.0, 33.0, 1e4, 1e7]:
        ce = torch.linspace(0.01, 22, 40, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(lambda ce: softmax_hard_mining_loss(ce, delta), (ce,), atol=1e-4)


def test_hml_regimes():
    """The table in the docstring: peak position, height, and where the factor exceeds 1/2."""
    cases = [
        (10, 0.0938, 22.72, 0.0408),
        (100, 0.0112, 46.44, 4.06e-3),
        (1e3, 1.19e-3, 70.42, 4.06e-4),
        (1e4, 1.222e-4, 94.54, 4.06e-5),
        (1e7, 1.27e-7, 167.2, 4.06e-8),
    ]
    for delta, position, height, low in cases:
        p = torch.logspace(-9, 0, 20_000, dtype=torch.float64)[:-1]
        ce = -p.log()
        curve = torch.stack([softmax_hard_mining_loss(v.reshape(1), delta) for v in ce[::10]])
        peak = curve.argmax()
        assert p[::10][peak].item() == pytest.approx(position, rel=0.02)
        assert curve[peak].item() == pytest.approx(height, rel=1e-3)
        half = p[::10][curve / ce[::10] / 10 >= 0.5]
        assert half.min().item() == pytest.approx(low, rel=0.02)
        assert half.max().item() == pytest.approx(0.603, rel=0.01)


def test_hml_pushes_outliers_further_away():
    """Below the peak the loss falls as the sample gets worse; above it rises."""
    for p, sign in [(1e-6, -1), (1e-2, 1)]:
        ce = torch.tensor([-math.log(p)], requires_grad=True)
        softmax_hard_mining_loss(ce, 1e4).backward()
        assert math.copysign(1, ce.grad.item()) == sign


def test_class_weight_acts_in_the_exponent():
    logits, target = torch.tensor([[0.3, -1.1]], dtype=torch.float64), torch.tensor([1])
    weight = torch.tensor([1.0, 1.7], dtype=torch.float64)
    p = F.softmax(logits, 1)[0, 1] ** 1.7
    expected = softmax_hard_mining_loss(-p.log().reshape(1), 20.0)
    assert HMLoss(weight, 20.0)(logits, target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_losses_compute_in_float32_under_autocast():
    """1e-10 is 0 in float16, where an outlier would give 0/0."""
    for dtype in [torch.bfloat16, torch.float16]:
        logits = torch.tensor([[-30.0, 30.0], [2.0, -1.0], [30.0, -30.0]], dtype=dtype)
        target = torch.tensor([0, 0, 0])
        weight = torch.tensor([1.3, 0.7])
        for loss in (
            CELoss(weight),
            FocalLoss(weight, 1.0),
            HMLoss(weight, 1e4),
            LDAMLoss([9, 3], weight=weight),
        ):
            z = logits.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(z, target)
            value.backward()
            assert value.dtype == loss(logits, target).dtype == torch.float32
            assert torch.isfinite(z.grad).all()
            torch.testing.assert_close(value, loss(logits.float(), target), rtol=0, atol=0)


def test_edges_stay_finite():
    for delta in (1.0, 1e4, 1e10):
        for logits in ([[0.0]], [[1e4, 0.0]], [[0.0, 1e4]]):  # one class; certain; hopeless
            z = torch.tensor(logits, requires_grad=True)
            loss = HMLoss(delta=delta)(z, torch.tensor([0]))
            loss.backward()
            assert torch.isfinite(loss) and torch.isfinite(z.grad).all()


def test_weights_follow_the_module_and_stay_out_of_checkpoints():
    loss = LDAMLoss([5, 1], weight=torch.ones(2))
    assert not loss.state_dict()
    assert {name for name, _ in loss.named_buffers()} == {"weight", "m_list"}


def test_bad_hyper_parameters_are_refused():
    cases = [
        (lambda: HMLoss(delta=0), "delta"),
        (lambda: HMLoss(delta=-1), "delta"),
        (lambda: HMLoss(delta=float("nan")), "delta"),
        (lambda: FocalLoss(gamma=-0.1), "gamma"),
        (lambda: LDAMLoss([3, 0]), "image"),
        (lambda: LDAMLoss([3, 1], s=0), "s must"),
    ]
    for make, text in cases:
        with pytest.raises(ValueError, match=text):
            make()
