"""Counts, subsets, weights and orders against the original programs and their formulas."""

import hashlib
import math
import random
from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from arbloss.data import class_aware_order
from common.imbalance import (
    choose_subset,
    class_counts,
    effective_number_weights,
    inverse_frequency_weights,
    sample_weights,
)
from ib_loss.engine import class_weights

SIZES = {"cifar10": (50_000, 10), "cifar100": (50_000, 100), "tinyimagenet": (100_000, 200)}


def check_counts(counts, num_images, num_classes, imb_type, imb_factor):
    assert class_counts(num_images, num_classes, imb_type, imb_factor) == counts.tolist()


def test_counts_ib_loss(golden):
    for imb_type, dataset in product(["exp", "step", "none"], SIZES):
        g = golden("ib_loss")
        for factor, counts in zip(
            g["counts_factors"], g[f"counts_{dataset}_{imb_type}"], strict=True
        ):
            check_counts(counts, *SIZES[dataset], imb_type, factor)


def test_counts_of_an_odd_number_of_classes_ib_loss(golden):
    for imb_type in ["exp", "none"]:
        g = golden("ib_loss")
        for factor, counts in zip(g["counts_factors"], g[f"counts_custom_{imb_type}"], strict=True):
            check_counts(counts, *g["counts_custom_n_k"].tolist(), imb_type, factor)
        check_counts(g["counts_tinyimagenet_val"], 10_000, 200, "exp", 1.0)


def test_counts_dbm_loss_cifar(golden):
    g = golden("dbm_loss_cifar")
    for i in range(8):
        case = {
            key: int(g[f"counts.case{i}.{key}"]) for key in ("num_class", "img_max", "imb_ratio")
        }
        num_images = case["img_max"] * case["num_class"]
        counts = g[f"counts.case{i}.counts"]
        check_counts(counts, num_images, case["num_class"], "exp", 1.0 / case["imb_ratio"])


def test_counts_hmloss(golden):
    for imb_type, dataset in product(["exp", "step", "none"], ["cifar10", "cifar100"]):
        g = golden("hmloss")
        for factor, counts in zip(
            g["count_factors"], g[f"count_{dataset}_{imb_type}"], strict=True
        ):
            check_counts(counts, *SIZES[dataset], imb_type, factor)


def test_counts_arbloss(golden):
    for dataset in ["cifar10", "cifar100"]:
        g = golden("arbloss")
        for imb_type in ("exp", "step"):
            factors = g.facts["cifar_counts"][f"{imb_type}_imb_factors"]
            for i, factor in enumerate(factors):
                counts = g[f"{dataset}_counts_{imb_type}_case{i}"]
                check_counts(counts, *SIZES[dataset], imb_type, factor)


def test_counts_edges():
    assert class_counts(30, 1, "exp", 0.01) == [30]
    assert class_counts(50, 5, "exp", 0.01)[-1] == 0
    with pytest.raises(ValueError, match=r"imb_type step.*7 is odd.*imb_type exp"):
        class_counts(70, 7, "step", 0.1)


