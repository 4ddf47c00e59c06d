"""CutMix boxes and mixing: both programs of the paper define them alike."""

import numpy as np
import torch

from dbm_loss.augment.cutmix import cutmix, cutmix_box


def test_cifar_boxes_and_shares(golden):
    g = golden("dbm_loss_cifar")
    for seed in range(len(g["cutmix.bbox"])):
        np.random.seed(seed)
        lam = np.random.beta(1.0, 1.0)
        assert max(lam, 1 - lam) == g["cutmix.lam_drawn"][seed]
        assert cutmix_box((32, 32), max(lam, 1 - lam)) == tuple(g["cutmix.bbox"][seed])

        np.random.seed(seed)
        background, foreground = torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)
        assert cutmix(background, foreground) == g["cutmix.lam"][seed]
        kept = torch.from_numpy(g["cutmix.kept_background"][seed]).bool()
        assert torch.equal(background == 0, kept.expand_as(background))


def test_large_scale_boxes(golden):
    g = golden("dbm_loss_large_scale")
    sizes = [tuple(g.facts["bbox"]["size_0_5"][2:])] * 6
    sizes += [tuple(g.facts["bbox"]["size_6_11"][2:])] * 6
    for step, size in enumerate(sizes):
        np.random.seed(100 * g.facts["seed"] + step)
        lam = np.random.beta(1.0, 1.0)
        assert max(lam, 1 - lam) == g["bbox_lambda_in"][step]
        assert cutmix_box(size, max(lam, 1 - lam)) == tuple(g["bbox_boxes"][step])


def test_large_scale_mixing(golden):
    g = golden("dbm_loss_large_scale")
    np.random.seed(g.facts["seed"])
    background = g.tensor("cutmix_bg")
    assert cutmix(background, g.tensor("cutmix_fg")) == g["cutmix_lam"]
    assert torch.equal(background, g.tensor("cutmix_out"))
