"""Crops, resizes and warps of a whole batch give Pillow's pixels; their draws torchvision's."""

from itertools import product

import numpy as np
import pytest
import torch
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from datasets.augment import batch_geometry as shared_geometry
from dbm_loss.augment import batch_geometry as geometry
from dbm_loss.augment import ops
from dbm_loss.augment.policies import AUTO_AUGMENT_MAGNITUDES, AUTO_AUGMENT_OPS
from dbm_loss.augment.transforms import Cutout
from tests.unit.pixels import image_by_image, largest_difference, pictures


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(low, high):
    return torch.rand(63, generator=generator(), dtype=torch.float64) * (high - low) + low


WARPS = {
    "shearX": (geometry.shear_x, 0.4),
    "shearY": (geometry.shear_y, 0.4),
    "translateX": (geometry.translate_x, 1.0),
    "translateY": (geometry.translate_y, 1.0),
    "rotate": (geometry.rotate, 89.0),
}


def test_warps_at_random_magnitudes():
    for size, name in product([(32, 32), (20, 31)], WARPS):
        of_batch, limit = WARPS[name]
        images, magnitude = pictures(*size), uniform(-limit, limit)
        expected = image_by_image(AUTO_AUGMENT_OPS[name], images, magnitude)
        assert largest_difference(of_batch(images, magnitude), expected) == 0


def test_warps_at_the_magnitudes_of_the_policies():
    for name in WARPS:
        of_batch, _ = WARPS[name]
        images = pictures()
        for sign in (-1, 1):
            magnitude = (
                sign * torch.from_numpy(AUTO_AUGMENT_MAGNITUDES[name])[torch.arange(63) % 10]
            )
            expected = image_by_image(AUTO_AUGMENT_OPS[name], images, magnitude)
            assert largest_difference(of_batch(images, magnitude), expected) == 0


def test_translations_by_half_pixels():
    for name in ["translateX", "translateY"]:
        images, magnitude = pictures(), torch.arange(-31, 32, dtype=torch.float64) / 64
        expected = image_by_image(AUTO_AUGMENT_OPS[name], images, magnitude)
        assert largest_difference(WARPS[name][0](images, magnitude), expected) == 0


def test_crop_counts_from_the_padded_corner():
    images = pictures()
    top, left = shared_geometry.draw_crop(63, (32, 32), 4, 32, generator())
    expected = image_by_image(
        lambda image, y, x: TF.crop(TF.pad(image, [4]), y, x, 32, 32), images, top, left
    )
    assert torch.equal(shared_geometry.crop(images, top, left, 4, 32), expected)


def test_flip():
    images = pictures()[:4]
    out = shared_geometry.flip(images, torch.tensor([True, False, False, True]))
    assert torch.equal(out[[1, 2]], images[[1, 2]])
    assert torch.equal(out[[0, 3]], images[[0, 3]].flip(3))


def test_cutout_masks(golden):
    masks = golden("dbm_loss_cifar")["cutout.masks"]
    centres = []
    for seed in range(len(masks)):
        np.random.seed(seed)
        centres.append((np.random.randint(32), np.random.randint(32)))
    row, column = torch.tensor(centres).T
    out = geometry.cutout(torch.full((len(masks), 3, 32, 32), 9, dtype=torch.uint8), row, column)
    assert torch.equal(out, torch.from_numpy(masks)[:, None].expand(-1, 3, -1, -1) * 9)


def test_cutout_at_the_borders(monkeypatch):
    for row, column in [(0, 0), (31, 31), (8, 23), (7, 24)]:
        drawn = iter((row, column))
        monkeypatch.setattr(np.random, "randint", lambda _: next(drawn))
        expected = Cutout(16)(torch.ones(3, 32, 32)).byte()
        ones = torch.ones(1, 3, 32, 32, dtype=torch.uint8)
        out = geometry.cutout(ones, torch.tensor([row]), torch.tensor([column]))
        assert torch.equal(out[0], expected)