def test_subsets_ib_loss(golden):
    g = golden("ib_loss")
    for case in g.facts["subset_cases"]:
        i, num_classes = case["case"], case["cls_num"]
        labels = g[f"sub{i}_labels"].astype(np.int64)
        if not case["labels_stored"]:
            ordered = np.repeat(np.arange(num_classes), case["N"] // num_classes)
            labels = np.random.RandomState(case["label_seed"]).permutation(ordered)
        counts = class_counts(case["N"], num_classes, case["imb_type"], case["imb_factor"])
        assert counts == g[f"sub{i}_cls_num_list"].tolist()
        chosen = choose_subset(labels, counts, case["rand_number"])
        assert chosen.dtype == np.int64
        assert np.array_equal(chosen, g[f"sub{i}_indices"])
        assert np.array_equal(labels[chosen], g[f"sub{i}_targets"])


def test_subsets_dbm_loss_cifar(golden):
    for i in [0, 1, 2]:
        g = golden("dbm_loss_cifar")
        case = {
            key: int(g[f"subset.case{i}.{key}"])
            for key in ("num_class", "per_class", "imb_ratio", "label_seed")
        }
        ordered = np.repeat(np.arange(case["num_class"]), case["per_class"])
        labels = np.random.RandomState(case["label_seed"]).permutation(ordered)
        counts = class_counts(len(labels), case["num_class"], "exp", 1.0 / case["imb_ratio"])
        assert counts == g[f"subset.case{i}.counts"].tolist()
        chosen = choose_subset(labels, counts)
        assert np.array_equal(chosen, g[f"subset.case{i}.indices"])
        assert np.array_equal(labels[chosen], g[f"subset.case{i}.targets"])


def test_subsets_gml(golden):
    g = golden("dbm_loss_gml")
    for i, case in enumerate(g.facts["cases"]["sub"]):
        ordered = np.repeat(np.arange(case["cls"]), case["n_per"])
        labels = np.random.RandomState(g.facts["seed"] + 30 + i).permutation(ordered)
        counts = class_counts(len(labels), case["cls"], case["imb_type"], case["imb_factor"])
        assert counts == g[f"sub{i}_counts"].tolist()
        chosen = choose_subset(labels, counts, case["rand_number"])
        assert np.array_equal(chosen, g[f"sub{i}_indices"])


def test_subsets_hmloss(golden):
    g = golden("hmloss")
    for i, case in enumerate(g.facts["subset_cases"]):
        labels = g[f"subset{i}_labels"]
        counts = class_counts(len(labels), case["classes"], case["imb_type"], case["imb_factor"])
        assert counts == g[f"subset{i}_counts"].tolist()
        chosen = choose_subset(labels, counts, case["rand_number"])
        assert np.array_equal(chosen, g[f"subset{i}_selected"])
        assert np.array_equal(labels[chosen], g[f"subset{i}_targets"])


def test_subsets_of_full_size_hmloss(golden):
    for case in golden("hmloss").facts["subset_full_size"]:
        num_classes = case["classes"]
        ordered = np.repeat(np.arange(num_classes), 50_000 // num_classes)
        labels = np.random.RandomState(7).permutation(ordered)
        counts = class_counts(50_000, num_classes, case["imb_type"], case["imb_factor"])
        chosen = choose_subset(labels, counts, case["rand_number"])
        assert len(chosen) == case["n_selected"]
        assert chosen[:10].tolist() == case["first10"]
        assert chosen[-10:].tolist() == case["last10"]
        digest = hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()
        assert digest == case["sha256_int64le"]


def test_subsets_arbloss(golden):
    g = golden("arbloss")
    for i, case in enumerate(g.facts["imb_cases"]):
        labels = g[f"imb{i}_targets"]
        counts = class_counts(len(labels), case["cls_num"], case["imb_type"], case["imb_factor"])
        assert counts == g[f"imb{i}_cls_num_list"].tolist()
        chosen = choose_subset(labels, counts, case["rand_number"])
        assert np.array_equal(chosen, g[f"imb{i}_selected"])
        assert np.array_equal(labels[chosen], g[f"imb{i}_new_targets"])


def test_first_images_of_every_class_arbloss(golden):
    """The positions within a class depend on the sizes of the classes alone, not on the labels."""
    for num_classes in [10, 100]:
        g = golden("arbloss")
        facts = g.facts["cifar_pos"]
        per_class, wanted = 50_000 // num_classes, facts["pos_per_class"][str(num_classes)]
        labels = np.repeat(np.arange(num_classes), per_class)
        chosen = choose_subset(labels, [wanted] * num_classes, facts["rand_number"])
        within = chosen.reshape(num_classes, wanted) - per_class * np.arange(num_classes)[:, None]
        assert np.array_equal(within, g[f"cifar{num_classes}_pos"])


def test_subset_is_the_originals_loop_and_leaves_the_global_generator_alone():
    labels = np.random.RandomState(1).randint(0, 6, 400)
    counts = [40, 0, 25, 50, 1, 7]
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    chosen = choose_subset(labels, counts, rand_number=5)
    assert np.array_equal(np.random.get_state()[1], before)
    expected = []
    for c, wanted in enumerate(counts):
        positions = np.where(labels == c)[0]
        np.random.shuffle(positions)
        expected += positions[:wanted].tolist()
    assert chosen.tolist() == expected


def test_subset_refusals():
    with pytest.raises(ValueError, match="class 2 has 1 images, but 3 are asked for"):
        choose_subset([0, 0, 1, 1, 2], [2, 1, 3])
    with pytest.raises(ValueError, match="class 3 has 0 images, but 1 "):
        choose_subset([0, 1, 2], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="label 4 found, but there are 3 classes"):
        choose_subset([0, 1, 2, 4], [1, 1, 1])


def test_class_weights_hmloss(golden):
    for i in range(3):
        g = golden("hmloss")
        counts = g[f"loss{i}_counts"]
        np.testing.assert_allclose(
            inverse_frequency_weights(counts), g[f"loss{i}_w_cs"], rtol=1e-12
        )
        np.testing.assert_allclose(effective_number_weights(counts), g[f"loss{i}_w_cb"], rtol=1e-12)


def test_class_weights_dbm_loss_cifar(golden):
    g = golden("dbm_loss_cifar")
    weights = inverse_frequency_weights(g["cmo.counts"])
    np.testing.assert_allclose(weights, g["cmo.class_weight"], rtol=1e-12)


def test_class_weights_from_the_formula():
    counts, beta = [7, 1, 3], 0.9
    terms = [(1 - beta) / (1 - beta**n) for n in counts]
    expected = [3 * term / math.fsum(terms) for term in terms]
    np.testing.assert_allclose(effective_number_weights(counts, beta), expected, rtol=1e-14)
    np.testing.assert_allclose(inverse_frequency_weights([1, 2, 4]), [12 / 7, 6 / 7, 3 / 7])
    assert class_weights("DRW", counts, 0, drw_epoch=1).tolist() == [1.0, 1.0, 1.0]


def test_weights_of_empty_classes_are_refused():
    cases = [
        effective_number_weights,
        inverse_frequency_weights,
        lambda counts: class_weights("DRW", counts, 0, drw_epoch=1),
        lambda counts: class_weights("DRW", counts, 1, drw_epoch=1),
    ]
    for weights in cases:
        with pytest.raises(ValueError, match=r"classes without images.*: 1, 3;"):
            weights([5, 0, 2, 0])
        with pytest.raises(ValueError, match=r": 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\.;"):
            weights([5] + [0] * 30)


def test_sample_weights_ib_loss(golden):
    for i in [0, 1]:
        g = golden("ib_loss")
        weights = sample_weights(g[f"samp{i}_targets"])
        np.testing.assert_allclose(weights, g[f"samp{i}_weights"], rtol=1e-12)
        torch.manual_seed(int(g[f"samp{i}_torch_seed"]))
        drawn = torch.multinomial(torch.from_numpy(weights), len(weights), replacement=True)
        assert np.array_equal(drawn, g[f"samp{i}_draw"])


def test_sample_weights_hmloss(golden):
    g = golden("hmloss")
    weights = sample_weights(g["sampler_labels"])
    np.testing.assert_allclose(weights, g["sampler_weights"], rtol=1e-12)
    torch.manual_seed(9)
    drawn = torch.multinomial(torch.from_numpy(weights), len(weights), replacement=True)
    assert np.array_equal(drawn, g["sampler_indices_seed9"])


def test_sample_weights_large_scale(golden):
    g = golden("dbm_loss_large_scale")
    labels = g["wrs_labels"]
    weights = inverse_frequency_weights(np.bincount(labels))[labels]
    np.testing.assert_allclose(weights, g["wrs_sample_weight"], rtol=1e-12)
    torch.manual_seed(g.facts["wrs_torch_seed"])
    assert list(WeightedRandomSampler(weights, len(weights))) == g["wrs_indices"].tolist()
    np.testing.assert_allclose(sample_weights(labels), g["effnum_sample_weight"], rtol=1e-12)


def test_sample_weights_arbloss(golden):
    g = golden("arbloss")
    targets = g["cas0_targets"]
    np.testing.assert_allclose(sample_weights(targets, 1.0), g["balsampler_weights"], rtol=1e-12)
    np.testing.assert_allclose(sample_weights(targets), g["effsampler_weights"], rtol=1e-12)
    near_limit = sample_weights(targets, 1 - 1e-9)
    np.testing.assert_allclose(sample_weights(targets, 1.0), near_limit, rtol=1e-6)


def test_class_aware_order_arbloss(golden):
    for i in [0, 1]:
        g = golden("arbloss")
        case, targets = g.facts["cas_cases"][i], g[f"cas{i}_targets"]
        epochs = np.concatenate([g[f"cas{i}_epoch1"], g[f"cas{i}_epoch2"]])

        def order(length=None):
            rng = random.Random(case["py_seed"])
            return class_aware_order(targets, case["num_samples_cls"], rng, length)

        assert len(order()) == g[f"cas{i}_len"]
        assert np.array_equal(order(), g[f"cas{i}_epoch1"])
        assert np.array_equal(order(len(epochs)), epochs)


def test_class_aware_order_properties():
    targets = np.repeat(np.arange(5), [40, 12, 8, 4, 1])
    order = class_aware_order(targets, 4, random.Random(3))
    assert order.dtype == np.int64
    assert len(order) == 200
    groups = targets[order].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()  # four images of one class at a time
    assert np.bincount(targets[order]).tolist() == [40] * 5
    assert np.bincount(order, minlength=65)[:40].tolist() == [1] * 40  # one full deck
    cut = class_aware_order(targets, 4, random.Random(3), length=10)
    assert cut.tolist() == order[:10].tolist()
    with pytest.raises(ValueError, match="class 1 has no image to sample"):
        class_aware_order([0, 2, 2], 4, random.Random(0))
