"""Training views and evaluation pipelines of GML against the original's, and the data they read."""

import random
from argparse import Namespace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from PIL import Image

from common.training.errors import UsageError
from common.training.launch import Process
from datasets.augment import recipes as shared_recipes
from datasets.loaders import WorkersLoader
from dbm_loss.GML import data, imagenet
from tests.unit.pixels import assert_summary

CPU = Process(torch.device("cpu"))


@pytest.fixture(scope="module")
def g(golden):
    return golden("dbm_loss_gml")


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def summary(image, step):
    """Every ``step``-th pixel, mean and standard deviation, as the golden file keeps them."""
    sparse = image[:, ::step, ::step].flatten()
    return torch.cat([sparse, image.mean()[None], image.std()[None]]).numpy()


def gradient_image():
    y, x = np.mgrid[:260, :300]
    return Image.fromarray(
        np.stack([x * 255 // 299, y * 255 // 259, (3 * x + 5 * y) % 256], axis=2).astype(np.uint8)
    )


def test_cifar_views_are_the_originals(g):
    image = Image.fromarray(g["aa_image"])
    for k, expected in enumerate(g["pipe_cifar_views"]):
        seed_all(g.facts["seed"] + k)
        views = [view(image) for view in data.cifar_views(3, size=32)]
        for view, row in zip(views, expected, strict=True):
            assert_summary(summary(view, 4), row)
    image = shared_recipes.cifar_eval()(image)
    np.testing.assert_allclose(summary(image, 4), g["pipe_cifar_val"], atol=1e-5, rtol=0)


def test_imagenet_views_are_the_originals(g):
    cases = [
        ("imagenet", "randcls_randclsstack"),
        ("imagenet", "randclsstack_randclsstack"),
        ("imagenet", "randcls_sim"),
        ("inat", "randcls_sim"),
    ]
    for dataset, aug in cases:
        args = Namespace(dataset=dataset, aug=aug, randaug_n=2, randaug_m=10)
        views = imagenet.imagenet_views(args, 3)
        image = gradient_image()
        for k, expected in enumerate(g[f"pipe_{dataset}_{aug}_views"]):
            seed_all(g.facts["seed"] + k)
            for view, row in zip([view(image) for view in views], expected, strict=True):
                assert_summary(summary(view, 32), row)


def test_evaluation_pipeline_is_the_originals(g):
    for dataset in ["imagenet", "inat"]:
        mean, std = imagenet.large_scale.MEAN_STD[{"imagenet": "imgnet"}.get(dataset, dataset)]
        image = shared_recipes.imagenet_eval(mean=mean, std=std)(gradient_image())
        assert_summary(summary(image, 32), g[f"pipe_{dataset}_val"])


def test_device_views_are_drawn_independently():
    views = data.cifar_batch_views(3)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    first = views(images, torch.Generator().manual_seed(0))
    assert len(first) == 3 and all(view.shape == (2, 3, 32, 32) for view in first)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    again = views(images, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def flags(**changed):
    given = {
        "dataset": "imagenet", "data": "images", "list_dir": None, "classes": None,
        "num_classes": 2, "aug": "randcls_sim", "randaug_n": 2, "randaug_m": 10, "fake_data": 0,
        "batch_size": 4, "image_size": 32, "imb_type": "exp", "imb_factor": 0.1,
        "program": "main", "alpha": 0.0, "beta": 1.0, "base_k": 0, "moco_k": 64,
        "val_fraction": 0.0, "evaluate": False,
    }  # fmt: skip
    return Namespace(**{**given, **changed})


def test_lists_are_found_where_the_original_had_them_or_with_the_images(tmp_path, monkeypatch):
    for where in ["imagenet_inat/data/ImageNet_LT", "images", "elsewhere"]:
        folder = Path(mkdtemp(dir=tmp_path))
        monkeypatch.chdir(folder)
        (folder / where).mkdir(parents=True)
        (folder / "images/train").mkdir(parents=True, exist_ok=True)
        for name in "ab":
            Image.new("RGB", (40, 30)).save(folder / f"images/train/{name}.jpg")
        for split in ("train", "test"):
            lines = "train/a.jpg 0\ntrain/b.jpg 1\n"
            (folder / where / f"ImageNet_LT_{split}.txt").write_text(lines)
        args = flags(list_dir="elsewhere" if where == "elsewhere" else None)
        loaded = imagenet.load_imagenet(args)
        assert loaded.cls_num_list == [1, 1]
        views, label = loaded.train[1]
        assert label == 1 and [view.shape for view in views] == [(3, 224, 224)] * 3
        assert loaded.test[0][0].shape == (3, 224, 224)
        with pytest.raises(UsageError, match="no ImageNet_LT_train"):
            imagenet.load_imagenet(flags(list_dir="nowhere"))


def test_batches_keep_views_labels_and_indices_together():
    args = flags(fake_data=4, beta=0.0)
    loaded = imagenet.load_imagenet(args)
    feed = {"workers": 0, "seed": 0, "process": CPU, "finish": imagenet.normalized(args)}
    [(views, target, index)] = WorkersLoader(loaded.train, 4, **feed)
    assert len(views) == 2 and views[0].shape == (4, 3, 224, 224)
    assert sorted(index.tolist()) == [0, 1, 2, 3]
    assert torch.equal(target, index % 2)
    assert abs(float(views[0].mean())) < 2 and float(views[0].std()) > 0.1


def test_generated_cifar_has_images_of_every_size_and_no_empty_class():
    made = data.load_cifar(flags(fake_data=6, num_classes=10))
    assert made.train.images.shape == (6, 32, 32, 3)
    assert made.cls_num_list == [1] * 10 and len(made.test.images) == 1


def test_a_part_of_generated_images_is_held_out_and_chosen_on():
    for load, more in ((data.load_cifar, {}), (imagenet.load_imagenet, {"beta": 0.0})):
        made = load(flags(fake_data=12, num_classes=3, val_fraction=0.5, **more))
        assert made.chosen_on == "held-out" and made.cls_num_list == [2] * 3
        assert np.bincount(made.val.targets).tolist() == [2] * 3
        assert len(made.train.targets) == 6 and len(made.test.targets) == 3


def test_an_image_folder_has_no_lists():
    for name in ("list_dir", "classes"):
        with pytest.raises(UsageError, match=f"--{name} x: for list files; an image folder's"):
            imagenet.load_imagenet(flags(dataset="imagefolder", **{name: "x"}))


def test_a_batch_larger_than_the_data_is_refused_but_for_generated_images():
    assert data.train_batch_size(flags(), 9) == 4
    assert data.train_batch_size(flags(), 9, machines=2) == 8
    assert data.train_batch_size(flags(fake_data=3), 3) == 3
    with pytest.raises(UsageError, match="--batch-size 4: the training set has only 3 images"):
        data.train_batch_size(flags(), 3)
    queue = {"beta": 1.0, "moco_k": 2}
    assert data.train_batch_size(flags(evaluate=True, **queue), 3) == 3  # nothing is trained


def test_a_queue_shorter_than_a_batch_is_refused():
    short = {"beta": 1.0, "moco_k": 3}
    with pytest.raises(UsageError, match="--moco-k 3: the queue has to hold a batch, 4 or more"):
        data.train_batch_size(flags(**short), 9)
    assert data.train_batch_size(flags(**short, base_k=1), 9) == 4  # a ring for each class
    assert data.train_batch_size(flags(**short, fake_data=3), 3) == 3
