"""Whole per-image pipelines against the outputs of the original programs."""

import random

import numpy as np
import torch
from PIL import Image

from datasets.augment import colours
from datasets.augment import recipes as shared_recipes
from dbm_loss.augment import recipes
from tests.unit.pixels import RESAMPLED

COLOURS = {
    "imgnet": {"mean": colours.IMAGENET_MEAN, "std": colours.IMAGENET_STD},
    "imagenet": {"mean": colours.IMAGENET_MEAN, "std": colours.IMAGENET_STD},
    "inat": {"mean": colours.INAT_MEAN, "std": colours.INAT_STD},
}


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def assert_near(actual, expected, tolerance=RESAMPLED):
    np.testing.assert_allclose(np.asarray(actual), expected, atol=tolerance, rtol=0)


def test_dbm_cifar_views(golden):
    cases = [
        ("ce", "none", "a"),
        ("ce", "autoaug_cifar", "a"),
        ("ncl", "autoaug_cifar", "as"),
        ("bcl", "autoaug_cifar", "ass"),
    ]
    for loss, aug_type, views in cases:
        g = golden("dbm_loss_cifar")
        image = Image.fromarray(g["aug.image"])
        pipelines = {
            "a": recipes.view_a(aug_type=aug_type, cutout=True),
            "s": recipes.view_s(),
        }
        for row, seed in enumerate(g["pipeline.seeds"]):
            seed_everything(int(seed))
            for column, view in enumerate(views):
                assert_near(pipelines[view](image), g[f"pipeline.{loss}.{aug_type}"][row, column])


def test_ib_loss_cifar(golden):
    g = golden("ib_loss")
    aug = g.facts["aug"]
    pixels = np.random.RandomState(aug["image_seed"]).randint(0, 256, (4, 32, 32, 3))
    images = [Image.fromarray(image) for image in pixels.astype(np.uint8)]
    torch.manual_seed(aug["torch_seed"])
    views = torch.stack([shared_recipes.cifar_train()(image) for image in images])
    assert_near(views[..., ::4, ::4], g["aug_cifar_train"], 1e-5)
    assert_near(views.double().sum(dim=(1, 2, 3)), g["aug_cifar_train_sum"], 1e-2)
    views = torch.stack([shared_recipes.cifar_eval()(image) for image in images])
    assert_near(views[..., ::4, ::4], g["aug_cifar_val"], 1e-5)


def test_ib_loss_tiny_imagenet(golden):
    g = golden("ib_loss")
    aug = g.facts["aug"]
    pixels = np.random.RandomState(aug["tiny_image_seed"]).randint(0, 256, (2, 64, 64, 3))
    images = [Image.fromarray(image) for image in pixels.astype(np.uint8)]
    torch.manual_seed(aug["tiny_torch_seed"])
    views = torch.stack([shared_recipes.imagenet_train()(image) for image in images])
    assert_near(views[..., ::16, ::16], g["aug_tiny_train"])
    views = torch.stack([shared_recipes.imagenet_eval()(image) for image in images])
    assert_near(views[..., ::16, ::16], g["aug_tiny_val"])


def test_arbloss_large(golden):
    for dataset in ["imagenet", "ina2018", "places"]:
        g = golden("arbloss")
        height, width = g.facts["transforms"]["large_size_hw"]
        source = Image.fromarray(g["tf_src_8x8"]).resize((width, height), Image.Resampling.BICUBIC)
        colours = COLOURS["inat" if dataset == "ina2018" else "imagenet"]
        view = shared_recipes.imagenet_eval(**colours)(source)
        assert_near(view[:, ::32, ::32], g[f"tf_eval_{dataset}_sub"])
        np.testing.assert_allclose(
            view.double().sum(dim=(1, 2)), g[f"tf_eval_{dataset}_sum"], atol=RESAMPLED * 224**2 / 10
        )
        torch.manual_seed(g.facts["transforms"]["torch_seed"])
        view = shared_recipes.imagenet_train(jitter=0.4, **colours)(source)
        assert_near(view[:, ::32, ::32], g[f"tf_train_{dataset}_sub"])


def test_arbloss_cifar(golden):
    for dataset in ["cifar10", "cifar100"]:
        g = golden("arbloss")
        source = Image.fromarray(g["tf_cifar_src"])
        assert_near(shared_recipes.cifar_eval()(source), g[f"tf_eval_{dataset}"], 1e-5)
        torch.manual_seed(g.facts["transforms"]["torch_seed"])
        draws = g.facts["transforms"]["n_train_draws"]
        views = torch.stack([shared_recipes.cifar_train()(source) for _ in range(draws)])
        assert_near(views[..., ::4, ::4], g[f"tf_train_{dataset}"], 1e-5)
