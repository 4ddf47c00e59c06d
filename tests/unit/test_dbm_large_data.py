"""dbm_loss.large_scale.data: the original's recipes and lists, folders, generated images, CMO."""

import random
from argparse import Namespace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from common.training.errors import UsageError
from common.training.launch import Process
from datasets.augment import batch as shared
from datasets.augment import recipes as shared_recipes
from datasets.loaders import WorkersLoader, drawn_by_weight
from dbm_loss.large_scale.data import (
    MEAN_STD,
    Source,
    Views,
    balanced_weights,
    load_data,
    make_loaders,
    to_bytes,
    train_recipes,
)
from tests.unit.pixels import assert_summary

CPU = Process(torch.device("cpu"))


@pytest.fixture(scope="module")
def g(golden):
    return golden("dbm_loss_large_scale")


def flags(**changed) -> Namespace:
    defaults = {
        "dataset": "imgnet", "loss_fn": "bcl", "root": ".", "list_dir": None, "eval_list": None,
        "classes": None, "fake_data": 0, "num_classes": None, "cmo": False, "weighted_alpha": 1.0,
        "batch_size": 4, "workers": 0, "val_fraction": 0.0,
    }  # fmt: skip
    return Namespace(**{**defaults, **changed})


def opened(args):
    return load_data(Source.of(args), train_recipes(args.loss_fn))


def picture() -> Image.Image:
    """The golden numbers' synthetic image."""
    x, y = np.meshgrid(np.arange(300), np.arange(260))
    planes = [x * 255 // 299, y * 255 // 259, (3 * x + 5 * y) % 256]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def summary(image: torch.Tensor) -> np.ndarray:
    image = image.double()
    return torch.cat(
        [image[:, ::32, ::32].flatten(), image.mean().view(1), image.std().view(1)]
    ).numpy()


def normalised(pixels: torch.Tensor, dataset: str) -> torch.Tensor:
    assert pixels.dtype == torch.uint8
    return shared.normalize(pixels[None], *MEAN_STD[dataset])[0]


def test_recipes_are_the_originals(g):
    for dataset in ["imgnet", "inat"]:
        golden = g[f"pipe_{dataset}_bcl_views"]  # seeds x views x numbers
        views = Views([to_bytes(recipe) for recipe in train_recipes("bcl")])
        for s in range(len(golden)):
            seed = g.facts["seed"] + s
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            for view, expected in zip(views(picture()), golden[s], strict=True):
                assert_summary(summary(normalised(view, dataset)), expected)
        [plain] = train_recipes("ce")
        seed = g.facts["seed"]
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        pixels = to_bytes(plain)(picture())
        assert_summary(summary(normalised(pixels, dataset)), g[f"pipe_{dataset}_ce"])
        pixels = to_bytes(shared_recipes.imagenet_eval())(picture())
        assert_summary(summary(normalised(pixels, dataset)), g[f"pipe_{dataset}_val"])


def test_bytes_normalised_on_the_device_are_the_recipe_bit_for_bit():
    recipe = shared_recipes.imagenet_eval()
    assert isinstance(recipe.transforms[-1], T.Normalize)
    assert torch.equal(recipe(picture()), normalised(to_bytes(recipe)(picture()), "imgnet"))


def write_list(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"{name} {label}" for name, label in rows))


def images(root, rows) -> None:
    for name, label in rows:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (label * 60, 0, 0)).save(root / name)


TRAIN = [("train/a/1.jpg", 0), ("train/b/1.jpg", 1), ("train/a/2.jpg", 0), ("train/c/1.jpg", 2)]
TEST = [("val/a/1.jpg", 0), ("val/b/1.jpg", 1), ("val/c/1.jpg", 2)]


def test_lists_are_found(tmp_path, monkeypatch):
    for place in ["root", "root/config/ImageNet", "config/ImageNet", "--list_dir"]:
        folder = Path(mkdtemp(dir=tmp_path))
        monkeypatch.chdir(folder)
        images(folder / "root", TRAIN + TEST)
        lists = folder / place.removeprefix("--")
        write_list(lists / "ImageNet_LT_train.txt", TRAIN)
        write_list(lists / "ImageNet_LT_test.txt", TEST)
        list_dir = str(lists) if place == "--list_dir" else None
        data = opened(flags(root="root", num_classes=3, list_dir=list_dir))
        assert data.cls_num_list == [2, 1, 1]
        assert len(data.train) == 4 and len(data.test) == 3
        assert len(data.notes) == 3 and "115,846" in data.notes[0]
        views, label = data.train[3]
        assert label == 2 and [view.shape for view in views] == [(3, 224, 224)] * 3
        image, label = data.test[1]
        assert label == 1 and image.shape == (3, 224, 224)


