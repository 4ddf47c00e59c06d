"""The ResNets against the original programs: outputs, initialisation, names, sizes."""

import hashlib
from http.client import IncompleteRead
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from common.models import pretrained, resnet, resnet_cifar
from common.models.heads import LinearHead, NormedLinear
from common.models.resnet_cifar import BasicBlock, kaiming_redraw, resnet20, resnet32
from common.training.errors import UsageError
from tests.unit import fill_rules
from tests.unit.fill_rules import fill

DTYPES = {"f32": torch.float32, "f64": torch.float64}


def images(seed, shape, dtype=torch.float64, through=None):
    values = np.random.RandomState(seed).standard_normal(shape)
    return torch.from_numpy(values.astype(through) if through else values).to(dtype)


def close(actual, expected, rtol, atol=0.0):
    """All within ``rtol`` of the largest expected magnitude."""
    expected = np.asarray(expected)
    error = np.abs(np.asarray(actual.detach() if torch.is_tensor(actual) else actual) - expected)
    assert error.shape == expected.shape
    assert error.max() <= rtol * np.abs(expected).max() + atol


def shapes(model):
    return [[key, list(value.shape)] for key, value in model.state_dict().items()]


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


IB_MODELS = {
    "resnet20": lambda: resnet20(),
    "resnet32": lambda: resnet32(100),
    "resnet32_norm": lambda: resnet32(use_norm=True),
    "resnet18": lambda: resnet.resnet18(200),
}


def test_outputs_ib_loss(golden):
    for tag, name in product(DTYPES, IB_MODELS):
        g = golden("ib_loss")
        facts = g.facts["models"][name]
        dtype, rtol = DTYPES[tag], {"f32": 1e-4, "f64": 1e-10}[tag]
        model = IB_MODELS[name]()
        assert shapes(model) == facts["state_dict"]
        assert num_parameters(model) == facts["num_parameters"]
        fill(model.to(dtype), facts["fill_seed"], fill_rules.ib_loss)
        x = images(facts["input_seed"], facts["input_shape"], dtype)
        for mode in ("eval", "train"):
            model.train(mode == "train")
            logits, features = model(x, return_features=True)
            close(logits, g[f"m_{name}_{mode}_logits_{tag}"], rtol)
            norms = features.abs().sum(dim=1, keepdim=True)
            close(norms, g[f"m_{name}_{mode}_features_{tag}"], rtol)
        for key, stat in zip(facts["running_keys"], ("mean", "var"), strict=True):
            close(model.state_dict()[key], g[f"m_{name}_running_{stat}_{tag}"], rtol)


GML_MODELS = {
    "cifar_resnet32_100_norm": lambda: resnet32(100, True, head="fc"),
    "cifar_resnet56_100_norm": lambda: resnet_cifar.resnet56(100, True, head="fc"),
    "cifar_resnet32_10_linear": lambda: resnet32(10, head="fc"),
    "imagenet_resnet50_9_norm": lambda: resnet.resnet50(9, True),
    "imagenet_resnext50_32x4d_9_norm": lambda: resnet.resnext50_32x4d(9, True),
}


def test_outputs_and_init_gml(golden):
    for name in GML_MODELS:
        g = golden("dbm_loss_gml")
        seed, facts = g.facts["seed"], g.facts["models"][name]
        torch.manual_seed(seed)
        model = GML_MODELS[name]()
        assert num_parameters(model) == facts["num_params"]
        assert shapes(model) == facts.get("state_dict", shapes(model))
        drawn = [p.detach().double().numpy().ravel() for p in model.parameters()]
        statistics = [(p.mean(), p.std(), p[0], p[-1]) for p in drawn]
        np.testing.assert_allclose(statistics, g[f"init_{name}"], atol=1e-6)

        fill(model, seed + 1, fill_rules.dbm_loss_imagenet).eval()
        shape, feat = ((3, 3, 32, 32), "feat") if "cifar" in name else ((2, 3, 64, 64), "feat64")
        for tag, dtype in DTYPES.items():
            x = images(seed + 2, shape, dtype, through=np.float32)
            with torch.no_grad():
                logits, features = model.to(dtype)(x, return_features=True)
            rtol = {"f32": 1e-4, "f64": 1e-10}[tag]
            close(logits, g[f"fwd_{name}_logits_{tag}"], rtol)
            close(features[:, :64], g[f"fwd_{name}_{feat}_{tag}"], rtol)


