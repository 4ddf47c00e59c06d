"""The data sets held in memory, and the long-tailed subsets cut out of them."""

import hashlib
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from PIL import Image

from common.training.errors import UsageError
from datasets.long_tail import load_long_tailed, require_images
from datasets.sources import open_source
from tests.programs.tools import make_image_folder


def test_digits_are_embedded_balanced_and_fixed():
    train = open_source("digits", "", "train")
    test = open_source("digits", "", "test")
    assert np.bincount(train.targets).tolist() == [130] * 10 and len(test.targets) == 497
    pixels = train.pixels(np.arange(1300))
    assert pixels.shape == (1300, 32, 32, 3) and pixels.max() == 255
    everything = np.concatenate([pixels, test.pixels(np.arange(497))])[:, ::4, ::4, 0]
    assert len(np.unique(everything.reshape(1797, -1), axis=0)) > 1790  # no image on both sides
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    assert digest.startswith("eba1b103d25787a8"), digest
    small = open_source("digits", "", "train", image_size=16).pixels([0, 700])
    np.testing.assert_array_equal(small, pixels[[0, 700], ::2, ::2])
    with pytest.raises(UsageError, match=r"^image_size 20: the digits have 8x8 pixels"):
        open_source("digits", "", "train", image_size=20)


def test_images_that_have_their_size_keep_it(tmp_path):
    for name, size in [("cifar10", 64), ("cifar100", 16), ("tinyimagenet", 48)]:
        folder = Path(mkdtemp(dir=tmp_path))
        with pytest.raises(UsageError, match=f"^image_size {size}: images of {name} have"):
            open_source(name, folder, "train", image_size=size)


def test_image_folder_reads_any_size_as_rgb(tmp_path):
    for split in ("train", "val"):
        for name, mode, size in (("b", "L", (90, 60)), ("a", "RGBA", (40, 80))):
            (tmp_path / split / name / "deeper").mkdir(parents=True)
            Image.new(mode, size, 200 if mode == "L" else (10, 20, 30, 255)).save(
                tmp_path / split / name / "deeper" / "x.PNG"
            )
    source = open_source("imagefolder", tmp_path, "train", image_size=24)
    assert source.classes == ["a", "b"] and source.targets.tolist() == [0, 1]
    pixels = source.pixels([0, 1])
    assert pixels.shape == (2, 24, 24, 3)
    assert pixels[0, 5, 5].tolist() == [10, 20, 30] and pixels[1, 5, 5].tolist() == [200] * 3


def test_a_long_tail_is_cut_out_of_a_balanced_set(tmp_path):
    make_image_folder(tmp_path, [30] * 4)
    data = load_long_tailed("imagefolder", tmp_path, imb_type="exp", imb_factor=0.1)
    assert data.cls_num_list == [30, 13, 6, 3]
    assert np.bincount(data.train.targets).tolist() == data.cls_num_list
    assert len(data.train.images) == 52 and len(data.test.images) == 12
    again = load_long_tailed("imagefolder", tmp_path, imb_type="exp", imb_factor=0.1)
    assert again.facts == data.facts
    other = load_long_tailed("imagefolder", tmp_path, imb_type="exp", imb_factor=0.1, rand_number=1)
    assert other.facts["subset_sha256"] != data.facts["subset_sha256"]
    step = load_long_tailed("imagefolder", tmp_path, imb_type="step", imb_factor=0.5)
    assert step.cls_num_list == [30, 30, 15, 15]


def test_an_empty_class_is_named():
    require_images([3, 1], "--train_rule X")
    with pytest.raises(UsageError, match=r"--train_rule X divides .* no image of class 1, 3;"):
        require_images([3, 0, 1, 0], "--train_rule X")
