"""The losses behind the margin: original numbers of both halves, loops from the formulas, edges."""

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dbm_loss.losses import (
    LDAM,
    BalancedSoftmax,
    BalSCL,
    BCLLoss,
    CrossEntropy,
    NCLLoss,
    nbod,
)
from dbm_loss.margin import DBMargin

FIRST = {"ce": (0,), "bs": (0,), "ce_drw": (159, 160), "ldam": (0,), "ldam_drw": (159, 160)}
CASES = [(loss, epoch) for loss, epochs in FIRST.items() for epoch in epochs]


def assert_close(actual, expected, tol):
    """|a − b| <= tol · (1 + |b|), the criterion that comes with the golden numbers."""
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


def build(loss_fn, counts, max_margin, margin):
    """The losses as the training programs put them together."""
    return {
        "ce": lambda: CrossEntropy(margin=margin),
        "ce_drw": lambda: CrossEntropy(counts, drw_epoch=160, margin=margin),
        "bs": lambda: BalancedSoftmax(counts, margin=margin),
        "ldam": lambda: LDAM(counts, max_margin, drw_epoch=999),
        "ldam_drw": lambda: LDAM(counts, max_margin, drw_epoch=160),
    }[loss_fn]()


def value_and_grads(criterion, *inputs, **rest):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = criterion(*inputs, **rest)
    value.backward()
    return value.detach(), *(x.grad for x in inputs)


def test_golden_cifar(golden):
    for use_dbm, use_norm, (loss_fn, epoch), classes in product([0, 1], [0, 1], CASES, [10, 100]):
        g, data = golden("dbm_loss_cifar"), f"loss.c{classes}"
        name = f"{data}.{loss_fn}.norm{use_norm}_dbm{use_dbm}.ep{epoch}"
        counts, target = g[f"{data}.counts"], g.tensor(f"{data}.target")
        max_margin, tau, lambda_inst, scale = g[f"{data}.hparams"]
        margin = None
        if use_norm:  # use_dbm alone changes nothing in the original
            margin = DBMargin(counts, max_margin, tau, scale, lambda_inst, bool(use_dbm))
        criterion = build(loss_fn, counts, max_margin, margin)

        compared = 0
        for dtype, suffix, tol in ((torch.float32, "", 1e-5), (torch.float64, "64", 1e-6)):
            if f"{name}.value{suffix}" not in g:
                continue
            logits = g.tensor(f"{data}.{'cos' if use_norm else 'logits'}", dtype)
            value, grad = value_and_grads(criterion, logits, target=target, epoch=epoch)
            assert value.dtype == dtype
            assert_close(value, g.tensor(f"{name}.value{suffix}"), tol)
            if f"{name}.grad{suffix}" in g:
                assert_close(grad, g.tensor(f"{name}.grad{suffix}"), tol)
            if f"{name}.none{suffix}" in g:
                none = criterion(logits, target, epoch, reduction="none")
                assert_close(none, g.tensor(f"{name}.none{suffix}"), tol)
            compared += 1
        assert compared


def test_golden_large_scale(golden):
    for case in range(15):
        g = golden("dbm_loss_large_scale")
        settings, counts = g.facts["cases"]["cls"][case], g["cls_counts"]
        margin = None
        if settings["use_norm"]:
            margin = DBMargin(counts, scale=settings["cos_scale"], use_dbm=settings["use_dbm"])
        criterion = build(settings["loss_fn"], counts, settings["max_margin"], margin)
        target, epoch = g.tensor("cls_target"), settings["epoch"]
        value, grad = value_and_grads(
            criterion, g.tensor("cls_cosine", torch.float32), target=target, epoch=epoch
        )
        assert_close(value, g.tensor(f"cls{case}_loss_f32"), 2e-5)
        assert_close(grad, g.tensor(f"cls{case}_grad_f32"), 2e-5)
        if f"cls{case}_loss_f64" in g:
            value, grad = value_and_grads(
                criterion, g.tensor("cls_cosine"), target=target, epoch=epoch
            )
            assert_close(value, g.tensor(f"cls{case}_loss_f64"), 1e-9)
            assert_close(grad, g.tensor(f"cls{case}_grad_f64"), 1e-9)
        if settings["loss_fn"] == "ce_drw" and epoch == 200:
            assert torch.equal(criterion.class_weight, g.tensor(f"cls{case}_weight"))
        if settings["loss_fn"].startswith("ldam"):
            assert torch.equal(criterion.class_margin, g.tensor(f"cls{case}_m_list"))