HM_MODELS = {"plain": (10, False), "normed": (10, True), "plain100": (100, False)}


def test_outputs_hmloss(golden):
    for tag, name in product(DTYPES, HM_MODELS):
        g = golden("hmloss")
        facts = g.facts["models"][name]
        dtype, rtol = DTYPES[tag], {"f32": 1e-4, "f64": 1e-10}[tag]
        model = resnet32(*HM_MODELS[name]).to(dtype)
        assert num_parameters(model) == facts["n_params"]
        fill(model, facts["fill_seed"], fill_rules.hmloss)
        x = images(facts["input_seed"], (facts["batch"], 3, 32, 32), dtype)
        close(x[0, :, ::8, ::8], g[f"model_{name}_input_sample"], 1e-7)
        for mode in ("eval", "train"):
            model.train(mode == "train")
            logits, features = model(x, return_features=True)
            close(logits, g[f"model_{name}_{mode}_logits_{tag}"], rtol)
            norms = features.abs().sum(dim=1, keepdim=True)
            close(norms, g[f"model_{name}_{mode}_featnorm_{tag}"], rtol)
        close(model.bn1.running_mean, g[f"model_{name}_bn1_running_mean_after"], rtol)


ARB_MODELS = {
    "resnet32_fe_eval": lambda: resnet32(None),
    "resnet32_fe_train": lambda: resnet32(None),
    "resnet32_usenorm": lambda: resnet32(use_norm=True),
    "resnet20": resnet20,
    "resnet10_fe": lambda: resnet.resnet10(None),
}


def test_outputs_arbloss(golden):
    for name in ARB_MODELS:
        g = golden("arbloss")
        facts = g.facts["model_outputs"][name]
        model = fill(ARB_MODELS[name](), facts["fill_seed"], fill_rules.arbloss)
        model.train(facts["mode"] == "train")
        close(
            model(images(facts["input_seed"], facts["input_shape"]).float()), g[f"out_{name}"], 1e-4
        )
        if model.training:
            close(model.bn1.running_mean, g[f"out_{name}_bn1_running_mean"], 1e-5)
            close(model.bn1.running_var, g[f"out_{name}_bn1_running_var"], 1e-5)


def entry_sums(model):
    values = [value.double() for value in model.state_dict().values()]
    return np.array([[value.sum(), value.abs().sum()] for value in values])


def test_init_ib_loss(golden):
    cases = [
        ("resnet20", resnet20),
        ("resnet32", lambda: resnet32(100)),
        ("resnet32_norm", lambda: resnet32(100, use_norm=True)),
        ("resnet18_1000", resnet.resnet18),
    ]
    for name, make in cases:
        g = golden("ib_loss")
        torch.manual_seed(g.facts["init"]["torch_seed"])
        model = make()
        np.testing.assert_allclose(entry_sums(model), g[f"init_{name}"], rtol=1e-6, atol=1e-6)
        if name == "resnet18_1000":
            # Tiny ImageNet: the 1000-class network is built first, then a new head is drawn.
            head = nn.Linear(model.feature_dim, 200)
            close(head.weight[:4, :8], g["init_resnet18_head"], 1e-6)
            close(head.bias, g["init_resnet18_head_bias"], 1e-6)
        elif name != "resnet20":
            close(model.linear.weight[:6, :6], g[f"init_{name}_linear"], 1e-6)


def test_init_hmloss(golden):
    g = golden("hmloss")
    torch.manual_seed(g.facts["init"]["seed"])
    state = resnet32().state_dict()
    for key, sums in g.facts["init"]["sums"].items():
        value = state[key].double()
        np.testing.assert_allclose([value.sum(), value.abs().sum()], sums, rtol=1e-5)
    close(state["conv1.weight"], g["init_conv1"], 1e-6)
    close(state["linear.weight"], g["init_linear"], 1e-6)
    close(state["linear.bias"], g["init_linear_bias"], 1e-6)
    torch.manual_seed(g.facts["init"]["seed"])
    close(resnet32(use_norm=True).linear.weight, g["init_normed_linear"], 1e-6)


def test_init_without_classifier_arbloss(golden):
    for name in ["resnet32_fe", "resnet50_fe"]:
        g = golden("arbloss")
        torch.manual_seed(g.facts["init"]["torch_seed"])
        model = resnet32(None) if name == "resnet32_fe" else resnet.resnet50(None)
        state = [value.double() for value in model.state_dict().values()]
        for statistic, values in (
            ("sum", [value.sum() for value in state]),
            ("sumsq", [value.square().sum() for value in state]),
        ):
            np.testing.assert_allclose(values, g[f"init_{name}_{statistic}"], rtol=1e-6, atol=1e-6)


