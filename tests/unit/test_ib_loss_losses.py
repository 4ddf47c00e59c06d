"""The influence-balanced losses against the original's numbers, the formula and the edges."""

from itertools import product

import pytest
import torch

from ib_loss.losses import FocalLoss, IB_FocalLoss, IBLoss, LDAMLoss, influence_factor

DTYPES = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": 1e-5, "f64": 1e-9}


def close(actual, expected, tolerance):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    error = (actual.detach().double() - expected).abs().max()
    assert error <= tolerance * expected.abs().max().clamp(min=1e-12), float(error)


def test_value_and_gradients_are_the_originals(golden):
    for tag, case, name in product(["f32", "f64"], range(6), ["ldam", "focal", "ib", "ibfocal"]):
        g = golden("ib_loss")
        key = f"loss{case}_"
        logits = g.tensor(key + "logits", DTYPES[tag]).requires_grad_()
        target = g.tensor(key + "target")
        features = g.tensor(key + "features", DTYPES[tag]).requires_grad_()
        weight = g.tensor(key + "weight", DTYPES[tag]) if len(g[key + "weight"]) else None
        alpha, gamma, s, max_m = g[key + "hyper"].tolist()

        if name == "ldam":
            criterion = LDAMLoss(g[key + "cls_num"], max_m=max_m, weight=weight, s=s)
            torch.testing.assert_close(
                criterion.m_list, g.tensor(key + "ldam_m_list"), rtol=0, atol=0
            )
            loss = criterion(logits, target)
        elif name == "focal":
            loss = FocalLoss(weight, gamma)(logits, target)
        elif name == "ib":
            loss = IBLoss(weight, alpha)(logits, target, features)
        else:
            loss = IB_FocalLoss(weight, alpha, gamma)(logits, target, features)
        loss.backward()

        assert loss.dtype == DTYPES[tag]
        close(loss, g[f"{key}{name}_value_{tag}"], TOLERANCE[tag])
        close(logits.grad, g[f"{key}{name}_dlogits_{tag}"], TOLERANCE[tag])
        if name.startswith("ib"):
            close(features.grad, g[f"{key}{name}_dfeatures_{tag}"], TOLERANCE[tag])


def test_influence_factor(golden):
    for (tag, tolerance), case in product([("f32", 1e-4), ("f64", 1e-9)], range(6)):
        g = golden("ib_loss")
        key = f"loss{case}_"
        factor = influence_factor(
            g.tensor(key + "logits", DTYPES[tag]),
            g.tensor(key + "target"),
            g.tensor(key + "features", DTYPES[tag]),
            alpha=float(g[key + "hyper"][0]),
            epsilon=IBLoss.epsilon,
        )
        close(factor, g[f"{key}ib_factor_{tag}"], tolerance)


def test_ib_is_the_formula_sample_by_sample():
    torch.manual_seed(0)
    logits, norms = torch.randn(7, 5).double(), torch.rand(7, 1).double() * 9
    target, weight = torch.tensor([0, 1, 2, 3, 4, 0, 0]), torch.rand(5).double()
    expected = 0.0
    for z, y, h in zip(logits, target, norms, strict=True):
        p = torch.exp(z) / torch.exp(z).sum()
        u = sum(abs(float(p[c]) - (c == int(y))) for c in range(5))
        expected += float(-weight[y] * p[y].log()) * 1000 / (u * float(h) + 0.001)
    assert float(IBLoss(weight, 1000)(logits, target, norms)) == pytest.approx(expected / 7, 1e-12)


def test_raw_features_are_reduced_to_their_l1_norm():
    torch.manual_seed(0)
    logits, features, target = torch.randn(4, 3), torch.randn(4, 64), torch.tensor([0, 1, 2, 0])
    norms = features.abs().sum(1)
    expected = IBLoss(alpha=1000)(logits, target, norms[:, None])
    for given in (features, norms):
        torch.testing.assert_close(IBLoss(alpha=1000)(logits, target, given), expected)


def test_edges():
    # H = 0 gives r = alpha / epsilon; p_y = 1 contributes nothing.
    logits, target = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    loss = IBLoss(alpha=10.0)(logits, target, torch.zeros(1, 1))
    assert float(loss) == pytest.approx(0.6931472 * 10 / 0.001)
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)
    IBLoss(alpha=10.0)(sure, target, torch.ones(1, 1)).backward()
    assert sure.grad.abs().max() == 0


def test_float32_inside_autocast():
    torch.manual_seed(0)
    logits, norms, target = torch.randn(8, 4), torch.rand(8, 1), torch.randint(0, 4, (8,))
    for criterion in (IBLoss(), IB_FocalLoss(gamma=1.0)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(logits.bfloat16(), target, norms.bfloat16())
        expected = criterion(logits.bfloat16().float(), target, norms.bfloat16().float())
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)


def test_impossible_constants_are_refused():
    cases = [
        lambda: IBLoss(alpha=0),
        lambda: IB_FocalLoss(alpha=-1.0),
        lambda: FocalLoss(gamma=-0.5),
        lambda: LDAMLoss([3, 2], s=0),
        lambda: LDAMLoss([3, 0]),
    ]
    for build in cases:
        with pytest.raises(ValueError):
            build()


def test_constructor_defaults_are_the_originals():
    assert IBLoss().alpha == IB_FocalLoss().alpha == 10000.0
    assert IB_FocalLoss().gamma == FocalLoss().gamma == 0.0
    assert LDAMLoss([4, 1]).s == 30 and LDAMLoss([16, 1]).m_list.tolist() == [0.25, 0.5]
    assert not list(IBLoss(torch.ones(3)).state_dict())
