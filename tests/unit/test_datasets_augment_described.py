"""What a checkpoint says of the evaluation's recipe makes that recipe again."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from datasets.augment import colours, described, recipes
from datasets.images import square
from hmloss.isic2019_implementation import data as isic

INAT = {"mean": colours.INAT_MEAN, "std": colours.INAT_STD}


def squared(side, recipe):
    """As the programs do that hold squares in memory."""
    return T.Compose([lambda image: square(image, side), recipe])


def test_a_recipe_is_told_and_made_again():
    cases = [
        (described.cifar(32), squared(32, recipes.cifar_eval())),
        (described.imagenet(), recipes.imagenet_eval()),
        (
            described.imagenet(resize=48, size=42, **INAT),
            recipes.imagenet_eval(resize=48, size=42, **INAT),
        ),
        (described.imagenet(square=64), squared(64, recipes.imagenet_eval())),
        (described.squeezed(30, isic.MEAN, isic.STD), isic.eval_transform(30)),
    ]
    for (told, recipe), shape in product(cases, [(300, 280, 3), (40, 57, 3), (32, 32, 3)]):
        told = json.loads(json.dumps(told))  # plain data
        image = Image.fromarray(np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8))
        assert torch.equal(recipes.from_description(told)(image), recipe(image))


@pytest.mark.parametrize(("entry", "message"), [
    ({"steps": None}, "'steps' is None, not a list of resizes and crops"),
    ({"steps": []}, "'steps' is [], not a list of resizes and crops"),
    ({"steps": ["crop"]}, "'steps' has 'crop', expected such as ['resize', 256]"),
    ({"steps": [["turn", 8]]}, "'steps' has ['turn', 8], expected such as ['resize', 256]"),
    ({"steps": [["crop", 8, 8]]}, "'steps' has ['crop', 8, 8], expected such as ['resize', 256]"),
    ({"steps": [["crop", 0]]}, "'steps' has ['crop', 0], expected such as ['resize', 256]"),
    ({"steps": [["crop", True]]}, "'steps' has ['crop', True], expected such as ['resize', 256]"),
    ({"steps": [["crop", [8]]]}, "'steps' has ['crop', [8]], expected such as ['resize', 256]"),
    ({"steps": [["crop", 10**9]]},
     "'steps' has ['crop', 1000000000], expected such as ['resize', 256]"),
    ({"steps": [["resize", 8]]},
     "'steps' ends with ['resize', 8], which leaves images of different shapes"),
    ({"mean": [0.5, 0.5]}, "'mean' is [0.5, 0.5], not three finite numbers"),
    ({"mean": [0.5, 0.5, float("inf")]}, "'mean' is [0.5, 0.5, inf], not three finite numbers"),
    ({"std": "x"}, "'std' is 'x', not three finite numbers"),
    ({"std": [1.0, 0.0, 1.0]}, "'std' is [1.0, 0.0, 1.0], not above 0"),
])  # fmt: skip
def test_what_is_told_otherwise_is_named(entry, message):
    with pytest.raises(ValueError) as error:
        recipes.from_description(described.cifar(8) | entry)
    assert str(error.value) == message
