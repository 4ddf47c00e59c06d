"""Recipes for whole batches: their plan, their draws, and the per-image recipe they stand for."""

from functools import partial

import pytest
import torch
from PIL import ImageFilter
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from datasets.augment import batch as shared
from datasets.augment import batch_geometry as shared_geometry
from datasets.augment import colours
from dbm_loss.augment import batch, ops, policies
from dbm_loss.augment import batch_geometry as geometry
from tests.unit.pixels import from_pil, pictures, to_pil

OPERATIONS = list(batch.AUTO_AUGMENT_OPS)
MANY = 100_000


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def near(frequency, probability, count=MANY):
    """Within five standard deviations of a binomial share."""
    return abs(frequency - probability) <= 5 * (probability * (1 - probability) / count) ** 0.5


def to_tensor(image):
    return T.Normalize(colours.CIFAR_MEAN, colours.CIFAR_STD)(T.ToTensor()(image))


def test_normalize_is_torchvisions_to_the_last_bit():
    images = pictures()
    expected = torch.stack([to_tensor(to_pil(image)) for image in images])
    assert torch.equal(shared.cifar_eval(images), expected)


def test_apply_plan_runs_every_step_on_its_own_samples():
    def add(amount):
        return lambda images, magnitude: images + amount + magnitude.byte().view(-1, 1, 1, 1)

    operations = [add(1), add(10), lambda images, magnitude: images * 2]
    choice = torch.randint(-1, 3, (5, 40), generator=generator())
    magnitude = torch.randint(0, 3, (5, 40), generator=generator()).double()
    images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 3, 2, 2).contiguous()
    before = images.clone()
    out = batch.apply_plan(images, choice, magnitude, operations)
    for sample in range(40):
        value = torch.tensor([sample], dtype=torch.uint8)
        for step in range(5):
            if choice[step, sample] >= 0:
                own = magnitude[step, sample].view(1)
                value = operations[choice[step, sample]](value.view(1, 1, 1, 1), own).view(1)
        assert (out[sample] == value).all()
    assert torch.equal(images, before)


def test_apply_plan_of_nothing_changes_nothing():
    images = pictures()
    choice = torch.full((2, 63), -1)
    out = batch.apply_plan(images, choice, torch.zeros(2, 63).double(), [])
    assert torch.equal(out, images)


def of_image(image, name, magnitude):
    """One drawn operation by the per-image code, without its own draws."""
    return policies.AUTO_AUGMENT_OPS[name](image, magnitude)


def test_view_a_is_the_per_image_recipe_with_the_same_parameters():
    for policy in policies.AUTO_AUGMENT_NAMES:
        images = pictures()
        out = batch.view_a(images, generator(), aug_type=policy, cutout=True)
        g = generator()  # the same draws again, in the recipe's order
        top, left = shared_geometry.draw_crop(63, (32, 32), 4, 32, g)
        flipped = shared_geometry.draw_coin(63, 0.5, g)
        choice, magnitude = batch.draw_auto_augment(63, g, policy)
        row, column = geometry.draw_cutout(63, (32, 32), g)
        for b in range(63):
            image = TF.crop(TF.pad(to_pil(images[b]), [4]), int(top[b]), int(left[b]), 32, 32)
            image = TF.hflip(image) if flipped[b] else image
            for step in range(2):
                if choice[step, b] >= 0:
                    image = of_image(image, OPERATIONS[choice[step, b]], float(magnitude[step, b]))
            tensor = T.ToTensor()(image)
            y, x = int(row[b]), int(column[b])
            tensor[:, max(0, y - 8) : y + 8, max(0, x - 8) : x + 8] = 0
            expected = T.Normalize(colours.CIFAR_MEAN, colours.CIFAR_STD)(tensor)
            assert torch.equal(out[b], expected), f"sample {b}"


def test_cifar_train_is_the_per_image_recipe_with_the_same_parameters():
    images = pictures()
    out = shared.cifar_train(images, generator())
    assert torch.equal(out, batch.view_a(images, generator()))
    g = generator()
    top, left = shared_geometry.draw_crop(63, (32, 32), 4, 32, g)
    flipped = shared_geometry.draw_coin(63, 0.5, g)
    for b in range(63):
        image = TF.crop(TF.pad(to_pil(images[b]), [4]), int(top[b]), int(left[b]), 32, 32)
        assert torch.equal(out[b], to_tensor(TF.hflip(image) if flipped[b] else image))


def test_view_s_is_the_per_image_recipe_with_the_same_parameters():
    images = pictures()
    out = batch.view_s(images, generator())
    g = generator()
    top, left, height, width = shared_geometry.draw_resized_crop(63, (32, 32), (0.2, 1.0), g)
    flipped = shared_geometry.draw_coin(63, 0.5, g)
    choice, magnitude = batch.draw_contrastive(63, g)
    per_image = [
        ops.brightness,
        ops.contrast,
        ops.color,
        TF.adjust_hue,
        lambda image, _: TF.to_grayscale(image, 3),
        lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
    ]
    different = 0
    for b in range(63):
        image = TF.hflip(to_pil(images[b])) if flipped[b] else to_pil(images[b])
        box = (int(top[b]), int(left[b]), int(height[b]), int(width[b]))
        image = TF.resized_crop(image, *box, [32, 32])
        for step in range(6):
            if choice[step, b] >= 0:
                image = per_image[choice[step, b]](image, float(magnitude[step, b]))
        different += (out[b] != to_tensor(image)).float().mean() / 63
    assert different < 0.001  # where the resize rounds to the neighbouring level