def test_golden_constants(golden):
    for classes in [10, 100]:
        g, data = golden("dbm_loss_cifar"), f"loss.c{classes}"
        counts = g[f"{data}.counts"]
        ldam = LDAM(counts, max_margin=0.1, drw_epoch=160)
        assert torch.equal(ldam.cross_entropy.class_weight, g.tensor(f"{data}.drw_weight.late"))
        assert (g[f"{data}.drw_weight.early"] == 1).all()  # the unweighted first stage
        assert torch.equal(ldam.class_margin, g.tensor(f"{data}.ldam_margin"))
        assert_close(BalancedSoftmax(counts).log_prior, g.tensor(f"{data}.bs_log_prior")[0], 1e-6)


def test_drw_stays_in_its_second_stage():
    for loss_fn in ["ce_drw", "ldam_drw"]:
        criterion = build(loss_fn, [50, 5], 0.5, None)
        logits, target = torch.tensor([[0.3, 0.1], [0.9, 0.4]]), torch.tensor([0, 1])
        early, late = criterion(logits, target, 159), criterion(logits, target, 160)
        assert early != late
        assert criterion(logits, target, 320) == late


def test_golden_balscl_cifar(golden):
    for classes, dtype in product([10, 100], [torch.float32, torch.float64]):
        g, data = golden("dbm_loss_cifar"), f"bcl.c{classes}"
        features, centers = g.tensor(f"{data}.features", dtype), g.tensor(f"{data}.centers", dtype)
        target = g.tensor(f"{data}.target")
        value, grad_features, grad_centers = value_and_grads(
            BalSCL(), features, centers, target=target
        )
        suffix, tol = ("", 1e-5) if dtype == torch.float32 else ("64", 1e-6)
        assert value.dtype == dtype
        assert_close(value, g.tensor(f"{data}.balscl.value{suffix}"), tol)
        assert_close(grad_features, g.tensor(f"{data}.balscl.grad_features{suffix}"), tol)
        assert_close(grad_centers, g.tensor(f"{data}.balscl.grad_centers{suffix}"), tol)
        if dtype == torch.float32:
            cold = BalSCL(temperature=0.07)(features, centers, target)
            assert_close(cold, g.tensor(f"{data}.balscl_t007.value"), tol)


def test_golden_logit_adjustment(golden):
    for classes in [10, 100]:
        g, data = golden("dbm_loss_cifar"), f"bcl.c{classes}"
        counts, target = g[f"{data}.counts"], g.tensor(f"{data}.target")
        logits = g.tensor(f"{data}.logits")
        value, grad = value_and_grads(BalancedSoftmax(counts), logits, target=target)
        assert_close(value, g.tensor(f"{data}.logitadjust.value"), 1e-5)
        assert_close(grad, g.tensor(f"{data}.logitadjust.grad"), 1e-5)
        twice = BalancedSoftmax(counts, tau=2.0)(logits, target)
        assert_close(twice, g.tensor(f"{data}.logitadjust_tau2.value"), 1e-5)


