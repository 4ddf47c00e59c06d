"""The data sets held in memory, and the long-tailed subsets cut out of them."""

import hashlib
import pickle

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as tv

from common.training.errors import UsageError
from datasets.long_tail import load_long_tailed, require_images
from datasets.sources import open_source
from tests.programs.tools import make_image_folder


def fake_cifar10(root, per_class=40, per_class_test=10):
    """CIFAR-10's files with made-up pixels."""
    rng = np.random.RandomState(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    labels = rng.permutation(np.repeat(np.arange(10), per_class))
    data = rng.randint(0, 256, (len(labels), 3072)).astype(np.uint8)
    for i, part in enumerate(np.array_split(np.arange(len(labels)), 5), start=1):
        content = {"data": data[part], "labels": labels[part].tolist()}
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps(content))
    test = rng.permutation(np.repeat(np.arange(10), per_class_test))
    content = {"data": data[: len(test)], "labels": test.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return labels, data


def test_cifar_is_read_in_file_order(tmp_path, monkeypatch):
    labels, data = fake_cifar10(tmp_path)
    monkeypatch.setattr(tv.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(tv.cifar, "check_integrity", lambda *_: True)
    source = open_source("cifar10", tmp_path, train=True)
    assert source.targets.tolist() == labels.tolist()
    expected = data[[7, 3]].reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(source.pixels([7, 3]), expected)
    assert source.classes == list("abcdefghij")


def test_a_damaged_cifar_is_refused(tmp_path):
    fake_cifar10(tmp_path)
    with pytest.raises(
        UsageError, match=r"--dataset cifar10: not in .*corrupted.*put that archive"
    ):
        open_source("cifar10", tmp_path, train=True)


@pytest.mark.parametrize(("name", "folder"), [
    ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"),
])  # fmt: skip
def test_cifar_offline_names_url_folder_and_cure(tmp_path, monkeypatch, name, folder):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(tv.cifar, "download_and_extract_archive", offline)
    with pytest.raises(UsageError) as error:
        open_source(name, tmp_path / "data", train=True)
    message = str(error.value)
    assert "https://www.cs.toronto.edu/~kriz/cifar-10" in message
    assert f"put that archive, or its folder {folder}/, into {tmp_path / 'data'}/" in message
    assert "no network" in message and "\n" not in message


def test_digits_are_embedded_balanced_and_fixed():
    train = open_source("digits", "", train=True)
    test = open_source("digits", "", train=False)
    assert np.bincount(train.targets).tolist() == [130] * 10 and len(test.targets) == 497
    pixels = train.pixels(np.arange(1300))
    assert pixels.shape == (1300, 32, 32, 3) and pixels.max() == 255
    everything = np.concatenate([pixels, test.pixels(np.arange(497))])[:, ::4, ::4, 0]
    assert len(np.unique(everything.reshape(1797, -1), axis=0)) > 1790  # no image on both sides
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    assert digest.startswith("eba1b103d25787a8"), digest
    small = open_source("digits", "", train=True, image_size=16).pixels([0, 700])
    np.testing.assert_array_equal(small, pixels[[0, 700], ::2, ::2])
    with pytest.raises(UsageError, match="--image_size 20: the digits have 8x8 pixels"):
        open_source("digits", "", train=True, image_size=20)


@pytest.mark.parametrize(
    ("name", "size"), [("cifar10", 64), ("cifar100", 16), ("tinyimagenet", 48)]
)
def test_images_that_have_their_size_keep_it(name, size, tmp_path):
    with pytest.raises(UsageError, match=f"--image_size {size}: images of {name} have"):
        open_source(name, tmp_path, train=True, image_size=size)


def test_image_folder_reads_any_size_as_rgb(tmp_path):
    for split in ("train", "val"):
        for name, mode, size in (("b", "L", (90, 60)), ("a", "RGBA", (40, 80))):
            (tmp_path / split / name / "deeper").mkdir(parents=True)
            Image.new(mode, size, 200 if mode == "L" else (10, 20, 30, 255)).save(
                tmp_path / split / name / "deeper" / "x.PNG"
            )
    source = open_source("imagefolder", tmp_path, train=True, image_size=24)
    assert source.classes == ["a", "b"] and source.targets.tolist() == [0, 1]
    pixels = source.pixels([0, 1])
    assert pixels.shape == (2, 24, 24, 3)
    assert pixels[0, 5, 5].tolist() == [10, 20, 30] and pixels[1, 5, 5].tolist() == [200] * 3


def test_other_classes_in_the_test_split_are_refused(tmp_path):
    make_image_folder(tmp_path, [2, 2])
    (tmp_path / "test" / "class_001").rename(tmp_path / "test" / "klass")
    with pytest.raises(UsageError, match=r"test: other classes than in train/ .*'class_001'"):
        open_source("imagefolder", tmp_path, train=False)


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
