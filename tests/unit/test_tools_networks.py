"""Networks out of the checkpoints of every program, as ours and as the originals wrote them."""

from argparse import Namespace
from itertools import product

import pytest
import torch

from arbloss.models import Network
from common.training.errors import UsageError
from datasets.augment import described
from ib_loss import tinyimage_train
from tools import networks

SMALL = {"arch": "resnet20", "num_classes": 3}
LARGE = {"arch": "resnet10", "num_classes": 3}
CASES = [
    ("ib_loss/cifar_train.py", {**SMALL, "use_norm": True}),
    ("ib_loss/tinyimage_train.py", {**LARGE, "use_norm": False}),
    ("dbm_loss/cifar/main.py", {**SMALL, "loss_fn": "bs", "use_norm": True}),
    ("dbm_loss/cifar/main.py", {**SMALL, "loss_fn": "ncl"}),
    ("dbm_loss/large_scale/train.py", {**LARGE, "loss_fn": "bcl", "use_norm": True}),
    ("dbm_loss/GML/cifar_ce.py", SMALL),
    ("dbm_loss/GML/main.py", LARGE),
    ("hmloss/cifar_implementation/train_cifar.py", SMALL),
    ("hmloss/inat_implementation/train_inat.py", LARGE),
    ("hmloss/isic2019_implementation/train_isic.py", {"arch": "resnet20", "num_classes": 2}),
]


def test_the_network_comes_back():
    for (program, network), prefix in product(CASES, ["", "module."]):
        module = networks.KINDS[program].build(**network)
        weights = {prefix + key: value for key, value in module.state_dict().items()}
        side = 32 if network["arch"] == "resnet10" else 8
        images = torch.randn(2, 3, side, side)
        loaded = networks.load(program, network, {"state_dict": weights}, "ckpt")
        with torch.inference_mode():
            expected = getattr(module.eval(), "classify", module)(images)
            assert loaded(images).shape == (2, network["num_classes"])
            torch.testing.assert_close(loaded(images), expected, rtol=0, atol=0)


LINEAR = [(program, {**network, "use_norm": False}) for program, network in CASES]
LINEAR += [
    ("dbm_loss/cifar/main.py", {**SMALL, "loss_fn": "bcl"}),
    ("dbm_loss/GML/cifar_main.py", {**SMALL, "use_norm": False}),
    ("hmloss/isic2019_implementation/train_isic.py", {"arch": "resnet18"}),
    ("hmloss/isic2019_implementation/train_isic.py", {"arch": "efficientnet_b0"}),
    ("arbloss/train_stage1.py", {**SMALL, "arch": "resnet20_fe"}),
    ("arbloss/train_stage2.py", {**SMALL, "arch": "resnet20_fe", "stage": 2}),
]


@pytest.mark.parametrize("program", sorted(networks.KINDS))
def test_half_precision_leaves_the_logits_of_an_evaluation_in_float32(program):
    """Of eight bits, equal ones of the two largest would count for the class of lower index."""
    modules = [networks.KINDS[name].build(**network) for name, network in LINEAR if name == program]
    if program == "ib_loss/tinyimage_train.py":
        modules.append(tinyimage_train.build_model(Namespace(**LARGE)))
    assert modules
    for module in modules:
        classify = getattr(module.eval(), "classify", module)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits = classify(torch.randn(4, 3, 32, 32))
        logits = logits[0] if isinstance(logits, tuple) else logits
        assert logits.dtype == torch.float32 and (logits != logits.bfloat16()).any()


def test_the_parts_of_arbloss():
    for stage in [1, 2]:
        module = Network("resnet20_fe", 3, stage=stage)
        parts = ["model", "classifier"] + ["lws_model"] * (stage == 2)
        state = {f"state_dict_{name}": getattr(module, name).state_dict() for name in parts}
        if stage == 2:
            state["state_dict_lws_model"]["learned_norm"] = torch.tensor([[1.0, 2.0, 3.0]])
        program = f"arbloss/train_stage{stage}.py"
        network = {"arch": "resnet20_fe", "num_classes": 3, "stage": stage}
        loaded = networks.load(program, network, state, "ckpt")
        images = torch.randn(2, 3, 8, 8)
        factor = torch.tensor([1.0, 2.0, 3.0]) if stage == 2 else 1
        with torch.inference_mode():
            plain = module.eval().classifier(module.model(images))
            torch.testing.assert_close(loaded(images), factor * plain, rtol=0, atol=0)


def test_the_treatment_of_images_where_a_checkpoint_does_not_say_it():
    """The original of arbloss has one program for small images and large ones."""
    for arch, size, side in (("resnet32_fe", None, 32), ("resnet20_fe", 64, 64)):
        told = networks.transform("arbloss/train_stage2.py", {"arch": arch}, size)
        assert told == described.cifar(side)
    cases = (
        ("resnet50_fe", None, 256, 224),
        ("resnet152_fe", 112, 128, 112),
    )
    for arch, size, resize, side in cases:
        told = networks.transform("arbloss/train_stage1.py", {"arch": arch}, size)
        assert told == described.imagenet(resize=resize, size=side)
    assert networks.transform("ib_loss/cifar_train.py", SMALL) == described.cifar(32)


def test_of_a_moco_the_query_encoder_predicts():
    module = networks.KINDS["dbm_loss/GML/cifar_main.py"].build(**SMALL)
    weights = {f"encoder_q.{key}": value for key, value in module.state_dict().items()}
    weights |= {key.replace("_q", "_k"): torch.zeros_like(v) for key, v in weights.items()}
    state = {"state_dict": {**weights, "queue_k": torch.zeros(4, 64)}}
    loaded = networks.load("dbm_loss/GML/cifar_main.py", SMALL, state, "ckpt")
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), module.eval()(images), rtol=0, atol=0)


def test_a_classifier_of_the_other_kind_is_named_with_its_cure():
    for program, network in CASES:
        for use_norm in {False, True} if "use_norm" in network else ():
            module = networks.KINDS[program].build(**{**network, "use_norm": use_norm})
            with pytest.raises(UsageError) as error:
                networks.load(
                    program, {**network, "use_norm": not use_norm}, module.state_dict(), "x"
                )
            kind = "a cosine" if use_norm else "a linear"
            start = f"x: its classifier is {kind} one; give --network use_norm={use_norm}"
            assert str(error.value) == start


def test_bare_weights_are_enough_and_others_are_refused():
    program = "hmloss/isic2019_implementation/train_isic.py"
    module = networks.KINDS[program].build(arch="resnet20")
    assert networks.load(program, {"arch": "resnet20"}, module.state_dict(), "best.pth")
    with pytest.raises(UsageError, match=r"^best.pth: made with another architecture, classes"):
        networks.load(CASES[0][0], {**SMALL, "arch": "resnet32"}, module.state_dict(), "best.pth")
    with pytest.raises(UsageError, match=r"^best.pth: ib_loss/cifar_train.py has no such network"):
        networks.load(CASES[0][0], {**SMALL, "arch": "vgg"}, module.state_dict(), "best.pth")