def test_golden_bcl_cifar(golden):
    for use_dbm, use_norm, classes in product([0, 1], [0, 1], [10, 100]):
        g, data = golden("dbm_loss_cifar"), f"bcl.c{classes}"
        name = f"{data}.bclloss.norm{use_norm}_dbm{use_dbm}"
        counts = g[f"{data}.counts"]
        max_margin, tau, lambda_inst, scale = g[f"{data}.hparams"]
        margin = None
        if use_norm:
            margin = DBMargin(counts, max_margin, tau, scale, lambda_inst, bool(use_dbm))
        value, grad_logits, grad_features, grad_centers = value_and_grads(
            BCLLoss(counts, margin),
            g.tensor(f"{data}.{'cos' if use_norm else 'logits'}"),
            g.tensor(f"{data}.features"),
            g.tensor(f"{data}.centers"),
            target=g.tensor(f"{data}.target"),
        )
        assert_close(value, g.tensor(f"{name}.value"), 1e-5)
        assert_close(grad_logits, g.tensor(f"{name}.grad_logits"), 1e-5)
        if use_norm and use_dbm:
            assert_close(grad_features, g.tensor(f"{name}.grad_features"), 1e-5)
            assert_close(grad_centers, g.tensor(f"{name}.grad_centers"), 1e-5)


def test_golden_bcl_large_scale(golden):
    cases = [(torch.float32, "f32", 2e-5), (torch.float64, "f64", 5e-7)]
    for case, (dtype, suffix, tol) in product(range(3), cases):
        g, name = golden("dbm_loss_large_scale"), f"bcl{case}"
        settings, counts = g.facts["cases"]["bcl"][case], g[f"{name}_counts"]
        margin = None
        if settings["use_norm"]:
            margin = DBMargin(
                counts, settings["max_margin"], scale=30.0, use_dbm=settings["use_dbm"]
            )
        criterion = BCLLoss(
            counts, margin, settings["alpha"], settings["beta"], settings["temperature"]
        )
        inputs = [g.tensor(f"{name}_{part}", dtype) for part in ("logits", "features", "centers")]
        target = g.tensor(f"{name}_target")
        value, *grads = value_and_grads(criterion, *inputs, target=target)
        assert_close(value, g.tensor(f"{name}_loss_{suffix}"), tol)
        for part, grad in zip(("logits", "features", "centers"), grads, strict=True):
            assert_close(grad, g.tensor(f"{name}_g{part}_{suffix}"), tol)
        logits, features, centers = inputs
        contrastive = criterion.contrastive(features, centers, target)
        assert_close(contrastive, g.tensor(f"{name}_scl_{suffix}"), tol)
        classification = criterion.logit_adjustment(logits, target)
        assert_close(classification, g.tensor(f"{name}_ce_{suffix}"), tol)


def test_balscl_formula_anchor_by_anchor():
    generator = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(4, 2, 6, generator=generator, dtype=torch.float64), dim=-1)
    centers = F.normalize(torch.randn(3, 6, generator=generator, dtype=torch.float64), dim=-1)
    target = torch.tensor([0, 2, 0, 1])
    entries = [*features[:, 0], *features[:, 1], *centers]
    labels = [0, 2, 0, 1, 0, 2, 0, 1, 0, 1, 2]
    losses = []
    for i in range(8):
        others = [j for j in range(len(entries)) if j != i]
        score = {j: float(entries[i] @ entries[j]) / 0.2 for j in others}
        # the mean over each class instead of the sum
        denominator = 0.0
        for c in range(3):
            members = [j for j in others if labels[j] == c]
            denominator += sum(math.exp(score[j]) for j in members) / len(members)
        positives = [j for j in others if labels[j] == labels[i]]
        losses.append(-np.mean([score[j] - math.log(denominator) for j in positives]))
    value = BalSCL(temperature=0.2)(features, centers, target)
    assert value.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_balscl_needs_no_more_than_the_similarities():
    """No tensor on the way, forward or backward, has more than 2B x (2B + C) entries."""
    batch, classes = 6, 9
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    features = torch.randn(batch, 2, 4, requires_grad=True)
    target = torch.arange(batch)
    with Watch():
        BalSCL()(features, torch.randn(classes, 4), target).backward()
    assert largest == 2 * batch * (2 * batch + classes)


