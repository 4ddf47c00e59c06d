"""What the public losses of all four papers share: what they take, and what they refuse."""

import importlib
from contextlib import nullcontext
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import arbloss.losses as arb
import dbm_loss.losses as dbm
import hmloss.losses as hm
import ib_loss.losses as ib
from dbm_loss.GML.losses import GMLLoss
from dbm_loss.margin import DBMargin
from tests import test_house

COUNTS = [60, 20, 6, 2]
WEIGHTS = [0.1, 0.4, 1.2, 2.3]


def views(z):
    """Two views of the features of a contrastive loss, made from the logits."""
    return F.normalize(torch.stack([z, z.flip(0)], dim=1), dim=-1)


def centers(z):
    return torch.eye(4, dtype=z.dtype, device=z.device)


def gml(of, z, y):
    unit, index = F.normalize(z, dim=1), torch.arange(len(z), device=z.device)
    loss = GMLLoss(of(COUNTS), alpha=1.0).to(z.device)  # its temperature is learned
    return loss(z, y, z.flip(0), unit, index, unit, y, index.flip(0))


# How a loss is built and called: `of` turns a list into what is given for counts and weights,
# z are the logits (5, 4), y the labels (5,).
LOSSES = {
    "ib_loss.FocalLoss": lambda of, z, y: ib.FocalLoss(of(WEIGHTS), 1.0)(z, y),
    "ib_loss.LDAMLoss": lambda of, z, y: ib.LDAMLoss(of(COUNTS), weight=of(WEIGHTS))(z, y),
    "ib_loss.IBLoss": lambda of, z, y: ib.IBLoss(of(WEIGHTS))(z, y, z),
    "ib_loss.IB_FocalLoss": lambda of, z, y: ib.IB_FocalLoss(of(WEIGHTS), gamma=1.0)(z, y, z),
    "ib_loss.influence_factor": lambda of, z, y: ib.influence_factor(z, y, z, 9.0, 0.1).sum(),
    "hmloss.CELoss": lambda of, z, y: hm.CELoss(of(WEIGHTS))(z, y),
    "hmloss.FocalLoss": lambda of, z, y: hm.FocalLoss(of(WEIGHTS), 1.0)(z, y),
    "hmloss.HMLoss": lambda of, z, y: hm.HMLoss(of(WEIGHTS), 100)(z, y),
    "hmloss.LDAMLoss": lambda of, z, y: hm.LDAMLoss(of(COUNTS), weight=of(WEIGHTS))(z, y),
    "arbloss.ARBLoss": lambda of, z, y: arb.ARBLoss(validate=False)(z, y, of(COUNTS)),
    "arbloss.ARBFocalLoss": lambda of, z, y: arb.ARBFocalLoss(validate=False)(z, y, of(COUNTS)),
    "arbloss.WARBLoss": lambda of, z, y: arb.WARBLoss(validate=False)(z, y, of(COUNTS)),
    "arbloss.LabelAwareSmoothing": lambda of, z, y: arb.LabelAwareSmoothing(
        of(COUNTS), 0.3, 0.1, validate=False
    )(z, y, of(COUNTS)),
    "dbm_loss.DBMargin": lambda of, z, y: DBMargin(of(COUNTS))(z, y).sum(),
    "dbm_loss.CrossEntropy": lambda of, z, y: dbm.CrossEntropy(of(COUNTS), 1)(z, y, 1),
    "dbm_loss.BalancedSoftmax": lambda of, z, y: dbm.BalancedSoftmax(
        of(COUNTS), margin=DBMargin(of(COUNTS))
    )(z, y),
    "dbm_loss.LDAM": lambda of, z, y: dbm.LDAM(of(COUNTS), drw_epoch=1)(z, y, 1),
    "dbm_loss.BalSCL": lambda of, z, y: dbm.BalSCL()(views(z), centers(z), y),
    "dbm_loss.BCLLoss": lambda of, z, y: dbm.BCLLoss(of(COUNTS))(z, views(z), centers(z), y),
    "dbm_loss.NCLLoss": lambda of, z, y: dbm.NCLLoss(of(COUNTS))(torch.stack([z, z.flip(1)]), y),
    "dbm_loss.GMLLoss": gml,
}
PLAIN = ("influence_factor", "BalSCL")  # take neither counts nor weights
WEIGHTED = {
    *("ib_loss.FocalLoss", "ib_loss.LDAMLoss", "ib_loss.IBLoss", "ib_loss.IB_FocalLoss"),
    *("hmloss.CELoss", "hmloss.FocalLoss", "hmloss.HMLoss", "hmloss.LDAMLoss"),
}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(5, 4, generator=generator) * 1.6 - 0.8  # cosines, too
    return logits, torch.tensor([0, 1, 2, 3, 0])


