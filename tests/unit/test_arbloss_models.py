"""Networks of the two stages: names, outputs and initial weights of the original."""

import hashlib

import numpy as np
import pytest
import torch

from arbloss.models import Classifier, LearnableWeightScaling, Network, build_backbone
from common.training.errors import UsageError
from tests.unit import fill_rules
from tests.unit.fill_rules import fill

# The backbones alone are tested with the shared networks; here is what this paper adds to them.
PARTS = {
    "resnet_places.resnet50_fe": lambda: build_backbone("resnet50_fe", shortened=True),
    "resnet_places.resnet152_fe": lambda: build_backbone("resnet152_fe", shortened=True),
    "resnet.resnet152_fe": lambda: build_backbone("resnet152_fe"),
    "resnet_cifar.Classifier(64,10)": lambda: Classifier(64, 10, kaiming=True),
    "resnet_cifar.Classifier(64,100)": lambda: Classifier(64, 100, kaiming=True),
    "resnet.Classifier(2048,1000)": lambda: Classifier(2048, 1000),
    "resnet.Classifier(2048,8142)": lambda: Classifier(2048, 8142),
    "resnet_places.Classifier(2048,365)": lambda: Classifier(2048, 365),
    "resnet_places.Bottleneck(2048,512)": lambda: Network("resnet50_fe", 2, places=True).block,
    "LearnableWeightScaling(10)": lambda: LearnableWeightScaling(10),
}

OUTPUTS = {
    "cifar_classifier10": (lambda: Classifier(64, 10), "forward"),
    "imagenet_classifier1000": (lambda: Classifier(2048, 1000), "forward"),
    "places_resnet50_fe": (lambda: build_backbone("resnet50_fe", True), "feature_map"),
    "places_resnet152_fe": (lambda: build_backbone("resnet152_fe", True), "feature_map"),
    "places_block": (lambda: Network("resnet50_fe", 2, places=True).block, "forward"),
    "places_classifier365": (lambda: Classifier(2048, 365), "forward"),
}


@pytest.fixture
def arb(golden):
    return golden("arbloss")


def test_names_shapes_and_counts(arb):
    for name in PARTS:
        with torch.device("meta"):
            part = PARTS[name]()
        facts = arb.facts["models"][name]
        entries = [(key, list(value.shape)) for key, value in part.state_dict().items()]
        if name in arb.facts["state_dicts"]:
            assert entries == [tuple(entry) for entry in arb.facts["state_dicts"][name]]
        lines = "\n".join(f"{key}:{'x'.join(map(str, shape))}" for key, shape in entries)
        assert sum(p.numel() for p in part.parameters()) == facts["n_params"]
        assert len(entries) == facts["n_state_entries"]
        assert hashlib.sha256(lines.encode()).hexdigest() == facts["sha256_key_shape"]


def test_outputs(arb):
    for name in OUTPUTS:
        facts = arb.facts["model_outputs"][name]
        build, method = OUTPUTS[name]
        with torch.no_grad():
            part = fill(build(), facts["fill_seed"], fill_rules.arbloss).eval()
            x = np.random.RandomState(facts["input_seed"]).standard_normal(facts["input_shape"])
            out = getattr(part, method)(torch.from_numpy(x).float())
        expected = arb.tensor(f"out_{name}")
        scale = float(expected.abs().max()) if "152" in name else 1.0
        torch.testing.assert_close(out / scale, expected / scale, rtol=1e-3, atol=1e-3)


def test_initial_weights_of_the_classifier_follow_those_of_the_backbone(arb):
    torch.manual_seed(arb.facts["init"]["torch_seed"])
    network = Network("resnet32_fe", 10)
    assert torch.equal(network.model.conv1.weight, arb.tensor("init_resnet32_fe_conv1"))
    assert torch.equal(network.classifier.fc.weight, arb.tensor("init_classifier_weight"))
    assert torch.equal(network.classifier.fc.bias, arb.tensor("init_classifier_bias"))
    torch.manual_seed(arb.facts["init"]["torch_seed"])
    bias = Network("resnet50_fe", 1000).classifier.fc.bias
    torch.testing.assert_close(bias[:20].detach(), arb.tensor("init_classifier1000_bias_head"))


def test_learnable_weight_scaling(arb):
    torch.testing.assert_close(
        LearnableWeightScaling(6).learned_norm.detach(), arb.tensor("lws_init")
    )
    module = LearnableWeightScaling(6)
    with torch.no_grad():
        module.learned_norm.copy_(arb.tensor("lws_norm"))
    x = arb.tensor("lws_x").requires_grad_()
    out = module(x)
    (out * arb.tensor("lws_r")).sum().backward()
    torch.testing.assert_close(out, arb.tensor("lws_out"))
    torch.testing.assert_close(x.grad, arb.tensor("lws_grad_x"))
    torch.testing.assert_close(module.learned_norm.grad, arb.tensor("lws_grad_norm"))


def trained(network):
    return {
        name
        for name, part in network.named_children()
        if any(p.requires_grad for p in part.parameters())
    }


def learning_statistics(network):
    return {
        name for name in ("model", "block") if getattr(getattr(network, name), "training", False)
    }


def test_what_is_trained():
    cases = [
        ({}, {"model", "classifier"}, {"model"}),
        ({"places": True}, {"block", "classifier"}, {"block"}),
        ({"stage": 2}, {"classifier", "lws_model"}, set()),
        ({"stage": 2, "shift_bn": True}, {"classifier", "lws_model"}, {"model"}),
        ({"stage": 2, "places": True}, {"classifier", "lws_model"}, set()),
        ({"stage": 2, "places": True, "shift_bn": True}, {"classifier", "lws_model"}, {"block"}),
    ]
    for options, parts, statistics in cases:
        network = Network("resnet10_fe", 3, **options).train()
        assert trained(network) == parts
        assert learning_statistics(network) == statistics
        assert not any(module.training for module in network.eval().modules())


def test_places_sends_feature_maps_through_the_block():
    network = Network("resnet10_fe", 3, places=True)
    logits, features = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 3)
    assert features.shape == (2, 512, 2, 2)
    logits.sum().backward()
    assert network.block.conv1.weight.grad is not None
    assert network.model.conv1.weight.grad is None


def test_unknown_backbone_lists_the_names():
    for name in ["resnet32", "resnet50", "resnet31_fe", "ResNet_fe", "__init___fe"]:
        with pytest.raises(UsageError, match=r"choose one of resnet20_fe, .*wide_resnet101_2_fe"):
            build_backbone(name)
