"""Crop and colour constancy give the pixels of the MATLAB files."""

import numpy as np
import pytest
from PIL import Image

from hmloss.isic2019_implementation.preprocessing.color_constancy import (
    center_crop,
    color_constancy,
)


@pytest.fixture(scope="module")
def g(golden):
    return golden("hmloss")


def pixels(image):
    return np.asarray(image)


def count(g, stem):
    return sum(f"{stem}{i}_image" in g for i in range(100))


VARIANTS = {
    "gw": {"algorithm": "gray world"},
    "gws1": {"algorithm": "gray world seg", "s": 1},
    "gws2": {"algorithm": "gray world seg", "s": 2},
    "sog4_double": {"algorithm": "shades of gray", "p": 4},
    "sog6_double": {"algorithm": "shades of gray", "p": 6},
    "sogs4_double": {"algorithm": "shades of gray seg", "s": 1, "p": 4},
    "sogs6_double": {"algorithm": "shades of gray seg", "s": 1, "p": 6},
}


def test_pixels_are_the_originals(g):
    for variant in VARIANTS:
        assert count(g, "cc")
        for i in range(count(g, "cc")):
            image = Image.fromarray(g[f"cc{i}_image"])
            np.testing.assert_array_equal(
                pixels(color_constancy(image, **VARIANTS[variant])), g[f"cc{i}_{variant}"]
            )


def saturating_shades_of_gray(image, p, segments):
    """The original on uint8 input, where a power above 255 is 255; written as its loop."""
    height, width = image.shape[:2]
    powers = np.minimum(image.astype(np.float64) ** p, 255)
    rows, columns = (
        [int(k * side / segments + 0.5) for k in range(segments)] + [side]
        for side in (height, width)
    )
    estimate = np.zeros(3)
    for i in range(segments):
        for j in range(segments):
            part = powers[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].sum((0, 1))
            estimate += (part / ((height / segments) * (width / segments))) ** (1 / p)
    estimate /= segments**2
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.sqrt((estimate**2).sum()) / (estimate * np.sqrt(3)) * image
    return np.clip(np.floor(np.nan_to_num(out) + 0.5), 0, 255).astype(np.uint8)


def test_powers_do_not_saturate(g):
    """The original's do on uint8 input: the loop above gives its pixels, and ours are others."""
    for name, segments in [("sog", 1), ("sogs", 2)]:
        algorithm = "shades of gray" if segments == 1 else "shades of gray seg"
        for i in range(count(g, "cc")):
            for p in (4, 6):
                image, original = g[f"cc{i}_image"], g[f"cc{i}_{name}{p}"]
                np.testing.assert_array_equal(
                    saturating_shades_of_gray(image, p, segments), original
                )
                ours = pixels(color_constancy(Image.fromarray(image), algorithm, s=1, p=p))
                assert (ours != original).any()


def test_crops_are_the_originals(g):
    assert count(g, "crop")
    for i in range(count(g, "crop")):
        cropped = center_crop(Image.fromarray(g[f"crop{i}_image"]))
        np.testing.assert_array_equal(pixels(cropped), g[f"crop{i}_out"])


def test_large_squares_are_cropped_to_450(g):
    for case in g.facts["crop_square_large"]:
        height, width = case["size"]
        rows, columns = np.mgrid[:height, :width]
        image = np.stack([rows // 2, columns // 2, (rows % 2) * 2 + columns % 2], 2)
        cropped = pixels(center_crop(Image.fromarray(image.astype(np.uint8))))
        assert list(cropped.shape[:2]) == case["out"]
        (top, left), (bottom, right) = case["start"], np.add(case["start"], case["out"])
        np.testing.assert_array_equal(cropped, image[top:bottom, left:right])


def test_crop_then_constancy(g):
    image = center_crop(Image.fromarray(g["crop0_image"]))
    out = color_constancy(image, "gray world seg", s=2)
    np.testing.assert_array_equal(pixels(out), g["pipeline_crop0_then_gws2"])


def test_equals_the_formula_on_whole_images():
    """The table per channel gives what the formula gives pixel by pixel."""
    image = np.random.RandomState(5).randint(0, 200, (31, 20, 3)).astype(np.uint8)
    estimate = image.reshape(-1, 3).mean(0)
    gain = np.sqrt((estimate**2).sum()) / (estimate * np.sqrt(3))
    expected = np.clip(np.floor(image * gain + 0.5), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels(color_constancy(Image.fromarray(image))), expected)


def test_black_image_stays_black():
    black = Image.new("RGB", (7, 5))
    assert not pixels(color_constancy(black)).any()


def test_other_variants_are_refused():
    cases = [
        {"algorithm": "grey"},
        {"algorithm": "gray world seg", "s": 3},
        {"algorithm": "shades of gray", "p": 5},
        {"algorithm": "shades of gray seg", "s": 2},
    ]
    for bad in cases:
        with pytest.raises(ValueError, match=r"choose|takes"):
            color_constancy(Image.new("RGB", (4, 4)), **bad)