def test_every_public_loss_is_here():
    """A new loss of a paper has to be added to the table above."""
    for module in map(importlib.import_module, map(test_house.module_name, test_house.LOSSES)):
        paper = module.__name__.partition(".")[0]
        for found in vars(module).values():
            if isinstance(found, type) and found.__module__ == module.__name__:
                assert found.__name__[0] == "_" or f"{paper}.{found.__name__}" in LOSSES


def test_counts_and_weights_are_lists_arrays_or_tensors(batch):
    for loss, of in product(LOSSES.values(), [tuple, np.asarray, torch.tensor]):
        torch.testing.assert_close(loss(of, *batch), loss(list, *batch))


def test_labels_are_integers_of_any_kind(batch):
    logits, target = batch
    signed = [torch.int32, torch.int16, torch.int8]
    unsigned = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
    for loss, dtype in product(LOSSES.values(), [*signed, *unsigned]):
        values, gradients = [], []
        for labels in (target, target.to(dtype)):
            leaf = logits.clone().requires_grad_()
            values.append(loss(list, leaf, labels))
            gradients.append(*torch.autograd.grad(values[-1], leaf))
        assert torch.equal(*values) and torch.equal(*gradients)
    for loss in LOSSES.values():
        two = target % 2
        assert torch.equal(loss(list, logits, two.bool()), loss(list, logits, two))


def test_labels_that_do_not_fit_are_named(batch):
    cases = [
        (torch.tensor([0, 1, 2, 3, 4]), r"label 4 with logits of 4 classes"),
        (torch.tensor([0, 1, 2, 3, -1]), r"label -1 with logits of 4 classes"),
        (torch.tensor([0, 1, 2, 3]), r"got logits \(5, 4\) and labels \(4,\) of torch.int64"),
        (torch.zeros(5, 1).long(), r"got logits \(5, 4\) and labels \(5, 1\) of torch.int64"),
        (torch.zeros(5), r"got logits \(5, 4\) and labels \(5,\) of torch.float32"),
        (torch.ones(5, 4) / 4, r"got logits \(5, 4\) and labels \(5, 4\) of torch.float32"),
    ]
    for loss, (labels, message) in product(LOSSES.values(), cases):
        with pytest.raises(ValueError, match=message):
            loss(list, batch[0], labels)
    for loss, labels in product(LOSSES.values(), [[0, 1, 2, 3, 0], np.array([0, 1, 2, 3, 0])]):
        message = rf"labels must be a tensor, got {type(labels).__name__}"
        with pytest.raises(TypeError, match=message):
            loss(list, batch[0], labels)


def test_logits_of_integers_are_refused(batch):
    # These take features beside them or alone; of integers torch has no softmax.
    contrastive = ("BalSCL", "BCLLoss", "GMLLoss", "influence_factor")
    for loss in [LOSSES[name] for name in LOSSES if not name.endswith(contrastive)]:
        with pytest.raises(ValueError, match=r"expected floating-point .*, got torch\.int64"):
            loss(list, batch[0].long(), batch[1])


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.endswith(PLAIN)])
def test_counts_and_weights_of_other_classes_are_refused(batch, name):
    """Each of them in turn, shorter and longer than the logits are wide."""
    given = []
    LOSSES[name](lambda values: given.append(values) or values, *batch)
    for wrong, (change, shape) in product(
        range(len(given)),
        [(lambda x: x[:3], (3,)), (lambda x: [*x, 1], (5,)), (lambda x: [x], (1, 4))],
    ):
        turns = iter(range(len(given)))

        def of(values, wrong=wrong, change=change, turns=turns):
            return change(values) if next(turns) == wrong else values

        with pytest.raises(ValueError) as error:
            LOSSES[name](of, *batch)
        said = f" has shape {shape}, expected (4,) as the logits have that many columns"
        assert str(error.value).endswith(said) or "non-empty list of counts" in str(error.value)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan, -1.0])
def test_weights_that_are_negative_or_not_finite_are_refused(batch, bad):
    weighted = [name for name in LOSSES if name in WEIGHTED]
    assert len(weighted) == len(WEIGHTED)
    for name in weighted:
        weights = [0.1, 0.4, bad, 2.3]
        with pytest.raises(ValueError) as error:
            LOSSES[name](lambda given, w=weights: w if given is WEIGHTS else given, *batch)
        assert str(error.value) == f"class weights must be finite and not negative, got {bad}"


@pytest.mark.parametrize("bad", [[], [60, torch.nan, 6, 2], [60, -1, 6, 2]])
def test_counts_that_count_nothing_are_refused(batch, bad):
    """A loss that is given those of the batch looks at them with ``validate`` only."""
    for name in [name for name in LOSSES if not name.endswith((*PLAIN, "ARBLoss", "ARBFocalLoss"))]:
        if name in WEIGHTED and not name.endswith("LDAMLoss"):
            continue
        with pytest.raises(ValueError, match="cls_num_list"):
            LOSSES[name](lambda given: bad if given is COUNTS else given, *batch)


