"""What a run is evaluated on and by what its best epoch is chosen."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from common.training.changes import changed_data
from common.training.errors import UsageError
from common.training.launch import Process
from datasets.long_tail import Augmentation, load_long_tailed, make_loaders
from datasets.validation import Part, hold_out, stratified_part
from tests.unit.test_datasets_folder import make


def test_every_class_gives_its_share_and_keeps_an_image():
    targets = np.repeat([4, 0, 1, 2], [100, 10, 2, 1])
    part = stratified_part(targets, 0.25)
    assert np.bincount(targets[part]).tolist() == [3, 1, 0, 0, 25]
    assert part.tolist() == sorted(set(part.tolist()))
    assert stratified_part(targets, 0.25).tolist() == part.tolist()
    assert stratified_part(targets, 0.25, seed=1).tolist() != part.tolist()
    assert np.bincount(targets[stratified_part(targets, 0.99)]).tolist() == [9, 1, 0, 0, 99]
    assert np.bincount(targets[stratified_part(targets, 0.001)]).tolist() == [1, 1, 0, 0, 1]
    assert stratified_part([0, 1, 2], 0.5).tolist() == []


def digits(**changes):
    return load_long_tailed("digits", "", imb_type="exp", imb_factor=0.1, image_size=8, **changes)


def test_a_part_of_the_long_tail_is_for_validation():
    whole, data = digits(), digits(val_fraction=0.2)
    counts = np.bincount(data.val.targets)
    assert counts.tolist() == [26, 20, 15, 12, 9, 7, 6, 4, 3, 3]
    assert (counts + data.cls_num_list).tolist() == whole.cls_num_list
    assert (whole.chosen_on, data.chosen_on, data.split) == ("test", "held-out", "test")
    together = np.concatenate([data.train.images, data.val.images])
    both = (sorted(image.tobytes() for image in x) for x in (together, whole.train.images))
    assert next(both) == next(both)
    assert data.facts["subset_sha256"] != whole.facts["subset_sha256"]
    assert data.name == "digits, long tail 10"
    assert whole.notes == [
        "evaluated on test of digits, 497 images; the best epoch is chosen on it, too"
    ]
    assert data.notes == [
        "evaluated on test of digits, 497 images; the best epoch is chosen on 0.2 of the training "
        "images, 105 images",
        "note: in training, epochs are evaluated on the validation set, the test set at the end",
    ]
    assert data.facts["val_images"] == 105 and data.facts["test_images"] == 497


def test_the_loaders_of_validation_and_test_images():
    for loader in ["device", "workers"]:
        options = {"loader": loader, "batch_size": 64, "test_batch_size": 200, "workers": 0}
        options |= {"seed": 0, "process": Process(torch.device("cpu"))}
        _, val, test = make_loaders(digits(), Augmentation(), **options)
        assert val is test
        data = digits(val_fraction=0.2)
        _, val, test = make_loaders(data, Augmentation(), **options)
        assert torch.cat([target for _, target, _ in val]).tolist() == data.val.targets.tolist()
        assert torch.cat([target for _, target, _ in test]).tolist() == data.test.targets.tolist()


def test_folders_with_val_and_test_choose_on_the_one_and_report_the_other(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "test/a/1.png", "test/b/2.png")
    options = {"imb_type": "none", "imb_factor": 1.0, "image_size": 8}
    data = load_long_tailed("imagefolder", tmp_path, **options)
    assert (data.split, data.chosen_on, len(data.val.targets)) == ("test", "val", 1)
    assert data.test.files == [f"{tmp_path}/test/a/1.png", f"{tmp_path}/test/b/2.png"]
    assert (
        data.facts["test_set"] == f"{tmp_path}/test" and data.facts["val_set"] == f"{tmp_path}/val"
    )
    assert data.notes[-2] == (
        f"evaluated on {tmp_path}/test, 2 images; the best epoch is chosen on {tmp_path}/val, "
        "1 image"
    )
    with pytest.raises(UsageError, match=r"^val_fraction 0.1: .*/val is for validation already"):
        load_long_tailed("imagefolder", tmp_path, val_fraction=0.1, **options)


def changes_of(options, change):
    """What tells the data from those of before; nothing does if that was not noted then."""
    before = load_long_tailed(**options, imb_type="none", imb_factor=1.0, image_size=4).facts
    change()
    now = load_long_tailed(**options, imb_type="none", imb_factor=1.0, image_size=4).facts
    unknown = {key: value for key, value in before.items() if not key.startswith("val_")}
    assert changed_data(unknown, now) == []
    return changed_data(before, now)


def test_other_validation_images_in_a_folder_are_other_data(tmp_path):
    make(tmp_path, *(f"{split}/{c}/1.png" for split in ("train", "val", "test") for c in "ab"))
    options = {"dataset": "imagefolder", "root": tmp_path}
    white = Image.new("RGB", (4, 4), "white")
    assert changes_of(options, lambda: white.save(tmp_path / "val/a/1.png")) == [
        "val_pixels_sha256"
    ]


def test_other_validation_images_in_a_file_are_other_data(tmp_path):
    images, labels = np.zeros((4, 4, 4, 3), np.uint8), np.repeat([0, 1], 2)
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": labels for split in ("train", "val", "test")}
    options = {"dataset": "npz", "root": tmp_path / "set.npz"}
    for change, found in [
        ({"val_images": 255 - images}, ["val_pixels_sha256"]),
        ({"val_labels": labels[::-1]}, ["val_labels_sha256"]),
    ]:
        np.savez(options["root"], **arrays)
        save = partial(np.savez, options["root"], **arrays | change)
        assert changes_of(options, save) == found


def test_another_image_in_the_held_out_part_is_other_data(tmp_path):
    images = np.arange(8, dtype=np.uint8).repeat(48).reshape(8, 4, 4, 3)  # image i is full of i
    labels = np.repeat([0, 1], 4)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    options = {"dataset": "npz", "root": tmp_path / "set.npz", "val_fraction": 0.25}
    np.savez(options["root"], **arrays)
    data = load_long_tailed(**options, imb_type="none", imb_factor=1.0, image_size=4)
    other = np.where(images == data.val.images[0, 0, 0, 0], 99, images).astype(np.uint8)
    save = partial(np.savez, options["root"], **arrays | {"x_train": other})
    assert changes_of(options, save) == ["val_pixels_sha256"]


class Numbers(torch.utils.data.Dataset):
    """Image i is the number i."""

    def __init__(self, targets, transform):
        self.targets, self.transform = np.asarray(targets), transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(index), int(self.targets[index])


def test_held_out_images_are_seen_through_the_transform_of_the_test():
    data = Numbers([0, 0, 1, 1, 1, 1, 2], lambda x: -x)
    train, val = hold_out(data, 0.5, lambda x: 10 * x)
    assert val.targets.tolist() == [0, 1, 1] and train.targets.tolist() == [0, 1, 1, 2]
    seen = [train[i][0] for i in range(len(train))], [val[i][0] for i in range(len(val))]
    assert sorted([-x for x in seen[0]] + [x // 10 for x in seen[1]]) == list(range(7))
    assert isinstance(train, Part) and data[3] == (-3, 1)
    assert hold_out(data, 0.0, lambda x: 10 * x) == (data, None)
    with pytest.raises(UsageError, match=r"^val_fraction 0\.5: DIR/val is for validation already"):
        hold_out(data, 0.5, lambda x: x, val_set="DIR/val")
    with pytest.raises(UsageError, match=r"^val_fraction 0\.5: no class has the two images"):
        hold_out(Numbers([0, 1], None), 0.5, None)