def test_init_large_scale(golden):
    g = golden("dbm_loss_large_scale")
    torch.manual_seed(g.facts["init_torch_seed"])
    trunk = list(resnet.resnext50_32x4d(None).parameters())
    first_last = [[p.flatten()[0].item(), p.flatten()[-1].item()] for p in trunk]
    np.testing.assert_allclose(first_last, g["init_resnext50_1000"][: len(trunk), 2:], atol=1e-7)


ARCHITECTURES = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"),
    *("resnext101_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
]


def key_shape_hash(model):
    lines = [f"{key}:{'x'.join(map(str, shape))}" for key, shape in shapes(model)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def arb_architectures(golden):
    """Names in the original's two modules, with what builds them here."""
    for name, facts in golden("arbloss").facts["models"].items():
        module, _, function = name.partition(".")
        if "(" in function or module not in ("resnet_cifar", "resnet", "resnet_places"):
            continue
        source = resnet_cifar if module == "resnet_cifar" else resnet
        yield name, facts, getattr(source, function.removesuffix("_fe")), function.endswith("_fe")


def test_names_and_shapes_of_every_architecture_arbloss(golden):
    seen = set()
    for name, facts, make, headless in arb_architectures(golden):
        if facts["sha256_key_shape"] in seen:  # most networks for Places are those for ImageNet
            continue
        with torch.device("meta"):
            if name == "resnet_places.resnet152_fe":  # lacks its last bottleneck
                model = resnet.ResNet(Bottleneck, [3, 8, 36, 2], None)
            else:
                model = make(None) if headless else make()
        assert num_parameters(model) == facts["n_params"], name
        assert len(model.state_dict()) == facts["n_state_entries"], name
        assert key_shape_hash(model) == facts["sha256_key_shape"], name
        seen.add(facts["sha256_key_shape"])
    assert len(seen) >= 20


def test_sizes_with_cosine_head_gml(golden):
    for arch in ARCHITECTURES:
        with torch.device("meta"):
            model = getattr(resnet, arch)(1000, use_norm=True)
        expected = golden("dbm_loss_gml").facts["models"][f"imagenet_{arch}_1000_norm"][
            "num_params"
        ]
        assert num_parameters(model) == expected


def test_sizes_ib_loss(golden):
    for arch in ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]:
        expected = golden("ib_loss").facts["num_parameters_all"][f"{arch}_10cls"]
        assert num_parameters(getattr(resnet_cifar, arch)()) == expected


DEPTHS = dict(resnet20=3, resnet32=5, resnet44=7, resnet56=9, resnet110=18, resnet1202=200)


def test_depth_and_arguments_reach_the_network():
    for arch in DEPTHS:
        with torch.device("meta"):
            model = getattr(resnet_cifar, arch)()
            normed = getattr(resnet_cifar, arch)(100, use_norm=True, head="fc")
        stages = model.layer1, model.layer2, model.layer3
        assert [len(stage) for stage in stages] == [DEPTHS[arch]] * 3
        assert isinstance(model.linear, nn.Linear) and model.linear.out_features == 10
        assert isinstance(normed.fc, NormedLinear) and normed.fc.weight.shape == (64, 100)