def test_golden_nbod(golden):
    for classes, dtype in product([10, 100], [torch.float32, torch.float64]):
        g, data = golden("dbm_loss_cifar"), f"ncl.c{classes}"
        logits = g.tensor(f"{data}.logits", dtype)
        value, grad = value_and_grads(nbod, logits)
        if dtype == torch.float64:
            assert_close(value, g.tensor(f"{data}.nbod.value64"), 1e-6)
            continue
        assert_close(value, g.tensor(f"{data}.nbod.value"), 1e-5)
        assert_close(grad, g.tensor(f"{data}.nbod.grad"), 1e-5)
        assert_close(nbod(logits[:2]), g.tensor(f"{data}.nbod2.value"), 1e-5)
        assert nbod(logits[:1]) == g[f"{data}.nbod1.value"] == 0


def test_golden_ncl_cifar(golden):
    for use_dbm, use_norm, classes in product([0, 1], [0, 1], [10, 100]):
        g, data = golden("dbm_loss_cifar"), f"ncl.c{classes}"
        name = f"{data}.loss.norm{use_norm}_dbm{use_dbm}"
        counts, target = g[f"{data}.counts"], g.tensor(f"{data}.target")
        max_margin, tau, lambda_inst, scale = g[f"{data}.hparams"]
        margin = DBMargin(counts, max_margin, tau, scale, lambda_inst) if use_dbm else None
        criterion = NCLLoss(counts, margin=margin)
        assert criterion.num_hard == g[f"{data}.hcm_N"]
        kind = "cos" if use_norm else "logits"
        logits = g.tensor(f"{data}.{kind}")
        mask = criterion.hard_categories(logits[0], target)
        assert torch.equal(mask, g.tensor(f"{data}.hcm_mask_{kind}", torch.bool))
        if use_dbm and not use_norm:  # a margin on raw logits: NaN in the original
            assert np.isnan(g[f"{name}.value"])
            with pytest.raises(ValueError, match="expected cosines"):
                criterion(logits, target)
            continue
        value, grad = value_and_grads(criterion, logits, target=target)
        value64 = criterion(logits.double(), target)
        assert_close(value, g.tensor(f"{name}.value"), 1e-5)
        assert_close(grad, g.tensor(f"{name}.grad"), 1e-5)
        assert_close(value64, g.tensor(f"{name}.value64"), 1e-6)


def test_golden_ncl_large_scale(golden):
    for case in range(2):
        g, name = golden("dbm_loss_large_scale"), f"ncl{case}"
        settings, counts = g.facts["cases"]["ncl"][case], g[f"{name}_counts"]
        margin = DBMargin(counts, scale=30.0) if settings["use_dbm"] else None
        criterion = NCLLoss(counts, settings["hcm_N"], margin)
        value, grad = value_and_grads(
            criterion, g.tensor(f"{name}_cosine"), target=g.tensor(f"{name}_target")
        )
        assert_close(value, g.tensor(f"{name}_loss_f32"), 2e-5)
        assert_close(grad, g.tensor(f"{name}_grad_f32"), 2e-5)


def test_hard_categories_sample_by_sample():
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    mask = NCLLoss([4, 3, 2, 1], num_hard=2).hard_categories(logits, torch.tensor([3, 0]))
    assert mask.tolist() == [[True, False, False, True], [True, True, False, False]]


COUNTS = [60, 20, 6, 2]


