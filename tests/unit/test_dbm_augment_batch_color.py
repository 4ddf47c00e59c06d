"""Colour operations of a whole batch give Pillow's pixels, image by image."""

from itertools import product

import torch
from PIL import ImageFilter
from torchvision.transforms import functional as TF

from dbm_loss.augment import batch_color, ops
from tests.unit.pixels import image_by_image, largest_difference, pictures


def uniform(low, high, count=63):
    g = torch.Generator().manual_seed(1)
    return torch.rand(count, generator=g, dtype=torch.float64) * (high - low) + low


def blur(image, sigma):
    return image.filter(ImageFilter.GaussianBlur(sigma))


def test_same_pixels_as_pillow():
    cases = [
        ("brightness", ops.brightness, uniform(0, 2)),
        ("contrast", ops.contrast, uniform(0, 2)),
        ("color", ops.color, uniform(0, 2)),
        ("sharpness", ops.sharpness, uniform(0, 2)),
        ("posterize", ops.posterize, torch.arange(63).remainder(9).double()),
        ("solarize", ops.solarize, uniform(-1, 257)),
        (
            "solarize",
            ops.solarize,
            torch.tensor([0.0, 128.0, 256.0], dtype=torch.float64).repeat(21),
        ),
        ("auto_contrast", ops.auto_contrast, uniform(0, 1)),
        ("equalize", ops.equalize, uniform(0, 1)),
        ("invert", ops.invert, uniform(0, 1)),
        ("grayscale", lambda image, _: TF.to_grayscale(image, 3), uniform(0, 1)),
        ("hue", TF.adjust_hue, uniform(-0.5, 0.5)),
        ("hue", TF.adjust_hue, uniform(-0.1, 0.1)),
        ("gaussian_blur", blur, uniform(0.1, 2)),
        ("gaussian_blur", blur, torch.linspace(0, 2, 63, dtype=torch.float64)),
    ]
    for size, (name, of_image, magnitude) in product([(32, 32), (20, 31)], cases):
        images = pictures(*size)
        before = images.clone()
        actual = getattr(batch_color, name)(images, magnitude)
        assert largest_difference(actual, image_by_image(of_image, images, magnitude)) == 0
        assert torch.equal(images, before)


def test_hue_of_every_third_colour():
    level = torch.arange(0, 256, 3, dtype=torch.uint8)
    colours = torch.stack(torch.meshgrid(level, level, level, indexing="ij")).view(1, 3, 86, -1)
    for turn in (-0.3, 0.0, 0.1):
        magnitude = torch.tensor([turn], dtype=torch.float64)
        expected = image_by_image(TF.adjust_hue, colours, magnitude)
        assert largest_difference(batch_color.hue(colours, magnitude), expected) == 0


def test_wider_blur():
    images, sigma = pictures(40, 33), uniform(0.1, 6)
    actual = batch_color.gaussian_blur(images, sigma, max_sigma=6.0)
    assert largest_difference(actual, image_by_image(blur, images, sigma)) == 0


def test_sharpness_leaves_the_border():
    images = pictures()
    out = batch_color.sharpness(images, uniform(0, 2))
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    assert torch.equal(out[..., ~inside], images[..., ~inside])
    assert not torch.equal(out, images)


def test_a_magnitude_belongs_to_its_sample():
    images = pictures()[:1].expand(3, -1, -1, -1)
    out = batch_color.brightness(images, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))
    assert not out[0].any()
    assert torch.equal(out[1], images[1])
    assert torch.equal(out[2], images[2] // 2)