def test_constants_out_of_range_are_refused():
    for bad in (-1.0, torch.nan):
        for focal in (ib.FocalLoss, ib.IB_FocalLoss, hm.FocalLoss, arb.ARBFocalLoss):
            with pytest.raises(ValueError, match=rf"gamma must .*, got {bad}"):
                focal(gamma=bad)
        for ldam in (ib.LDAMLoss, hm.LDAMLoss):
            with pytest.raises(ValueError, match=rf"max_m must .*, got {bad}"):
                ldam(COUNTS, max_m=bad)
            with pytest.raises(ValueError, match=rf"s must be .*, got {bad}"):
                ldam(COUNTS, s=bad)
        for influence in (ib.IBLoss, ib.IB_FocalLoss):
            with pytest.raises(ValueError, match=rf"alpha must .*, got {bad}"):
                influence(alpha=bad)
        for margin in (DBMargin, dbm.LDAM):
            with pytest.raises(ValueError, match=rf"max_margin must .*, got {bad}"):
                margin(COUNTS, max_margin=bad)
        with pytest.raises(ValueError, match=rf"tau must .*, got {bad}"):
            DBMargin(COUNTS, tau=bad)
    for bad in (0.0, -1.0, torch.nan):
        for contrast in (dbm.BalSCL, partial(dbm.BCLLoss, COUNTS), partial(GMLLoss, COUNTS)):
            with pytest.raises(ValueError, match=rf"temperature must be positive, got {bad}"):
                contrast(temperature=bad)


def test_a_margin_in_the_place_of_tau_is_refused():
    with pytest.raises(TypeError, match=r"tau must be a number, got DBMargin; .* margin=DBMargin"):
        dbm.BalancedSoftmax(COUNTS, DBMargin(COUNTS))


def test_logits_of_a_linear_classifier_are_no_cosines(batch):
    logits, target = batch
    margin, rounded = DBMargin(COUNTS), torch.tensor(1.0078)  # next to 1 in bfloat16
    for sign in (1, -1):
        given = logits.clone()
        given[2, 1] = sign * rounded
        assert margin(given, target).isfinite().all()
        given[2, 1] = sign * 1.5
        with pytest.raises(ValueError, match=rf"expected cosines in \[-1, 1\], got {sign * 1.5}"):
            margin(given, target)
    assert margin(logits[:0], target[:0]).shape == (0, 4)
    assert margin(logits * torch.nan, target).isnan().all()  # a run that diverges says so itself


def test_deferred_weights_need_the_epoch(batch):
    for loss in (dbm.CrossEntropy(COUNTS, drw_epoch=2), dbm.LDAM(COUNTS, drw_epoch=2)):
        with pytest.raises(ValueError, match=r"drw_epoch is set .* loss\(logits, target, epoch\)"):
            loss(*batch)
    for loss in (dbm.CrossEntropy(COUNTS), dbm.LDAM(COUNTS)):
        assert loss(*batch).isfinite()


def test_weights_are_copied(batch):
    for make in (ib.FocalLoss, ib.IBLoss, ib.IB_FocalLoss, hm.CELoss, hm.FocalLoss, hm.HMLoss,
                 partial(ib.LDAMLoss, COUNTS, 0.5), partial(hm.LDAMLoss, COUNTS, 0.5)):  # fmt: skip
        for weights in (torch.tensor(WEIGHTS), np.array(WEIGHTS)):
            loss = make(weights)
            weights *= 5
            assert loss.weight.tolist() == pytest.approx(WEIGHTS)


def test_losses_compile_in_one_graph_with_their_checks_on(batch):
    logits, target = batch
    counts = torch.tensor(COUNTS)
    calls = [(loss, (logits, target, counts)) for loss in (
        arb.ARBLoss(), arb.ARBFocalLoss(), arb.WARBLoss(), arb.LabelAwareSmoothing(COUNTS, 0.3, 0.1)
    )]  # fmt: skip
    calls.append((DBMargin(COUNTS), batch))
    for loss, given in calls:
        compiled = torch.compile(loss, backend="eager", fullgraph=True)
        assert torch.equal(compiled(*given), loss(*given))