def test_eval_list_replaces_the_test_list(tmp_path):
    images(tmp_path, TRAIN + TEST)
    write_list(tmp_path / "iNaturalist18_train.txt", TRAIN)
    write_list(tmp_path / "mine.txt", TEST[:2])
    args = flags(dataset="inat", root=tmp_path, eval_list=tmp_path / "mine.txt")
    assert len(opened(args).test) == 2


def test_image_folder_is_read_lazily_and_checked(tmp_path):
    images(tmp_path, TRAIN + TEST)
    args = flags(dataset="imagefolder", root=tmp_path, loss_fn="ce")
    data = opened(args)
    assert data.cls_num_list == [2, 1, 1]
    views, label = data.train[0]
    assert label == 0 and [view.shape for view in views] == [(3, 224, 224)]
    (tmp_path / "train/a/1.jpg").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"1\.jpg"):
        data.train[0]
    assert (data.split, data.classes) == ("val", ["a", "b", "c"])
    (tmp_path / "val/c").rename(tmp_path / "val/d")
    with pytest.raises(UsageError, match="'d'"):
        opened(args)


def test_missing_data_is_named(tmp_path, monkeypatch):
    cases = [
        ({"root": "nowhere"}, "ImageNet_LT_train.txt"),
        ({"root": "root", "num_classes": 1000}, "--num_classes 1000"),
        ({"dataset": "imagefolder", "root": "nowhere"}, "nowhere"),
        ({"dataset": "imagefolder", "list_dir": "a"}, "--list_dir a: for list files; an image"),
        ({"dataset": "imagefolder", "eval_list": "b"}, "--eval_list b: for list files; an image"),
        ({"dataset": "imagefolder", "classes": "c"}, "--classes c: for list files; an image"),
    ]
    for changed, named in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        monkeypatch.chdir(folder)
        images(folder / "root", TRAIN + TEST)
        write_list(folder / "root/ImageNet_LT_train.txt", TRAIN)
        write_list(folder / "root/ImageNet_LT_test.txt", TEST)
        with pytest.raises(UsageError, match=named):
            opened(flags(**changed))


def test_fake_data_needs_no_files_and_leaves_no_class_empty():
    data = opened(flags(dataset="inat", fake_data=5, num_classes=8142))
    assert len(data.classes) == 8142 and min(data.cls_num_list) == 1
    assert len(data.train) == 5 and len(data.test) == 1
    views, label = data.train[4]
    assert label == 4 and len(views) == 3 and views[0].float().std() > 10


def test_batches_come_views_below_each_other(tmp_path):
    args = flags(fake_data=4, num_classes=2)
    data = opened(args)
    loader, _, test_loader, balanced = make_loaders(
        data, args, seed=3, process=CPU, memory_format=torch.channels_last
    )
    assert balanced is None
    [(x, target, index)] = loader
    assert x.shape == (12, 3, 224, 224) and x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert sorted(target.tolist()) == [0, 0, 1, 1]
    [(views, _, _)] = WorkersLoader(data.train, 4, workers=0, seed=3, process=CPU)
    assert torch.equal(x[4:8], shared.normalize(views[1], *MEAN_STD["imgnet"]))
    assert target.tolist() == (index % 2).tolist()
    [(x, target, _)] = test_loader
    assert x.shape == (1, 3, 224, 224)


def test_balanced_draws_are_the_originals(g):
    labels = g["wrs_labels"]
    weights = balanced_weights(labels, np.bincount(labels))
    np.testing.assert_allclose(weights, g["wrs_sample_weight"], rtol=1e-12)
    generator = torch.Generator().manual_seed(g.facts["wrs_torch_seed"])
    drawn = drawn_by_weight(weights, len(labels))(generator)
    assert drawn.tolist() == g["wrs_indices"].tolist()


def test_cmo_draws_every_class_equally_often(capsys):
    args = flags(loss_fn="ce", cmo=True, fake_data=6, num_classes=3)
    data = opened(args)
    *_, balanced = make_loaders(data, args, seed=0, process=CPU)
    assert sum(len(target) for _, target, _ in balanced) == 6
    capsys.readouterr()
    make_loaders(data, flags(cmo=True, batch_size=5), seed=0, process=CPU)
    assert capsys.readouterr().out.count("6 images in batches of 5 leave 1 over") == 1
    counts = [90, 9, 1]
    targets = np.repeat([0, 1, 2], counts)
    for alpha, shares in ((1.0, [1, 1, 1]), (0.0, counts)):
        weights = balanced_weights(targets, counts, alpha)
        per_class = np.bincount(targets, weights=weights)
        np.testing.assert_allclose(per_class / per_class.sum(), np.array(shares) / sum(shares))
