"""dbm_loss.margin and dbm_loss.losses against the numbers of the large-scale half."""

import numpy as np
import pytest
import torch

from common.models.heads import NormedLinear
from dbm_loss.losses import LDAM, BalancedSoftmax, BCLLoss, CrossEntropy, NCLLoss
from dbm_loss.margin import DBMargin, class_prior

DTYPES = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": {"rtol": 2e-5, "atol": 1e-5}, "f64": {"rtol": 1e-9, "atol": 1e-12}}


@pytest.fixture(scope="module")
def g(golden):
    return golden("dbm_loss_large_scale")


def leaf(g, name: str, dtype: torch.dtype) -> torch.Tensor:
    return g.tensor(name, dtype).clone().requires_grad_()


def margin_of(case: dict, counts: list[int]) -> DBMargin | None:
    if not case.get("use_norm", True):
        return None
    return DBMargin(
        counts,
        max_margin=case.get("max_margin", 0.1),
        tau=case.get("tau", 1.0),
        scale=case.get("cos_scale", 30.0),
        lambda_inst=case.get("lambda_inst", 1.0),
        use_dbm=case["use_dbm"],
    )


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("dtype", DTYPES)
def test_margin(g, i, dtype):
    case = g.facts["cases"]["dbm"][i]
    margin = margin_of(case, case["counts"])
    assert np.array_equal(margin.class_margin.flatten(), g[f"dbm{i}_margin"].flatten())
    assert np.array_equal(class_prior(case["counts"]), g[f"dbm{i}_prob"])
    cosine = leaf(g, f"dbm{i}_cosine", DTYPES[dtype])
    out = margin(cosine, g.tensor(f"dbm{i}_target"))
    (out * g.tensor(f"dbm{i}_gradw", DTYPES[dtype])).sum().backward()
    np.testing.assert_allclose(out.detach(), g[f"dbm{i}_out_{dtype}"], **TOLERANCE[dtype])
    np.testing.assert_allclose(cosine.grad, g[f"dbm{i}_grad_{dtype}"], **TOLERANCE[dtype])


def test_margin_is_not_the_largest_where_classes_are_unsorted(g):
    counts = g.facts["cases"]["dbm"][1]["counts"]
    margin = DBMargin(counts, max_margin=0.1).class_margin.flatten()
    assert margin[-1] == pytest.approx(0.1)
    assert margin.max() == pytest.approx(0.1 * counts[-1] / min(counts))


def test_margin_at_the_edge_of_the_cosine(g):
    """Finite at |cos| >= 1, the original's value wherever that is finite."""
    cosine = leaf(g, "dbm_edge_cosine", torch.float32)
    out = DBMargin([500, 100, 20, 5], scale=30.0)(cosine, g.tensor("dbm_edge_target"))
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(cosine.grad).all()
    finite = np.isfinite(g["dbm_edge_out_f32"])
    assert finite.any() and not finite.all()
    np.testing.assert_allclose(
        out.detach().numpy()[finite], g["dbm_edge_out_f32"][finite], rtol=0, atol=1e-4 * 30
    )


@pytest.mark.parametrize("i", range(15))
@pytest.mark.parametrize("dtype", DTYPES)
def test_classification_losses(g, i, dtype):
    case = g.facts["cases"]["cls"][i]
    counts = g["cls_counts"].tolist()
    loss_fn = case["loss_fn"]
    drw_epoch = 160 if loss_fn.endswith("drw") else None
    if loss_fn.startswith("ldam"):
        criterion = LDAM(counts, max_margin=case["max_margin"], drw_epoch=drw_epoch)
        np.testing.assert_allclose(criterion.class_margin, g[f"cls{i}_m_list"], rtol=1e-6)
    elif loss_fn == "bs":
        criterion = BalancedSoftmax(counts, margin=margin_of(case, counts))
    else:
        criterion = CrossEntropy(counts, drw_epoch, margin_of(case, counts))
    if loss_fn == "ce_drw":
        late = case["epoch"] >= 160
        weight = criterion.class_weight if late else torch.ones(len(counts))
        np.testing.assert_allclose(weight, g[f"cls{i}_weight"], rtol=1e-6)
    cosine = leaf(g, "cls_cosine", DTYPES[dtype])
    loss = criterion(cosine, g.tensor("cls_target"), case["epoch"])
    loss.backward()
    assert loss.dtype == DTYPES[dtype]
    # The original refuses float64 for weighted losses: there its float32 numbers hold.
    known = dtype if f"cls{i}_loss_{dtype}" in g else "f32"
    np.testing.assert_allclose(loss.item(), g[f"cls{i}_loss_{known}"], **TOLERANCE[known])
    np.testing.assert_allclose(cosine.grad, g[f"cls{i}_grad_{known}"], **TOLERANCE[known])


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize("dtype", DTYPES)
def test_balanced_contrastive_learning(g, i, dtype):
    case = g.facts["cases"]["bcl"][i]
    counts = g[f"bcl{i}_counts"].tolist()
    criterion = BCLLoss(
        counts,
        margin=margin_of(case, counts),
        alpha=case["alpha"],
        beta=case["beta"],
        temperature=case["temperature"],
    )
    features, centers, logits = (
        leaf(g, f"bcl{i}_{name}", DTYPES[dtype]) for name in ("features", "centers", "logits")
    )
    target = g.tensor(f"bcl{i}_target")
    parts = {
        "scl": criterion.contrastive(features, centers, target),
        "ce": criterion.logit_adjustment(logits, target),
        "loss": criterion(logits, features, centers, target),
    }
    for name, value in parts.items():
        golden = g[f"bcl{i}_{name}_{dtype}"]
        np.testing.assert_allclose(value.item(), golden, **TOLERANCE[dtype], err_msg=name)
    prior = criterion.logit_adjustment.log_prior
    np.testing.assert_allclose(prior.flatten(), g[f"bcl{i}_log_prior"].flatten(), rtol=1e-6)
    parts["loss"].backward()
    for name, value in (("features", features), ("centers", centers), ("logits", logits)):
        golden = g[f"bcl{i}_g{name}_{dtype}"]
        np.testing.assert_allclose(value.grad, golden, **TOLERANCE[dtype], err_msg=name)


@pytest.mark.parametrize("i", range(2))
def test_nested_collaborative_learning(g, i):
    case = g.facts["cases"]["ncl"][i]
    counts = g[f"ncl{i}_counts"].tolist()
    margin = margin_of(case, counts) if case["use_dbm"] else None
    criterion = NCLLoss(counts, num_hard=case["hcm_N"], margin=margin)
    cosine = leaf(g, f"ncl{i}_cosine", torch.float32)
    loss = criterion(cosine, g.tensor(f"ncl{i}_target"))
    loss.backward()
    np.testing.assert_allclose(loss.item(), g[f"ncl{i}_loss_f32"], **TOLERANCE["f32"])
    np.testing.assert_allclose(cosine.grad, g[f"ncl{i}_grad_f32"], **TOLERANCE["f32"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine_classifier(g, dtype):
    layer = NormedLinear(6, 4).to(DTYPES[dtype])
    with torch.no_grad():
        layer.weight.copy_(g.tensor("nl_weight"))
    x = leaf(g, "nl_x", DTYPES[dtype])
    out = layer(x)
    (out * g.tensor("nl_gradw", DTYPES[dtype])).sum().backward()
    for name, own in (("out", out.detach()), ("gx", x.grad), ("gweight", layer.weight.grad)):
        np.testing.assert_allclose(own, g[f"nl_{name}_{dtype}"], **TOLERANCE[dtype], err_msg=name)
