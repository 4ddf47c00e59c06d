"""DBMargin against the original's numbers, the formula and the edges of the arccosine."""

import math
from itertools import product

import pytest
import torch

from dbm_loss.margin import DBMargin, class_prior

CIFAR_CASES = range(11)
EDGE_CASES = (3, 4)
LARGE_SCALE_CASES = range(4)


def assert_close(actual, expected, tol):
    """|a − b| <= tol · (1 + |b|), the criterion that comes with the golden numbers."""
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


def run(margin, cosine, target, upstream):
    cosine = cosine.clone().requires_grad_()
    out = margin(cosine, target)
    out.backward(upstream)
    return out.detach(), cosine.grad


def test_golden_cifar(golden):
    for case, dtype in product(CIFAR_CASES, [torch.float32, torch.float64]):
        g = golden("dbm_loss_cifar")
        name = f"dbm.case{case}"
        max_margin, tau, lambda_inst, scale, use_dbm = g[f"{name}.hparams"]
        margin = DBMargin(g[f"{name}.counts"], max_margin, tau, scale, lambda_inst, bool(use_dbm))
        assert torch.equal(margin.class_margin, g.tensor(f"{name}.margin")[0])

        cosine, target = g.tensor(f"{name}.cos", dtype), g.tensor(f"{name}.target")
        out, grad = run(margin, cosine, target, g.tensor(f"{name}.upstream", dtype))
        suffix, tol = ("", 1e-5) if dtype == torch.float32 else ("64", 1e-6)
        assert out.dtype == dtype
        assert out.isfinite().all()
        assert grad.isfinite().all()
        safe = cosine.abs() <= 1 - 1e-6
        assert_close(out[safe], g.tensor(f"{name}.out{suffix}")[safe], tol)
        # Where the original is finite, exactly at ±1, so are we, and equal.
        golden_out = g.tensor(f"{name}.out{suffix}")
        finite = golden_out.isfinite() & (cosine.abs() == 1)
        assert_close(out[finite], golden_out[finite], tol)
        grad_tol = 1e-3 if case in EDGE_CASES else tol
        assert_close(grad[safe], g.tensor(f"{name}.grad{suffix}")[safe], grad_tol)


def test_golden_large_scale(golden):
    for case, dtype in product(LARGE_SCALE_CASES, [torch.float32, torch.float64]):
        g = golden("dbm_loss_large_scale")
        settings = g.facts["cases"]["dbm"][case]
        margin = DBMargin(
            settings["counts"],
            settings["max_margin"],
            settings["tau"],
            settings["cos_scale"],
            settings["lambda_inst"],
            settings["use_dbm"],
        )
        assert torch.equal(class_prior(settings["counts"]), g.tensor(f"dbm{case}_prob"))
        assert torch.equal(margin.class_margin, g.tensor(f"dbm{case}_margin")[0])
        out, grad = run(
            margin,
            g.tensor(f"dbm{case}_cosine", dtype),
            g.tensor(f"dbm{case}_target"),
            g.tensor(f"dbm{case}_gradw", dtype),
        )
        suffix, tol = ("f32", 2e-5) if dtype == torch.float32 else ("f64", 1e-9)
        assert_close(out, g.tensor(f"dbm{case}_out_{suffix}"), tol)
        assert_close(grad, g.tensor(f"dbm{case}_grad_{suffix}"), tol)


def test_golden_large_scale_edges(golden):
    g = golden("dbm_loss_large_scale")
    cosine, expected = g.tensor("dbm_edge_cosine"), g.tensor("dbm_edge_out_f32")
    margin = DBMargin([500, 100, 20, 5], scale=30.0)
    out, grad = run(margin, cosine, g.tensor("dbm_edge_target"), torch.ones_like(cosine))
    assert out.isfinite().all()
    assert grad.isfinite().all()
    known = expected.isfinite()
    assert not known.all()  # the original does break here
    torch.testing.assert_close(out[known], expected[known], rtol=0, atol=30e-4)


def test_formula_sample_by_sample():
    counts = [50, 7, 20, 3]
    cosine = torch.tensor(
        [[0.9, 0.1, -0.3, 0.2], [0.5, 0.4, 0.6, -0.9], [0.3, -0.2, 0.3, 0.0]], dtype=torch.float64
    )
    target = torch.tensor([0, 1, 2])
    out = DBMargin(counts, max_margin=0.2, tau=0.5, scale=10.0, lambda_inst=0.7)(cosine, target)
    for row, out_row, y in zip(cosine.tolist(), out.tolist(), target.tolist(), strict=True):
        hard = row.index(max(row)) != y  # index: the first of equals
        class_margin = 0.2 * (counts[-1] / counts[y]) ** 0.5
        angle = class_margin * (1 + 0.7 * hard * (1 - row[y]) / 2)
        for j, x in enumerate(row):
            expected = 10 * math.cos(math.acos(x) + (angle if j == y else 0))
            assert out_row[j] == pytest.approx(expected, abs=1e-6)


