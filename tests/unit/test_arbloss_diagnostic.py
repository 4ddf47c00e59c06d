"""The attraction and repulsion matrix against the loop that its definition gives."""

import torch

from arbloss.diagnostic import attraction_repulsion
from arbloss.losses import batch_class_counts


def loop(logits, features, target, n):
    """Section by section: every pair (a, b) of classes, a present in the batch."""
    num_classes = logits.shape[1]
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    for a in set(target.tolist()):
        for b in range(num_classes):
            total = torch.zeros(features.shape[1], dtype=torch.float64)
            for z, f, y in zip(logits, features, target.tolist(), strict=True):
                if y == b:
                    w = n / n[y]
                    p = z[a].exp() / (w * z.exp()).sum()
                    total += w[a] * (1 - p if a == b else p) * f
            matrix[a, b] = total.norm()
    return matrix


def made(c=6, b=10, d=4):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(b, c, generator=generator, dtype=torch.float64) * 3
    features = torch.randn(b, d, generator=generator, dtype=torch.float64)
    target = torch.randint(c - 2, (b,), generator=generator)  # two classes are absent
    return logits, features, target


def test_matrix_is_the_loop():
    logits, features, target = made()
    for n in (batch_class_counts(target, 6).double(), torch.arange(6.0, 0, -1).double()):
        expected = loop(logits, features, target, n)
        matrix = attraction_repulsion(logits, features, target, n)
        torch.testing.assert_close(matrix, expected, rtol=1e-9, atol=1e-9)
        assert (expected > 0).sum() >= 12


def test_without_counts_the_probabilities_are_plain():
    logits, features, target = made()
    expected = loop(logits, features, target, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(
        attraction_repulsion(logits, features, target), expected, rtol=1e-9, atol=1e-9
    )


def test_feature_maps_are_pooled_and_no_graph_is_kept():
    logits, features, target = made()
    maps = features[:, :, None, None] + torch.tensor([[-1.0, 1.0], [2.0, -2.0]])
    matrix = attraction_repulsion(logits.requires_grad_(), maps, target)
    torch.testing.assert_close(matrix, attraction_repulsion(logits, features, target))
    assert not matrix.requires_grad