def _gradcheck_inputs():
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(3, 5, 4, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    features = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    centers = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return uniform, features, centers, torch.tensor([0, 1, 2, 3, 1])


def test_gradient_in_float64():
    cases = ["ce", "ce_drw", "bs", "ldam", "ldam_drw", "bcl", "ncl"]
    for with_margin, loss_fn in product([False, True], cases):
        logits, features, centers, target = _gradcheck_inputs()
        margin = DBMargin(COUNTS) if with_margin else None
        if loss_fn == "bcl":
            criterion, inputs = BCLLoss(COUNTS, margin), (logits[0], features, centers)
        elif loss_fn == "ncl":
            criterion, inputs = NCLLoss(COUNTS, 2, margin), (logits,)
        else:
            loss = build(loss_fn, COUNTS, 0.3, margin)
            inputs = (logits[0],)

            def criterion(x, target):
                return loss(x, target, 200)

        inputs = tuple(x.requires_grad_() for x in inputs)
        assert torch.autograd.gradcheck(lambda *x: criterion(*x, target), inputs)


def test_margin_in_front_of_any_loss_in_two_lines():
    """What the README shows: the constructor argument is the same as calling the margin first."""
    logits, _, _, target = _gradcheck_inputs()
    margin = DBMargin(COUNTS)
    criterion = BalancedSoftmax(COUNTS)
    by_hand = criterion(margin(logits[0], target), target)
    assert by_hand == BalancedSoftmax(COUNTS, margin=margin)(logits[0], target)
    assert F.cross_entropy(margin(logits[0], target), target) == CrossEntropy(margin=margin)(
        logits[0], target
    )


def test_autocast_computes_in_float32():
    for loss_fn in ["ce", "ce_drw", "bs", "ldam", "ldam_drw", "bcl", "ncl"]:
        logits, features, centers, target = _gradcheck_inputs()
        logits, features, centers = (x.bfloat16() for x in (logits, features, centers))
        epoch = {}
        if loss_fn == "bcl":
            criterion, inputs = BCLLoss(COUNTS), (logits[0], features, centers)
        elif loss_fn == "ncl":
            criterion, inputs = NCLLoss(COUNTS), (logits,)
        else:
            criterion, inputs = build(loss_fn, COUNTS, 0.5, None), (logits[0],)
            epoch = {"epoch": 0}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = criterion(*inputs, target, **epoch)
        assert value.dtype == torch.float32
        assert_close(value, criterion(*(x.float() for x in inputs), target, **epoch), 1e-6)


def test_refuses_empty_classes():
    cases = [
        lambda counts: CrossEntropy(counts, drw_epoch=1),
        BalancedSoftmax,
        LDAM,
        BCLLoss,
        NCLLoss,
    ]
    for build_loss in cases:
        with pytest.raises(ValueError, match=r"class.* 1"):
            build_loss([5, 0, 2])


def test_refuses_inconsistent_arguments():
    with pytest.raises(ValueError, match="cls_num_list"):
        CrossEntropy(drw_epoch=160)
    with pytest.raises(ValueError, match="num_hard"):
        NCLLoss([3, 2, 1], num_hard=4)
    for scale in (0, -1, math.nan):
        for build_scaled in (LDAM, DBMargin):
            with pytest.raises(ValueError, match=f"scale s must be positive, got {scale}"):
                build_scaled([3, 2, 1], scale=scale)
    features, target = torch.zeros(2, 2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"logits \(2, 3\) and centers \(4, 4\)"):
        BCLLoss([3, 2, 1])(torch.zeros(2, 3), features, torch.zeros(4, 4), target)


def test_constants_stay_out_of_the_state_dict():
    for loss_fn in ["ce", "ce_drw", "bs", "ldam", "ldam_drw"]:
        criterion = build(loss_fn, COUNTS, 0.5, DBMargin(COUNTS))
        assert not criterion.state_dict()
        assert not list(criterion.parameters())
        assert not BCLLoss(COUNTS).state_dict()
        assert not NCLLoss(COUNTS).state_dict()


def test_extreme_logits_are_finite():
    for scale in [30.0, -30.0]:
        logits = scale * torch.eye(4)
        target = torch.arange(4)
        for loss_fn in FIRST:
            criterion = build(loss_fn, COUNTS, 0.5, None)
            value, grad = value_and_grads(criterion, logits, target=target, epoch=0)
            assert value.isfinite()
            assert grad.isfinite().all()
        stacked = logits.expand(3, 4, 4)
        value, grad = value_and_grads(NCLLoss(COUNTS), stacked, target=target)
        assert value.isfinite()
        assert grad.isfinite().all()
