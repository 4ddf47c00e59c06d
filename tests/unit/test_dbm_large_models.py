"""dbm_loss.large_scale.models against the original: names, seeds, outputs, training steps."""

import numpy as np
import pytest
import torch

from dbm_loss.large_scale.models import ARCHITECTURES, BCLModel, build_model
from dbm_loss.losses import BCLLoss
from dbm_loss.margin import DBMargin
from tests.unit import fill_rules


@pytest.fixture(scope="module")
def g(golden):
    return golden("dbm_loss_large_scale")


def fill(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights by the golden numbers' rule, drawn in float64 and rounded to float32."""
    return fill_rules.fill(model, seed, fill_rules.dbm_loss_imagenet, through=np.float32)


def test_state_dict_is_the_originals(g):
    for case in ["resnet50_1000", "resnext50_1000", "resnet50_8142"]:
        arch, num_classes = case.split("_")
        facts = g.facts["models"][case]
        with torch.device("meta"):
            model = BCLModel(arch, int(num_classes), use_norm=True)
        own = [[key, list(value.shape)] for key, value in model.state_dict().items()]
        assert own == facts.get("state_dict", own)  # one list is enough for each architecture
        assert sum(p.numel() for p in model.parameters()) == facts["num_params"]
        for part in ("encoder", "head", "head_fc", "fc"):
            count = sum(p.numel() for p in getattr(model, part).parameters())
            assert count == facts[f"{part}_params"]


def test_a_seed_gives_the_originals_weights(g):
    for arch in ["resnet50", "resnext50"]:
        torch.manual_seed(g.facts["init_torch_seed"])
        model = BCLModel(arch, 1000, use_norm=True)
        own = []
        for parameter in model.parameters():
            flat = parameter.detach().double().flatten()
            own.append([flat.mean(), flat.std(unbiased=False), flat[0], flat[-1]])
        np.testing.assert_allclose(np.array(own), g[f"init_{arch}_1000"], rtol=1e-5, atol=1e-8)


def test_forward_is_the_originals(g):
    for arch in ["resnet50", "resnext50"]:
        seed = g.facts["seed"]
        model = BCLModel(arch, 10, use_norm=True).eval()
        fill(model, seed + 1)
        images = np.random.RandomState(seed + 2).randn(2, 3, 64, 64).astype(np.float32)
        for dtype, suffix, rtol, atol in (
            (torch.float32, "f32", 1e-4, 1e-6),
            (torch.float64, "f64", 1e-9, 1e-12),
        ):
            model.to(dtype)
            x = torch.from_numpy(images).to(dtype)
            with torch.no_grad():
                feat, logits, centers = model(x)
                assert torch.equal(model.classify(x), logits)
            for name, own in (("feat", feat), ("logits", logits), ("centers", centers[:, :64])):
                golden = g[f"fwd_{arch}_10_{name}_{suffix}"]
                np.testing.assert_allclose(own, golden, rtol=rtol, atol=atol)


def test_training_steps_are_the_originals(g):
    case, seed = g.facts["cases"]["train"], g.facts["seed"]
    batch, num_classes = case["B"], case["C"]
    model = BCLModel(case["arch"], num_classes, use_norm=True)
    fill(model, seed + 3)
    model.double().train()
    counts = g["train_counts"].tolist()
    margin = DBMargin(counts, max_margin=case["max_margin"], scale=30.0)
    criterion = BCLLoss(counts, margin=margin)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=case["lr"],
        momentum=case["momentum"],
        weight_decay=case["weight_decay"],
        nesterov=case["nesterov"],
    )
    rng = np.random.RandomState(seed + 4)
    losses = []
    for step in range(case["steps"]):
        views = [rng.randn(batch, 3, 32, 32).astype(np.float32) for _ in range(3)]
        target = torch.from_numpy(rng.randint(0, num_classes, batch))
        assert target.tolist() == g["train_targets"][step].tolist()
        feat, logits, centers = model(torch.from_numpy(np.concatenate(views)).double())
        features = torch.stack([feat[batch : 2 * batch], feat[2 * batch :]], dim=1)
        loss = criterion(logits[:batch], features, centers, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, g["train_loss_f64"], rtol=1e-6)
    parameters = list(model.parameters())
    norms = {
        "train_param_norm_f64": [p.detach().norm() for p in parameters],
        "train_grad_norm_last_f64": [p.grad.norm() for p in parameters],
        "train_bn_norm_f64": [
            value.norm() for key, value in model.state_dict().items() if "running" in key
        ],
    }
    for name, own in norms.items():
        np.testing.assert_allclose(np.array(own), g[name], rtol=1e-6, atol=1e-12, err_msg=name)


def test_both_classifiers_work_under_bcl():
    for use_norm in [True, False]:
        torch.manual_seed(0)
        model = BCLModel("resnet10", 5, use_norm=use_norm)
        feat, logits, centers = model(torch.randn(4, 3, 32, 32))
        assert feat.shape == (4, 1024) and logits.shape == (4, 5) and centers.shape == (5, 1024)
        for unit in (feat, centers):
            torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))
        if use_norm:
            assert logits.abs().max() <= 1 + 1e-6
        centers.square().mul(torch.arange(1024.0)).sum().backward()
        assert model.fc.weight.grad.abs().max() > 0


def test_other_losses_get_torchvisions_names():
    for use_norm in [True, False]:
        model = build_model("ce", "resnet10", 5, use_norm)
        keys = list(model.state_dict())
        assert keys[0] == "conv1.weight"
        assert [key for key in keys if key.startswith("fc.")] == (
            ["fc.weight"] if use_norm else ["fc.weight", "fc.bias"]
        )
        assert model.fc.weight.shape == ((512, 5) if use_norm else (5, 512))
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_cosines_keep_float32_under_autocast():
    torch.manual_seed(0)
    model = BCLModel("resnet10", 5, use_norm=True).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        feat, logits, centers = model(torch.randn(2, 3, 32, 32))
    assert {feat.dtype, logits.dtype, centers.dtype} == {torch.float32}


def test_other_architectures_have_both_forms():
    for arch in ["resnet34", "resnext101"]:
        with torch.device("meta"):
            dim = BCLModel(arch, 7, use_norm=True).fc.weight.shape[0]
            assert build_model("bs", arch, 7, use_norm=True).fc.weight.shape == (dim, 7)
        assert {"resnet50", "resnext50", arch} <= set(ARCHITECTURES)