def test_gradient_in_float64():
    for lambda_inst in [0.0, 1.0]:
        generator = torch.Generator().manual_seed(0)
        cosine = torch.rand(6, 5, generator=generator, dtype=torch.float64) * 1.8 - 0.9
        cosine.requires_grad_()
        target = torch.tensor([0, 1, 2, 3, 4, 0])
        margin = DBMargin([100, 60, 30, 10, 2], max_margin=0.4, lambda_inst=lambda_inst)
        assert torch.autograd.gradcheck(lambda x: margin(x, target), cosine)


def test_exact_towards_one():
    """The last hundred steps before ±1 give the value of the formula to rounding."""
    for dtype, sign in product([torch.float32, torch.float64], [1.0, -1.0]):
        margin = DBMargin([10, 1], max_margin=0.3, lambda_inst=0.0)
        step = torch.finfo(dtype).eps
        cosine = sign * (1 - torch.arange(100, dtype=dtype) * step / 2)
        cosine = torch.stack([torch.zeros_like(cosine), cosine], dim=1)
        target = torch.ones(len(cosine), dtype=torch.int64)
        angle = float(margin.class_margin[1])
        out = margin(cosine, target)[:, 1]
        for x, z in zip(cosine[:, 1].tolist(), out.tolist(), strict=True):
            exact = x * math.cos(angle) - math.sqrt((1 - x) * (1 + x)) * math.sin(angle)
            assert abs(z - 32 * exact) <= 32 * 4 * step


def test_gradient_near_one_is_accurate_in_float32():
    for sign in [1.0, -1.0]:
        margin = DBMargin([10, 1], max_margin=0.3)
        cosine = sign * (1 - torch.logspace(-6, -2, 200))
        cosine = torch.stack([torch.zeros_like(cosine), cosine], dim=1)
        target = torch.ones(len(cosine), dtype=torch.int64)
        _, single = run(margin, cosine, target, torch.ones_like(cosine))
        _, double = run(margin, cosine.double(), target, torch.ones_like(cosine).double())
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


def test_finite_at_and_beyond_one():
    for dtype in [torch.float16, torch.bfloat16, torch.float32, torch.float64]:
        edge = torch.tensor([1.0, -1.0], dtype=dtype)
        beyond = torch.nextafter(edge, 2 * edge) if dtype.itemsize > 2 else edge * (1 + 2**-7)
        cosine = torch.cat([edge, beyond])[:, None].repeat(1, 3)
        for target in range(3):
            out, grad = run(
                DBMargin([9, 3, 1], max_margin=0.3),
                cosine,
                torch.full((4,), target),
                torch.ones(4, 3, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
            )
            assert out.isfinite().all()
            assert grad.isfinite().all()


def test_autocast_computes_in_float32():
    feature = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    target = torch.arange(8) % 4
    margin = DBMargin([9, 5, 3, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosine = feature @ feature[:4].T  # rows 0-3 lie on their class vectors
        out = margin(cosine, target)
    assert cosine.dtype == torch.bfloat16
    assert out.dtype == torch.float32
    assert torch.equal(out, margin(cosine.float(), target))


def test_switched_off_is_plain_scaling():
    cosine = torch.tensor([[0.5, -1.0], [1.0, 0.2]])
    margin = DBMargin([3, 1], scale=16.0, use_dbm=False)
    assert torch.equal(margin(cosine, torch.tensor([0, 1])), 16 * cosine)


def test_only_hard_positives_get_the_instance_margin():
    cosine = torch.tensor([[0.5, 0.4], [0.5, 0.6], [0.5, 0.5]])
    target = torch.zeros(3, dtype=torch.int64)
    plain = DBMargin([1, 1], lambda_inst=0.0)(cosine, target)
    full = DBMargin([1, 1], lambda_inst=1.0)(cosine, target)
    assert torch.equal(full[0], plain[0])
    assert full[1, 0] < plain[1, 0]
    assert torch.equal(full[2], plain[2])  # the first of equal cosines is the prediction


def test_leaves_the_cosines_alone():
    cosine = torch.rand(4, 3)
    before = cosine.clone()
    DBMargin([3, 2, 1])(cosine, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(cosine, before)


def test_one_class_and_one_image():
    out, grad = run(
        DBMargin([1]), torch.tensor([[0.3]]), torch.zeros(1, dtype=torch.int64), torch.ones(1, 1)
    )
    assert out.item() == pytest.approx(32 * math.cos(math.acos(0.3) + 0.1), abs=1e-4)
    assert grad.isfinite().all()


def test_refuses_bad_counts():
    for counts in [[], [3, 0, 1], [[1, 2]]]:
        with pytest.raises(ValueError, match="cls_num_list"):
            DBMargin(counts)


def test_constants_are_buffers_outside_the_state_dict():
    margin = DBMargin([3, 1])
    assert not margin.state_dict()
    assert not list(margin.parameters())
    assert margin.to("meta").class_margin.device.type == "meta"