@pytest.mark.parametrize("size", [8, 9, 16, 64])
def test_cutout_is_half_of_any_side(size):
    """A square of 16 pixels in all of them would leave nothing of 8, and little to learn of 16."""
    row, column = geometry.draw_cutout(40_000, (size, size), generator())
    out = geometry.cutout(torch.ones(40_000, 1, size, size, dtype=torch.uint8), row, column)
    side = size // 2 // 2 * 2
    assert (out == 0).flatten(1).sum(1).max() == side**2
    # Its mean length in a row, cut at both borders.
    middle = torch.arange(size)
    length = ((middle + side // 2).clamp(max=size) - (middle - side // 2).clamp(min=0)).double()
    torch.testing.assert_close(
        (out == 0).double().mean(), (length.mean() / size) ** 2, rtol=0, atol=2e-3
    )


def test_resized_crop_within_one_level():
    cases = [
        ((32, 32), 32, 0.005),
        ((64, 64), 224, 0.005),
        ((57, 64), 64, 0.005),
        ((64, 48), 20, 0.03),
    ]
    for source, size, rounded in cases:
        images = pictures(*source)
        box = shared_geometry.draw_resized_crop(63, source, (0.08, 1.0), generator())

        def of_image(image, top, left, height, width):
            return TF.resized_crop(image, top, left, height, width, [size, size])

        expected = image_by_image(of_image, images, *box)
        actual = shared_geometry.resized_crop(images, *box, size)
        assert largest_difference(actual, expected) <= 1
        assert (actual != expected).float().mean() < rounded


def test_resize_of_one_pixel_and_of_everything():
    images = pictures()
    full, none = torch.full((63,), 32), torch.zeros(63, dtype=torch.int64)
    assert torch.equal(shared_geometry.resized_crop(images, none, none, full, full, 32), images)
    one = torch.ones(63, dtype=torch.int64)
    out = shared_geometry.resized_crop(images, one * 5, one * 31, one, one, 32)
    assert torch.equal(out, images[:, :, 5:6, 31:32].expand_as(out))


def test_crop_corners_are_uniform():
    top, left = shared_geometry.draw_crop(81_000, (32, 32), 4, 32, generator())
    cells = torch.bincount(top * 9 + left, minlength=81)
    assert cells.numel() == 81
    assert (cells - 1000).abs().max() < 5 * 1000**0.5


def test_cutout_centres_are_uniform():
    row, column = geometry.draw_cutout(320_000, (32, 32), generator())
    for centre in (row, column):
        cells = torch.bincount(centre, minlength=32)
        assert cells.numel() == 32
        assert (cells - 10_000).abs().max() < 5 * 100
    assert abs(np.corrcoef(row, column)[0, 1]) < 0.01


def test_resized_crop_boxes_are_torchvisions():
    for scale in [(0.2, 1.0), (0.08, 1.0)]:
        box = torch.stack(
            shared_geometry.draw_resized_crop(20_000, (32, 32), scale, generator())
        ).double()
        top, left, height, width = box
        assert ((top >= 0) & (left >= 0) & (top + height <= 32) & (left + width <= 32)).all()
        torch.manual_seed(0)
        image = torch.zeros(3, 32, 32)
        reference = torch.tensor(
            [
                T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
                for _ in range(4000)
            ]
        ).T.double()
        for ours, theirs in zip(box, reference, strict=True):
            error = theirs.std() * (1 / 4000 + 1 / 20_000) ** 0.5
            assert (ours.mean() - theirs.mean()).abs() < 4 * error
            assert (ours.std() / theirs.std() - 1).abs() < 0.05
        aspect = (width / height).log()  # symmetric about 0
        assert aspect.mean().abs() < 4 * aspect.std() / 20_000**0.5
        area, of_reference = height * width, reference[2] * reference[3]
        for share in (0.1, 0.5, 0.9):
            assert (area.quantile(share) / of_reference.quantile(share) - 1).abs() < 0.08


def test_resized_crop_falls_back_to_the_centre():
    """An area above the whole image never fits: torchvision takes the largest allowed centre."""
    for source in [(10, 100), (100, 10), (30, 30), (90, 100)]:
        box = shared_geometry.draw_resized_crop(4, source, (1.2, 1.3), generator())
        image = torch.zeros(3, *source)
        expected = T.RandomResizedCrop.get_params(image, [1.2, 1.3], [3 / 4, 4 / 3])
        assert torch.stack(box, dim=1).tolist() == [list(expected)] * 4


def test_warps_fill_with_the_given_level():
    images = torch.full((1, 3, 8, 8), 50, dtype=torch.uint8)
    moved = geometry.translate_x(images, torch.tensor([0.5]), fill=7)
    assert torch.equal(moved[..., :4], images[..., :4])
    assert (moved[..., 4:] == 7).all()
    turned = geometry.rotate(images, torch.tensor([45.0]), fill=7)
    assert turned[0, 0, 0, 0] == 7
    assert turned[0, 0, 4, 4] == 50
    assert ops.GREY == (geometry.GREY,) * 3
