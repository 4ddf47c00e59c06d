"""--dataset npz: what is read, and one line for every content that cannot be."""

import re
import zipfile
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from common.training.errors import UsageError
from datasets import npz
from datasets.long_tail import load_long_tailed
from datasets.npz import LAYOUTS, VAL, held_out, read_split

RNG = np.random.RandomState(0)
X = RNG.randint(0, 256, (12, 10, 7, 3)).astype(np.uint8)  # higher than wide
Y = np.repeat([0, 1, 2], [6, 4, 2])
KERAS = {"x_train": X, "y_train": Y, "x_test": X[::2], "y_test": Y[::2]}


def write(path, save=np.savez, **arrays):
    save(path, **{**KERAS, **arrays})
    return path


def test_both_layouts_colour_and_grey_labels_flat_and_in_a_column(tmp_path):
    write(tmp_path / "keras.npz", classes=np.array(["cat", "dog", "emu"]))
    images, targets, classes = read_split(tmp_path / "keras.npz", "train")
    np.testing.assert_array_equal(images, X)
    assert targets.tolist() == Y.tolist() and targets.dtype == np.int64
    assert classes == ["cat", "dog", "emu"]
    assert read_split(tmp_path / "keras.npz", "test")[1].tolist() == Y[::2].tolist()

    medmnist = {name: KERAS[keras] for name, keras in zip(LAYOUTS[1], LAYOUTS[0], strict=True)}
    medmnist |= {"train_images": X[..., 0], "train_labels": Y[:, None].astype(np.uint8)}
    medmnist |= {"val_images": X[:1, ..., 0], "val_labels": Y[:1, None]}  # not used
    np.savez_compressed(tmp_path / "med.npz", **medmnist)
    images, targets, classes = read_split(tmp_path / "med.npz", "train")
    np.testing.assert_array_equal(images, np.repeat(X[..., :1], 3, axis=3))
    assert targets.tolist() == Y.tolist() and classes == ["0", "1", "2"]


@pytest.mark.parametrize("size", [5, 7, 16])
def test_the_images_are_brought_to_their_size_as_those_of_an_image_folder(tmp_path, size):
    for split, images, labels in (("train", X, Y), ("test", X[::2], Y[::2])):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / "folder" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:02d}.png")
    write(tmp_path / "x.npz")
    shared = {"imb_type": "none", "imb_factor": 1.0, "image_size": size}
    one = load_long_tailed("npz", tmp_path / "x.npz", **shared)
    other = load_long_tailed("imagefolder", tmp_path / "folder", **shared)
    assert one.train.images.shape == (12, size, size, 3) and one.cls_num_list == [6, 4, 2]
    np.testing.assert_array_equal(one.train.images, other.train.images)
    np.testing.assert_array_equal(one.test.images, other.test.images)
    test_set = f"test of {tmp_path / 'x.npz'}"
    assert one.facts == other.facts | {"dataset": "npz", "test_set": test_set}


def test_a_long_tail_cut_out_of_a_long_tail_is_worth_a_note(tmp_path):
    path = write(tmp_path / "x.npz")
    cut = {"imb_type": "exp", "imb_factor": 0.5}
    for words, cure in (({}, "--imb_type none"), ({"whole": "imb_factor null"}, "imb_factor null")):
        data = load_long_tailed("npz", path, **cut, **words)
        assert data.cls_num_list == [4, 2, 2] and data.notes[:-1] == [
            "note: the classes have 6 to 2 training images, of which imbalance exp 0.5 takes 4 to "
            f"2; {cure} takes all"
        ]
    assert len(load_long_tailed("npz", path, imb_type="none", imb_factor=0.5).notes) == 1
    assert len(load_long_tailed("digits", "", **cut).notes) == 1  # not equal either, but not long
    write(path, y_train=np.repeat([0, 1, 2], 4))
    assert len(load_long_tailed("npz", path, **cut).notes) == 1


def test_a_file_or_folder_is_ones_own(tmp_path):
    """What DBM's margin takes for its reference hangs on it."""
    cut = {"imb_type": "none", "imb_factor": 1.0}
    assert load_long_tailed("npz", write(tmp_path / "x.npz"), **cut).own
    assert not load_long_tailed("digits", "", **cut).own


