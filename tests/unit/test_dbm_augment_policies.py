"""Policies of one image against the original's tables, operations and draws."""

import random

import numpy as np
import pytest
from PIL import Image

from dbm_loss.augment import ops, policies


@pytest.fixture(scope="module")
def cifar(golden):
    return golden("dbm_loss_cifar")


@pytest.fixture(scope="module")
def image(cifar):
    return Image.fromarray(cifar["aug.image"])


def assert_pixels(image, expected):
    """Other Pillow versions may round bicubic and enhancements to the neighbouring level."""
    np.testing.assert_allclose(np.asarray(image, dtype=int), expected.astype(int), atol=1)


def test_the_tables_are_the_original_ones(cifar):
    tables = {name: policies.policy_table(name) for name in cifar.facts["policy_tables"]}
    assert tables == cifar.facts["policy_tables"]
    assert {name: len(table) for name, table in tables.items()} == {
        name: size["num_policies"] for name, size in cifar.facts["policy_table_sizes"].items()
    }


def test_auto_augment_op(cifar, image, monkeypatch):
    for name in policies.AUTO_AUGMENT_MAGNITUDES:
        expected = cifar[f"aa.op.{name}"]  # (indices, signs, 32, 32, 3)
        magnitudes = cifar[f"aa.mag.{name}"]
        np.testing.assert_array_equal(
            policies.AUTO_AUGMENT_MAGNITUDES[name][: len(magnitudes)], magnitudes
        )
        signed = name in policies.GEOMETRIC + policies.ENHANCEMENTS
        assert expected.shape[1] == (2 if signed else 1)
        for index in range(expected.shape[0]):
            for sign in range(expected.shape[1]):
                monkeypatch.setattr(random, "choice", lambda options, sign=sign: options[sign])
                assert_pixels(policies.auto_augment_op(image, name, index), expected[index, sign])


def test_policy_and_its_number_of_draws(cifar, image):
    for name in policies.POLICY_NAMES[:-1]:
        policy = policies.policy_from_name(name)
        for seed in cifar["policy.seeds"]:
            random.seed(int(seed))
            np.random.seed(seed)
            assert_pixels(policy(image), cifar[f"policy.{name}"][seed])
            assert random.random() == cifar[f"policy.{name}.next_random"][seed]


def test_gml_has_the_same_auto_augment(golden):
    gml = golden("dbm_loss_gml")
    policy = policies.policy_from_name("autoaug_cifar")
    for step, expected in enumerate(gml["aa_out"]):
        random.seed(gml.facts["seed"] + step)
        assert_pixels(policy(Image.fromarray(gml["aa_image"])), expected)
    for entry, (p1, op1, i1, m1, p2, op2, i2, m2) in zip(
        policies.policy_table("autoaug_cifar"), gml.facts["cifar10_policy"], strict=True
    ):
        assert entry == [p1, op1, i1, p2, op2, i2]
        assert policies.AUTO_AUGMENT_MAGNITUDES[op1][i1] == m1
        assert policies.AUTO_AUGMENT_MAGNITUDES[op2][i2] == m2


def test_every_rand_augment_op(cifar, image, monkeypatch):
    ranges = policies.RAND_AUGMENT_OPS
    for name, low, high in cifar.facts["randaug_op_ranges"]:
        assert ranges[name][1:3] == (low, high)
        for coin, expected in zip((0.25, 0.75), cifar[f"randaug.op.{name}"], strict=False):
            np.random.seed(5)
            monkeypatch.setattr(random, "random", lambda coin=coin: coin)
            assert_pixels(policies.ranged_op(image, ranges, name, 14 / 30), expected)
        assert len(cifar[f"randaug.op.{name}"]) == (2 if ranges[name][3] else 1)
    assert list(ranges) == [name for name, _, _ in cifar.facts["randaug_op_ranges"]]


def test_every_searched_op(cifar, image, monkeypatch):
    ranges = policies.SEARCHED_OPS
    of_original = {name: (low, high) for name, low, high in cifar.facts["others_op_ranges"]}
    monkeypatch.setattr(random, "random", lambda: 0.25)
    for name in ranges:
        assert ranges[name][1:3] == of_original[name]
        for level, expected in zip(cifar["others.levels"], cifar[f"others.op.{name}"], strict=True):
            np.random.seed(5)
            assert_pixels(policies.ranged_op(image, ranges, name, level), expected)


def test_searched_signs_follow_the_coin(image, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.75)
    turned = policies.ranged_op(image, policies.SEARCHED_OPS, "Rotate", 1.0)
    assert turned == ops.rotate(image, -30)
    bright = policies.ranged_op(image, policies.SEARCHED_OPS, "Brightness", 0.0)
    assert bright == ops.brightness(image, 0.1)


def test_posterize_keeps_the_upper_bits(image):
    for bits in range(9):
        kept = np.asarray(ops.posterize(image, bits + 0.9 if bits < 8 else bits))
        np.testing.assert_array_equal(kept, np.asarray(image) >> (8 - bits) << (8 - bits))


def test_no_rectangle_of_no_size(image):
    assert ops.cut_rectangle(image, 0.0) is image


def test_names():
    assert policies.policy_from_name("none") is None
    for wrong in ("xx_none", "autoaug", "RandAug"):
        with pytest.raises(ValueError, match=r"autoaug_cifar, .*randaug, none"):
            policies.policy_from_name(wrong)