def test_losses_show_their_parameters():
    shown = {
        ib.FocalLoss(gamma=1.0): "weighted=False, gamma=1.0",
        ib.LDAMLoss(COUNTS): "weighted=False, num_classes=4, max_m=0.5, s=30",
        ib.IBLoss(WEIGHTS): "weighted=True, alpha=10000.0",
        ib.IB_FocalLoss(gamma=1.0): "weighted=False, alpha=10000.0, gamma=1.0",
        hm.CELoss(): "weighted=False",
        hm.FocalLoss(WEIGHTS): "weighted=True, gamma=0.0",
        hm.HMLoss(delta=1e4): "weighted=False, delta=10000.0",
        hm.LDAMLoss(COUNTS): "weighted=False, num_classes=4, max_m=0.5, s=30",
        arb.ARBLoss(): "reduction='mean', validate=True",
        arb.ARBFocalLoss(): "reduction='mean', validate=True, alpha=1.0, gamma=2.0",
        arb.WARBLoss("sum"): "reduction='sum', validate=True, ugcc=False",
        arb.LabelAwareSmoothing(COUNTS, 0.3, 0.1): "num_classes=4, smooth_head=0.3, "
        "smooth_tail=0.1, shape='concave', power=None, validate=True",
        dbm.CrossEntropy(COUNTS, 160): "drw_epoch=160",
        dbm.BalancedSoftmax(COUNTS): "num_classes=4, tau=1.0",
        dbm.BalSCL(): "temperature=0.1",
        dbm.NCLLoss(COUNTS): "num_classes=4, num_hard=1, factor=0.6",
        DBMargin(COUNTS): "num_classes=4, max_margin=0.1, tau=1.0, scale=32.0, lambda_inst=1.0, "
        "use_dbm=True, margin_norm='last'",
    }
    for loss, parameters in shown.items():
        assert repr(loss) == f"{type(loss).__name__}({parameters})"
    # With their parts below.
    assert "(\n  alpha=2.0, beta=0.6\n  (" in repr(dbm.BCLLoss(COUNTS))
    ldam = repr(dbm.LDAM(COUNTS))
    assert "(\n  num_classes=4, max_margin=0.5, scale=30.0, drw_epoch=None\n  (" in ldam
    assert repr(GMLLoss(COUNTS)) == "GMLLoss(num_classes=4, alpha=0.0, beta=1.0, gamma=1.0)"


def test_logits_of_every_pixel_are_refused():
    for name in [
        name for name in LOSSES if not name.endswith(("BalSCL", "BCLLoss", "NCLLoss", "GMLLoss"))
    ]:
        logits, target = torch.zeros(5, 4, 2, 2), torch.zeros(5, 2, 2).long()
        message = (
            r"expected logits \((\w), \w\) and integer labels \(\1,\), got logits \(5, 4, 2, 2\)"
        )
        with pytest.raises(ValueError, match=message):
            LOSSES[name](list, logits, target)


def test_no_step_waits_for_the_device(batch, monkeypatch):
    """A meta tensor has no values: an operation that needs one on the host raises there."""
    for loss in LOSSES.values():
        monkeypatch.setattr(
            torch, "autocast", lambda *_, **__: nullcontext()
        )  # knows no meta device
        logits, target = (x.to("meta") for x in batch)
        loss(list, logits.requires_grad_(), target).backward()
    assert GMLLoss(COUNTS, beta=0.0)(logits, target).device.type == "meta"


def test_contrastive_inputs_that_do_not_fit_are_named(batch):
    logits, target = batch
    with pytest.raises(ValueError, match=r"got features \(5, 4\) and centers \(4, 4\)"):
        dbm.BalSCL()(logits, centers(logits), target)
    with pytest.raises(ValueError, match=r"got features \(5, 2, 4\) and centers \(4, 3\)"):
        dbm.BalSCL()(views(logits), centers(logits)[:, :3], target)
    with pytest.raises(
        ValueError, match=r"expected logits \(n, B, C\) of n networks, got \(5, 4\)"
    ):
        dbm.NCLLoss(COUNTS)(logits, target)
    with pytest.raises(ValueError, match="beta > 0 needs query, index, key, k_labels and k_index"):
        GMLLoss(COUNTS)(logits, target)


def test_spatial_features_are_averaged_over_their_positions(batch):
    """A feature map means what a classifier behind global average pooling sees."""
    logits, target = batch
    maps = torch.randn(5, 7, 3, 2, generator=torch.Generator().manual_seed(1))
    for loss in (ib.IBLoss(alpha=10.0), ib.IB_FocalLoss(alpha=10.0, gamma=1.0)):
        expected = loss(logits, target, maps.mean(dim=(2, 3)))
        torch.testing.assert_close(loss(logits, target, maps), expected)
    one = ib.IBLoss(alpha=10.0)(logits, target, -maps[:, :1])  # a single channel is no norm
    expected = ib.IBLoss(alpha=10.0)(logits, target, maps[:, 0].mean(dim=(1, 2)).abs())
    torch.testing.assert_close(one, expected)


def test_features_that_do_not_fit_are_named(batch):
    for shape in [(), (4,), (4, 7), (7, 5)]:
        with pytest.raises(ValueError, match=r"for N = 5 samples, got features \(") as error:
            ib.IBLoss()(*batch, torch.zeros(shape))
        assert str(error.value).endswith(f"got features {shape}")