def test_shortcut_takes_every_second_pixel_and_pads_channels():
    block = BasicBlock(4, 8, stride=2)
    x = torch.randn(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    for channel in range(4):
        for row in range(3):
            for column in range(3):
                expected[:, 2 + channel, row, column] = x[:, channel, 2 * row, 2 * column]
    assert torch.equal(block.shortcut(x), expected)


def test_cosine_head_from_the_formula(golden):
    g = golden("dbm_loss_large_scale")
    for tag, dtype in DTYPES.items():
        head = NormedLinear(6, 4).to(dtype)
        head.weight.data.copy_(g.tensor("nl_weight"))
        x = g.tensor("nl_x", dtype).requires_grad_()
        out = head(x)
        for i in range(5):
            for j in range(4):
                w = head.weight[:, j]
                cosine = (x[i] @ w) / (x[i].norm() * w.norm())
                assert abs(out[i, j] - cosine) < 1e-6
        (out * g.tensor("nl_gradw", dtype)).sum().backward()
        rtol = {"f32": 1e-5, "f64": 1e-12}[tag]
        close(out, g[f"nl_out_{tag}"], rtol)
        close(x.grad, g[f"nl_gx_{tag}"], rtol)
        close(head.weight.grad, g[f"nl_gweight_{tag}"], rtol)


def test_cosine_head_edges():
    head = NormedLinear(8, 5)
    torch.testing.assert_close(head.weight.norm(dim=0), torch.ones(5), atol=1e-5, rtol=0)
    assert head(torch.zeros(2, 8)).tolist() == [[0.0] * 5] * 2
    x = torch.randn(3, 8)
    assert torch.equal(head(1000 * x).argmax(1), head(x).argmax(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(x)
        from_half = head(x.bfloat16())
    assert out.dtype == from_half.dtype == torch.float32
    assert torch.equal(out, head(x))


def test_linear_head_rounds_no_logit_of_an_evaluation():
    """The second class has the larger logit; in eight bits they are equal, and the first wins."""
    head = LinearHead(1, 2)
    head.weight.data.copy_(torch.tensor([[1.0], [1 + 2**-10]]))
    head.bias.data.zero_()
    x = torch.ones(1, 1)
    expected = nn.functional.linear(x, head.weight, head.bias)
    for train, dtype, best in ((False, torch.float32, 1), (True, torch.bfloat16, 0)):
        head.train(train)
        assert torch.equal(head(x), expected)  # without autocast no bit is another
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for features in (x, x.bfloat16()):
                logits = head(features)
                assert logits.dtype == dtype and logits.argmax() == best


def test_features_and_feature_map():
    for make in [lambda n: resnet20(n), lambda n: resnet.resnet10(n)]:
        model = make(None).eval()
        x = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            maps, features = model.feature_map(x), model.features(x)
        assert maps.shape[1] == features.shape[1] == model.feature_dim
        torch.testing.assert_close(features, maps.mean(dim=(2, 3)))
        assert torch.equal(model(x), features)
        assert not any(key.startswith(("linear", "fc")) for key in model.state_dict())


def test_redraw_leaves_cosine_heads_and_biases():
    model = resnet20(use_norm=True)
    head, bias = model.linear.weight.clone(), model.bn1.bias.clone()
    conv = model.conv1.weight.clone()
    kaiming_redraw(model)
    assert torch.equal(model.linear.weight, head)
    assert torch.equal(model.bn1.bias, bias)
    assert not torch.equal(model.conv1.weight, conv)


def with_head_of(model, num_classes):
    """The model's state as a weight file of ``num_classes`` classes."""
    state = model.state_dict()
    state["fc.weight"] = torch.randn(num_classes, model.feature_dim)
    state["fc.bias"] = torch.randn(num_classes)
    return state


def test_pretrained_keeps_a_head_of_its_own(tmp_path):
    cases = [
        (lambda: resnet.resnet18(7), 1000, "of other classes and "),
        (lambda: resnet.resnet18(7, use_norm=True), 1000, "of another kind and "),
        (lambda: resnet.resnet18(512, use_norm=True), 512, "of another kind and "),  # square
        (lambda: resnet.resnet18(None), 1000, ""),
    ]
    for make, classes, why in cases:
        folder = Path(mkdtemp(dir=tmp_path))
        model, weights = make(), with_head_of(resnet.resnet18(None), classes)
        # Files from before 2019 lack the counters; DataParallel adds a prefix.
        old = {
            f"module.{k}": v for k, v in weights.items() if not k.endswith("num_batches_tracked")
        }
        torch.save({"state_dict": old}, folder / "old.pth")
        own_head = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("fc.")}
        said = pretrained.load(model, "resnet18", folder / "old.pth")
        assert said.endswith(f"; its classifier, fc.weight ({classes}, 512), is {why}left out")
        for key, value in model.state_dict().items():
            assert torch.equal(value, own_head.get(key, weights[key])), key


def test_pretrained_loads_a_head_that_fits(tmp_path):
    weights = with_head_of(resnet.resnet10(None), 9)
    torch.save(weights, tmp_path / "w.pth")
    model = resnet.resnet10(9)
    said = pretrained.load(model, "resnet10", tmp_path / "w.pth")
    assert said == f"=> weights of '{tmp_path / 'w.pth'}'"
    assert torch.equal(model.fc.weight, weights["fc.weight"])
    assert torch.equal(model.fc.bias, weights["fc.bias"])


def test_pretrained_leaves_out_blocks_that_the_model_lacks(tmp_path):
    whole = resnet.ResNet(Bottleneck, [1, 1, 1, 2], None)
    torch.save(with_head_of(whole, 1000), tmp_path / "w.pth")
    model = resnet.ResNet(Bottleneck, [1, 1, 1, 1], None)
    said = pretrained.load(model, "resnet152", tmp_path / "w.pth")
    assert said.endswith("; 18 entries that the network lacks are left out, such as "
                         "layer4.1.conv1.weight")  # fmt: skip
    for key, value in model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key])


