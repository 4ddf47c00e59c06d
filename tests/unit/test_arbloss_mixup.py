"""Mixup and the loss on a mixed batch."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from arbloss.losses import ARBLoss
from arbloss.mixup import mixup_criterion, mixup_data


@pytest.fixture
def arb(golden):
    return golden("arbloss")


def test_mixup_golden(arb):
    for k in [0, 1, 2]:
        facts = arb.facts["mix_cases"][k]
        np.random.seed(facts["np_seed"])
        torch.manual_seed(facts["torch_seed"])
        y = arb.tensor(f"mix{k}_y")
        mixed, y_a, y_b, lam = mixup_data(arb.tensor(f"mix{k}_x"), y, facts["alpha"])
        torch.testing.assert_close(mixed, arb.tensor(f"mix{k}_mixed_x"), rtol=1e-4, atol=1e-6)
        assert torch.equal(y_a, arb.tensor(f"mix{k}_y_a"))
        assert torch.equal(y_b, y[arb.tensor(f"mix{k}_index")])
        assert lam == pytest.approx(float(arb[f"mix{k}_lam"]), rel=1e-12)


def test_mixup_criterion_golden(arb):
    for k, loss in product([0, 1, 2], ["ce", "arb_batch", "arb_global"]):
        logits = arb.tensor(f"mix{k}_logits").requires_grad_()
        labels = (arb.tensor(f"mix{k}_y_a"), arb.tensor(f"mix{k}_y_b"))
        lam = float(arb[f"mix{k}_lam"])
        if loss == "ce":
            value = mixup_criterion(F.cross_entropy, logits, *labels, lam)
        else:
            class_cnt = arb.tensor(f"mix{k}_class_cnt_{loss.removeprefix('arb_')}")
            value = mixup_criterion(ARBLoss(), logits, *labels, lam, class_cnt)
        value.backward()
        torch.testing.assert_close(value, arb.tensor(f"mix{k}_loss_{loss}"), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            logits.grad, arb.tensor(f"mix{k}_grad_{loss}"), rtol=1e-4, atol=1e-6
        )


def test_lambda_comes_from_numpys_global_generator(arb):
    """The original builds its subset from seed 0, one shuffle a class, and then draws lambda."""
    for name, num_classes, per_class in [("cifar10", 10, 5000), ("cifar100", 100, 500)]:
        np.random.seed(arb.facts["cifar_pos"]["rand_number"])
        for _ in range(num_classes):
            np.random.shuffle(np.arange(per_class))
        alpha = arb.facts["cifar_pos"]["lam_alpha"]
        x, y = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
        drawn = [mixup_data(x, y, alpha)[3] for _ in range(32)]
        np.testing.assert_allclose(drawn, arb[f"{name}_lam"], rtol=1e-12)


def test_mixup_without_alpha_changes_and_draws_nothing_from_numpy():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    x = torch.randn(4, 3)
    mixed, _, _, lam = mixup_data(x, torch.arange(4), alpha=0.0)
    assert lam == 1
    assert torch.equal(mixed, x)
    assert (np.random.get_state()[1] == before).all()


def test_images_and_labels_move_together():
    x = torch.arange(8.0).unsqueeze(1)
    mixed, y_a, y_b, lam = mixup_data(x, torch.arange(8))
    torch.testing.assert_close(mixed.squeeze(1), lam * y_a + (1 - lam) * y_b)
    assert sorted(y_b.tolist()) == list(range(8))