def test_random_resized_crop_flip_is_imagenet_train():
    images = pictures(64, 64)[:8]
    out = shared.random_resized_crop_flip(images, generator(), size=224)
    g = generator()
    box = shared_geometry.draw_resized_crop(8, (64, 64), (0.08, 1.0), g)
    flipped = shared_geometry.draw_coin(8, 0.5, g)
    assert out.shape == (8, 3, 224, 224)
    normalize = T.Normalize(colours.IMAGENET_MEAN, colours.IMAGENET_STD)
    for b in range(8):
        image = TF.hflip(to_pil(images[b])) if flipped[b] else to_pil(images[b])
        image = TF.resized_crop(image, *(int(side[b]) for side in box), [224, 224])
        expected = normalize(from_pil(image).float() / 255)
        torch.testing.assert_close(out[b], expected, atol=0.018, rtol=0)  # one grey level


def test_sub_policies_are_uniform_and_operations_keep_their_probabilities():
    for policy in policies.AUTO_AUGMENT_NAMES:
        choice, magnitude = batch.draw_auto_augment(MANY, generator(), policy)
        table = policies.policy_table(policy)
        expected = torch.zeros(
            15, 15, dtype=torch.float64
        )  # joint over both steps, 14 = left alone
        for p1, op1, _, p2, op2, _ in table:
            for first, share1 in ((OPERATIONS.index(op1), p1), (14, 1 - p1)):
                for second, share2 in ((OPERATIONS.index(op2), p2), (14, 1 - p2)):
                    expected[first, second] += share1 * share2 / 25
        pairs = choice.remainder(15)  # -1 becomes 14
        seen = torch.bincount(pairs[0] * 15 + pairs[1], minlength=225).view(15, 15) / MANY
        for first in range(15):
            for second in range(15):
                assert near(seen[first, second], expected[first, second])
        for step in range(2):
            for name in OPERATIONS:
                values = magnitude[step][choice[step] == OPERATIONS.index(name)]
                parts = [entry[3 * step : 3 * step + 3] for entry in table]
                indices = {index for share, op, index in parts if op == name and share > 0}
                allowed = policies.AUTO_AUGMENT_MAGNITUDES[name][sorted(indices)]
                if name in policies.GEOMETRIC:
                    allowed = [*allowed, *-allowed]
                elif name in policies.ENHANCEMENTS:
                    allowed = [*(1 + allowed), *(1 - allowed)]
                assert set(values.tolist()) == {float(value) for value in allowed}
                if name in policies.GEOMETRIC and len(values):
                    assert near((values > 0).double().mean(), 0.5, len(values))


def test_contrastive_draws():
    choice, magnitude = batch.draw_contrastive(MANY, generator())
    jitter, grey, blur = choice[:4], choice[4], choice[5]
    assert near((jitter[0] >= 0).double().mean(), 0.8)
    assert near((grey == 4).double().mean(), 0.2)
    assert near((blur == 5).double().mean(), 0.5)
    applied = jitter[:, jitter[0] >= 0]
    assert torch.equal(applied.sort(dim=0).values, torch.arange(4)[:, None].expand_as(applied))
    for step in range(4):
        for operation in range(4):
            share = (applied[step] == operation).double().mean()
            assert near(share, 0.25, applied.shape[1])
    for operation, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        values = magnitude[:4][jitter == operation]
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert near((values < (low + high) / 2).double().mean(), 0.5, len(values))
    sigma = magnitude[5]
    assert 0.1 <= sigma.min() < 0.11 and 1.99 < sigma.max() <= 2.0
    assert near((sigma < 1.05).double().mean(), 0.5)


RECIPES = {
    "cifar_train": shared.cifar_train,
    "view_a": partial(batch.view_a, aug_type="autoaug_svhn", cutout=True),
    "view_s": batch.view_s,
    "random_resized_crop_flip": partial(shared.random_resized_crop_flip, size=48),
}


def test_nothing_waits_for_the_device():
    """Tensors on the meta device have no values: whatever would read one on the host fails."""
    for recipe in RECIPES.values():
        images = torch.empty(63, 3, 32, 32, dtype=torch.uint8, device="meta")
        out = recipe(images, generator())
        assert out.device.type == "meta" and out.dtype == torch.float32


def test_recipes_repeat_from_a_seed_and_leave_their_input_alone():
    for recipe in RECIPES.values():
        images = pictures()
        before = images.clone()
        first = recipe(images, generator(1))
        assert first.dtype == torch.float32
        assert torch.equal(first, recipe(images, generator(1)))
        assert not torch.equal(first, recipe(images, generator(2)))
        assert torch.equal(images, before)


def test_cutout_holes_are_black():
    white = torch.full((50, 3, 32, 32), 255, dtype=torch.uint8)
    plain = batch.view_a(white, generator())
    cut = batch.view_a(white, generator(), cutout=True)
    black = shared.cifar_eval(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))
    holes = (cut == black) & (plain != black)
    assert torch.equal(torch.where(holes, plain, cut), plain)
    assert (holes.flatten(1).sum(dim=1) > 0).all()


def test_policies_that_need_single_images_are_refused():
    for name in ("randaug", "faa_cifar", "autoaug"):
        with pytest.raises(ValueError, match=f"'{name}' does not run on whole batches"):
            batch.view_a(pictures(), generator(), aug_type=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_same_pixels_on_a_gpu_without_waiting_for_it(recipe):
    images = pictures()
    on_device = images.cuda()
    recipe(on_device, generator())  # the first call may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = recipe(on_device, generator())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = recipe(images, generator())
    assert ((out.cpu() - expected).abs() > 0.05).float().mean() < 0.001