def test_pretrained_that_does_not_fit(tmp_path):
    torch.save(resnet.resnet10(None).state_dict(), tmp_path / "w.pth")
    before = resnet.resnet18(None)
    kept = {k: v.clone() for k, v in before.state_dict().items()}
    with pytest.raises(UsageError, match=r"w\.pth.*layer1\.1\.conv1\.weight is missing.*resnet18"):
        pretrained.load(before, "resnet18", tmp_path / "w.pth")
    assert all(torch.equal(v, kept[k]) for k, v in before.state_dict().items())
    torch.save(with_head_of(resnet.resnet50(None), 1000), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"layer1\.0\.conv1\.weight has another shape"):
        pretrained.load(resnet.resnext50_32x4d(None), "resnext50_32x4d", tmp_path / "w.pth")


def test_pretrained_weights_of_a_deeper_network_do_not_fit(tmp_path):
    """A ResNet-34 holds all entries of a ResNet-18, and more between them."""
    for deep, model, arch, first in (
        (resnet.resnet34(9), resnet.resnet18(9), "resnet18", "layer1.2.conv1.weight"),
        (resnet_cifar.resnet32(9), resnet_cifar.resnet20(9), "resnet20", "layer1.3.conv1.weight"),
    ):
        torch.save(deep.state_dict(), tmp_path / "w.pth")
        with pytest.raises(UsageError) as error:
            pretrained.load(model, arch, tmp_path / "w.pth")
        assert f"(it lacks {first} of the file): give the weights of {arch}," in str(error.value)


def test_pretrained_file_that_is_none(tmp_path):
    for content in [b"", b"not weights", b"PK\x03\x04 cut off"]:
        folder = Path(mkdtemp(dir=tmp_path))
        (folder / "w.pth").write_bytes(content)
        with pytest.raises(
            UsageError, match=r"w\.pth: (not a complete checkpoint|damaged)"
        ) as error:
            pretrained.load(resnet.resnet10(None), "resnet10", folder / "w.pth")
        assert "\n" not in str(error.value)


def test_pretrained_other_refusals(tmp_path, monkeypatch):
    model = resnet.resnet10(None)
    with pytest.raises(UsageError, match=r"weights .*absent\.pth: no such file; give a file"):
        pretrained.load(model, "resnet10", tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UsageError, match=r"list\.pth: holds a list, not a checkpoint"):
        pretrained.load(model, "resnet10", tmp_path / "list.pth")
    with pytest.raises(UsageError, match=r"^--arch resnet10: no ImageNet weights .*resnet18"):
        pretrained.load(model, "resnet10")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for reason in (URLError("no network"), IncompleteRead(b"half")):
        monkeypatch.setattr(torch.hub, "download_url_to_file", Mock(side_effect=reason))
        with pytest.raises(
            UsageError, match=r"cannot download https://\S*resnet18-\S*\.pth"
        ) as error:
            pretrained.load(resnet.resnet18(None), "resnet18", cure="walk")
        words = f" ({reason}): fetch it elsewhere and give the file as weights, or walk"
        assert str(error.value).endswith(words)


def test_pretrained_downloads_torchvisions_first_weights(golden, monkeypatch, tmp_path):
    asked = []
    weights = with_head_of(resnet.resnet18(None), 1000)

    def download(url, path, prefix, progress):
        asked.append((url, prefix))
        torch.save(weights, path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    model = resnet.resnet18()
    pretrained.load(model, "resnet18")
    assert torch.equal(model.fc.weight, weights["fc.weight"])
    (url, sha256) = asked[0]
    assert url.startswith("https://download.pytorch.org/models/resnet18-")
    assert len(sha256) >= 8 and f"-{sha256}.pth" in url
    assert set(pretrained.PUBLISHED) - {"efficientnet_b0", "efficientnet_b3"} <= set(ARCHITECTURES)
