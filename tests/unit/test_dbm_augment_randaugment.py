"""RandAugment with noisy magnitudes against the original's operations and draws."""

import random

import numpy as np
import pytest
from PIL import Image

from dbm_loss.augment import randaugment


@pytest.fixture(scope="module")
def large(golden):
    return golden("dbm_loss_large_scale")


@pytest.fixture(scope="module")
def image(large):
    return Image.fromarray(large["ra_image"])


def assert_pixels(image, expected):
    np.testing.assert_allclose(np.asarray(image, dtype=int), expected.astype(int), atol=1)


def test_each_op_alone(large, image, monkeypatch):
    assert list(randaugment.OPS) == large.facts["randaug_ops"]
    monkeypatch.setattr(random, "choice", lambda options: options[0])  # bilinear
    for name, expected in zip(randaugment.OPS, large["ra_op_images"], strict=True):
        random.seed(3)
        random.random()  # the coin that applied the operation
        assert_pixels(randaugment.apply_op(image, name, 6), expected)


def test_values_of_the_levels(large, image, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.25)
    seen = []
    for row, name in enumerate(large.facts["ra_all_ops"]):
        if name not in randaugment.OPS or np.isnan(large["ra_level_to_arg"][row]).any():
            continue
        _, start, growth = randaugment.OPS[name]
        entry = (lambda image, value, *_: seen.append(value), start, growth)
        monkeypatch.setitem(randaugment.OPS, name, entry)
        for level, value in zip(large["ra_levels"], large["ra_level_to_arg"][row], strict=True):
            randaugment.apply_op(image, name, level)
            whole = name in ("PosterizeTpu", "Solarize", "SolarizeAdd")  # cut by the operation
            assert (int(seen[-1]) if whole else seen[-1]) == value, (name, level)
    assert len(seen) == 12 * 8


def test_full_transform(large, image):
    transform = randaugment.rand_augment("rand-n2-m10-mstd0.5")
    for step, expected in enumerate(large["ra_out"]):
        random.seed(large.facts["seed"] + step)
        np.random.seed(large.facts["seed"] + step)
        assert_pixels(transform(image), expected)


def test_solarize_cuts_its_threshold(image):
    whole = np.asarray(randaugment.solarize(image, 102.9))
    pixels = np.asarray(image)
    np.testing.assert_array_equal(whole, np.where(pixels < 102, pixels, 255 - pixels))


def test_config_text():
    transform = randaugment.rand_augment("rand-m7-n3")
    assert (transform.n, transform.m, transform.mstd) == (3, 7, 0.0)
    transform = randaugment.rand_augment("rand")
    assert (transform.n, transform.m, transform.mstd) == (2, 10, 0.0)
    transform = randaugment.rand_augment("rand-n2-m10-mstd0.5")
    assert (transform.n, transform.m, transform.mstd) == (2, 10, 0.5)
    for wrong in ("auto-n2", "rand-x3", "rand-n", "rand-n2.5", ""):
        with pytest.raises(ValueError, match="cannot read RandAugment config"):
            randaugment.rand_augment(wrong)


def test_without_noise_the_magnitude_is_fixed(image, monkeypatch):
    monkeypatch.setattr(random, "gauss", lambda *_: pytest.fail("drew a magnitude"))
    random.seed(0)
    randaugment.rand_augment("rand-n4-m10")(image)
