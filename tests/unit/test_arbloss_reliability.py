"""Calibration figures against the original's, and the diagram."""

import numpy as np
import pytest
import torch
from PIL import Image

from arbloss.reliability import calibration, draw_reliability_diagram
from common.evaluation import calibration_bins, expected_calibration_error


def made(accuracy, confidence, n=1000):
    """n samples of one confidence, of which a share is right."""
    return calibration_bins(torch.full((n,), confidence), torch.arange(n) < accuracy * n)


def test_calibration_golden(golden):
    for k in [0, 1, 2]:
        arb = golden("arbloss")
        confidence, correct = (
            arb.tensor(f"cal{k}_conf"),
            arb.tensor(f"cal{k}_true") == arb.tensor(f"cal{k}_pred"),
        )
        bins = calibration_bins(confidence, correct, arb.facts["cal_cases"][k]["num_bins"])
        figures = calibration(bins)
        keys = [name for name in arb.arrays.files if name.startswith(f"cal{k}_out_")]
        assert {f"cal{k}_out_{key}" for key in figures} == set(keys)
        for key, value in figures.items():
            np.testing.assert_allclose(
                value, arb[f"cal{k}_out_{key}"], rtol=1e-9, atol=1e-12, err_msg=key
            )
        assert figures["counts"].dtype == np.int64
        assert expected_calibration_error(bins) == pytest.approx(
            figures["expected_calibration_error"]
        )


def test_one_bin_by_hand():
    figures = calibration(made(accuracy=0.25, confidence=0.75))
    assert figures["avg_accuracy"] == 0.25
    assert figures["avg_confidence"] == 0.75
    assert figures["expected_calibration_error"] == 0.5
    assert figures["max_calibration_error"] == 0.5
    assert figures["counts"].sum() == figures["counts"][11] == 1000


def test_no_samples_are_nan():
    figures = calibration(torch.zeros(3, 15))
    assert np.isnan(figures["expected_calibration_error"])
    assert np.isnan(figures["avg_accuracy"])
    assert figures["max_calibration_error"] == 0


def test_diagram_is_a_picture_of_the_numbers(tmp_path):
    path = tmp_path / "diagram.png"
    draw_reliability_diagram(made(0.2, 0.9), path, "far off")
    with Image.open(path) as image:
        assert image.format == "PNG"
        off = np.asarray(image.convert("RGB"), dtype=int)
    draw_reliability_diagram(made(0.9, 0.9), path, "far off")
    with Image.open(path) as image:
        near = np.asarray(image.convert("RGB"), dtype=int)
    assert off.shape == near.shape
    assert (off != near).any(axis=2).mean() > 0.01
    draw_reliability_diagram(torch.zeros(3, 15), path, "empty")
    assert [file.name for file in tmp_path.iterdir()] == ["diagram.png"]
