"""Cutout against the original's masks, blur against Pillow's."""

import random

import numpy as np
import torch
from PIL import Image, ImageFilter

from dbm_loss.augment.transforms import Cutout, GaussianBlur


def test_cutout_masks(golden):
    cases = (
        (golden("dbm_loss_cifar")["cutout.masks"], 0),
        (golden("dbm_loss_gml")["cutout_masks"], golden("dbm_loss_gml").facts["seed"]),
    )
    for masks, first in cases:
        for step, mask in enumerate(masks):
            np.random.seed(first + step)
            image = torch.ones(3, 32, 32)
            kept = Cutout(16)(image)
            assert torch.equal(kept, torch.from_numpy(mask).float().expand(3, 32, 32))
            assert torch.equal(image, torch.ones(3, 32, 32))


def test_blur_draws_its_radius_from_random(golden):
    image = Image.fromarray(golden("dbm_loss_cifar")["aug.image"])
    random.seed(4)
    radius = random.uniform(0.1, 2.0)
    random.seed(4)
    assert GaussianBlur((0.1, 2.0))(image) == image.filter(ImageFilter.GaussianBlur(radius))