OBJECTS = np.array([None] * 12, dtype=object)
BAD = {
    "float images": (
        {"x_train": X / 255},
        "x_train is float64 (12, 10, 7, 3); expected uint8 (N, H, W, 3), or grey (N, H, W): "
        "scale to 0…255, astype(numpy.uint8)",
    ),
    "torch's order": (
        {"x_train": X.transpose(0, 3, 1, 2)},
        "x_train is uint8 (12, 3, 10, 7); expected uint8 (N, H, W, 3), or grey (N, H, W): "
        "transpose(0, 2, 3, 1)",
    ),
    "one channel": (
        {"x_test": X[::2, ..., :1].astype(np.int64)},
        "x_test is int64 (6, 10, 7, 1); expected uint8 (N, H, W, 3), or grey (N, H, W): "
        "squeeze(3), astype(numpy.uint8)",
    ),
    "one channel, torch's order": (
        {"x_test": X[::2, None, ..., 0]},
        "x_test is uint8 (6, 1, 10, 7); expected uint8 (N, H, W, 3), or grey (N, H, W): squeeze(1)",
    ),
    "no images": ({"x_test": X[:0]}, "x_test is uint8 (0, 10, 7, 3); it is empty"),
    "float test images": ({"x_test": X[::2] / 255}, "x_test is float64 (6, 10, 7, 3); expected"),
    "four channels": ({"x_train": np.zeros((12, 4, 4, 4), np.uint8)}, "uint8 (12, 4, 4, 4); exp"),
    "flat images": ({"x_test": np.zeros((6, 300), np.uint8)}, "x_test is uint8 (6, 300); expected"),
    "no pixels": ({"x_train": np.zeros((12, 0, 4, 3), np.uint8)}, "uint8 (12, 0, 4, 3); expected"),
    "fewer images": ({"x_train": X[:5]}, "(5, 10, 7, 3); expected an image for each of the 12 lab"),
    "float labels": ({"y_train": Y / 1.0}, "y_train is float64 (12,); expected whole numbers 0…C-"),
    "one-hot labels": ({"y_train": np.eye(3)[Y].astype(int)}, "y_train is int64 (12, 3); expected"),
    "no labels": ({"y_test": Y[:0], "x_test": X[:0]}, "y_test is int64 (0,); it is empty"),
    "a negative label": ({"y_test": Y[::2] - 1}, "y_test is int64 (6,); it has the label -1; num"),
    "a gap": ({"y_train": Y * 2}, "y_train is int64 (12,); it has labels up to 4 but no 1; number"),
    "a far label": ({"y_train": np.where(Y == 2, 2**63, Y.astype(np.uint64))}, "but no 2; number"),
    "an untrained class": ({"y_test": Y[::2] + 1}, "the label 3, y_train only 0…2; a class to be"),
    "pickled images": ({"x_train": OBJECTS}, "x_train is object (12,); expected uint8 (N, H, W, 3"),
    "pickled labels": ({"y_test": OBJECTS[:6]}, "y_test is object (6,); expected whole numbers"),
    "pickled names": ({"classes": OBJECTS[:3]}, "classes is object (3,); expected 3 texts"),
    "fewer names": ({"classes": np.array(["a", "b"])}, "classes is <U1 (2,); expected 3 texts"),
    "a name twice": ({"classes": np.array(list("aba"))}, "classes: 'a' names 2 classes; give each"),
    "numbers as names": ({"classes": np.arange(3)}, "classes is int64 (3,); expected 3 texts"),
}  # fmt: skip


def refused(path, words):
    for split in ("train", "test"):  # whichever split is read first
        with pytest.raises(UsageError, match=re.escape(words)) as error:
            read_split(path, split)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_other_content_is_told_with_shape_dtype_and_what_would_be_right(tmp_path):
    for arrays, words in BAD.values():
        refused(write(tmp_path / "x.npz", **arrays), words)


@pytest.mark.parametrize(("there", "absent"), [VAL, VAL[::-1]])
def test_validation_images_and_labels_come_together(there, absent, tmp_path):
    path = write(tmp_path / "x.npz", **{there: X})
    refused(path, f"x.npz: holds {there} without {absent}; add them or leave {there} out")


def test_arrays_that_are_not_read_are_named(tmp_path):
    path = write(tmp_path / "x.npz", x_val=X, y_val=Y, classes=np.array(["a", "b", "c"]))
    assert load_long_tailed("npz", path, imb_type="none", imb_factor=1.0).notes[:-1] == [
        f"note: {path}: its arrays x_val, y_val are not read"
    ]


def test_files_that_are_no_image_set(tmp_path):
    refused(tmp_path / "none.npz", "none.npz: no such file; give FILE.npz with x_train, y_train")
    refused(tmp_path, "no such file; give FILE.npz")  # a folder
    np.save(tmp_path / "x.npy", X)
    refused(tmp_path / "x.npy", "not an .npz file (File is not a zip file); expected x_train, y_t")
    with pytest.MonkeyPatch.context() as patch:
        denied = PermissionError(13, "Permission denied")
        patch.setattr(npz, "open", Mock(side_effect=denied), raising=False)
        refused(tmp_path / "x.npy", "x.npy: cannot be read (Permission denied)")
    np.savez(tmp_path / "x.npz", images=X, labels=Y)
    refused(tmp_path / "x.npz", "x.npz: holds images, labels; expected x_train, y_train, x_test, y")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in KERAS:
            archive.writestr(f"{name}.npy", "no array")
    refused(tmp_path / "x.npz", "x_train cannot be read (the magic string is not correct")


def test_damage_is_told_with_the_array_that_it_is_in(tmp_path):
    path = write(tmp_path / "x.npz", np.savez_compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "x.npz: cut short or damaged (File is not a zip file); copy it or write it again")
    path.write_bytes(whole.replace(b"PK\x01\x02", b"XXXX"))
    refused(path, "x.npz: cut short or damaged (Bad magic number for central directory); copy")
    damaged = bytearray(write(path).read_bytes())
    damaged[damaged.index(Y.tobytes())] = 1  # a label's byte: the checksum of y_train is wrong
    path.write_bytes(damaged)
    refused(
        path, "y_train cannot be read (Bad CRC-32 for file 'y_train.npy'); write the file again"
    )


def test_random_damage_never_ends_in_a_traceback(tmp_path):
    path = write(tmp_path / "x.npz", np.savez_compressed)
    whole = path.read_bytes()
    refusals = 0
    for _ in range(300):
        damaged = bytearray(whole[: RNG.randint(len(whole) // 2, 2 * len(whole))])
        for place in RNG.randint(0, len(damaged), 3):
            damaged[place] = RNG.randint(256)
        path.write_bytes(damaged)
        try:
            held_out(path)
            read_split(path, "train")
        except UsageError:
            refusals += 1
    assert refusals > 200
