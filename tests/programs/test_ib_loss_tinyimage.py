"""ib_loss/tinyimage_train.py on a made-up Tiny ImageNet, in both published layouts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.models import resnet
from common.training.errors import UsageError
from datasets.long_tail import Images
from datasets.sources import open_source
from ib_loss import tinyimage_train
from tests.programs import tools

SCRIPT = tools.ROOT / "ib_loss" / "tinyimage_train.py"
COMMANDS = tools.readme_commands(tools.ROOT / "ib_loss/README.md", "python tinyimage_train.py")
CLASSES = [f"n{i:08d}" for i in range(200)]
FLAGS = ["--loss_type", "IB", "--train_rule", "IBReweight", "--imb_factor", "0.5", "--epochs", "1",
         "--start_ib_epoch", "0", "-b", "16", "-p", "5", "--seed", "0"]  # fmt: skip


def images(folder, count, rng):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = rng.randint(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{folder.parent.name}_{i}.JPEG")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two training images and one validation image of each of 200 classes, as published; the last
    class has twelve, so that their order as text is not that of their numbers.
    """
    root = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    rng = np.random.RandomState(0)
    for name in CLASSES:
        images(root / "train" / name / "images", 2, rng)
        (root / "train" / name / f"{name}_boxes.txt").write_text("0 0 1 1")
    images(root / "val" / "images", 211, rng)
    order = rng.permutation(np.append(np.arange(200), [199] * 11))
    lines = [f"val_{i}.JPEG\t{CLASSES[c]}\t0\t0\t9\t9\n" for i, c in enumerate(order)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root.parent, order


def test_the_published_validation_layout_is_read_right(tiny, tmp_path):
    root, order = tiny
    source = open_source("tinyimagenet", root, "val")
    assert source.targets.tolist() == sorted(order)
    assert source.pixels([0, 1]).shape == (2, 64, 64, 3)
    train = open_source("tinyimagenet", root, "train")
    assert train.targets.tolist() == np.repeat(np.arange(200), 2).tolist() and train.notes == []

    # One folder per class: the same images and labels in the same order.
    per_class = tmp_path / "tiny-imagenet-200"
    (per_class / "val").mkdir(parents=True)
    (per_class / "train").symlink_to(root / "tiny-imagenet-200" / "train")
    for i, c in enumerate(order):
        folder = per_class / "val" / CLASSES[c] / "images"
        folder.mkdir(parents=True, exist_ok=True)
        file = f"val_{i}.JPEG"
        (folder / file).symlink_to(root / "tiny-imagenet-200" / "val" / "images" / file)
    again = open_source("tinyimagenet", tmp_path, "val")
    assert again.targets.tolist() == source.targets.tolist()
    np.testing.assert_array_equal(again.pixels(range(211)), source.pixels(range(211)))


def test_missing_data_names_the_archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"unpack http.*tiny-imagenet-200.zip into data/"):
        tinyimage_train.main([])


def test_offline_weights_say_what_to_do(tiny, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UsageError, match=r"cannot download .*resnet18.*no network"):
        tinyimage_train.main(["--root", str(tiny[0]), *FLAGS])


@pytest.mark.parametrize("number", range(2))
def test_readme_commands(tiny, tmp_path, monkeypatch, golden, number):
    """As printed, from the paper's folder: pretrained trunk, new head, 224-pixel images.

    What comes after makes the run small; the weights are local.
    """
    command = COMMANDS[number]
    assert command == golden("ib_loss").facts["commands"][4 + number]["argv"]
    torch.manual_seed(0)
    donor = resnet.resnet18()
    torch.save(donor.state_dict(), tmp_path / "resnet18.pth")
    # Two batches of six images are enough to see it work, and six test images.
    monkeypatch.setattr("datasets.loaders.DeviceLoader.__len__", lambda self: 2)
    monkeypatch.setattr("datasets.loaders.DeviceLoader.__iter__", first_two(monkeypatch))
    monkeypatch.setattr("datasets.long_tail._all_images", first_six)
    small = ["--root", tiny[0], "--weights", tmp_path / "resnet18.pth", "--imb_factor", "0.5",
             "--epochs", "1", "--start_ib_epoch", "0", "-p", "5",
             "--root_log", tmp_path / "log", "--root_model", tmp_path / "model"]  # fmt: skip
    done = tools.run([SCRIPT.name, *command, *small], SCRIPT.parent)
    assert done.returncode == 0, done.stderr
    run = f"tinyimagenet_resnet18_{('CE_None', 'IB_IBReweight')[number]}_exp_0.5_0"
    path = tmp_path / "model" / run / "ckpt.pth.tar"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state["fc.weight"].shape == (200, 512)
    moved = (state["conv1.weight"] - donor.state_dict()["conv1.weight"]).abs().max()
    assert 0 < moved < 0.05  # two steps away from the given weights
    report = json.loads((tmp_path / "log" / run / "report.json").read_text())
    assert report["cls_num_list"][0] == 2 and report["cls_num_list"][-1] == 1


def first_six(source):
    return Images(source.pixels(np.arange(6)), source.targets[:6], source.files[:6])


def first_two(monkeypatch):
    from datasets.loaders import DeviceLoader

    original = DeviceLoader.__iter__

    def iterate(self):
        for step, item in zip(range(2), original(self), strict=False):
            assert item[0].shape[1:] == (3, 224, 224), step
            yield tuple(part[:6] for part in item)

    return iterate
