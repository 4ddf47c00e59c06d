"""The CIFAR networks against the original's names, initial weights and outputs."""

import hashlib
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from dbm_loss.cifar.models import FCNorm, KeyQueue, NCLModel, build_model
from dbm_loss.losses import NCLLoss
from dbm_loss.margin import DBMargin
from tests.unit import fill_rules
from tests.unit.fill_rules import fill

LOSS_OF = {"resnet32": "ce", "bcl": "bcl", "ncl": "ncl"}
MODELS = [(name, use_norm) for name in LOSS_OF for use_norm in (0, 1)]


def assert_close(actual, expected, tol):
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


def test_state_dict_is_the_original(golden):
    for classes, (name, use_norm) in product([10, 100], MODELS):
        facts = golden("dbm_loss_cifar").facts["models"][f"{name}_norm{use_norm}_c{classes}"]
        model = build_model(LOSS_OF[name], classes, bool(use_norm))
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        lines = [f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items()]
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == facts["state_dict_sha256"]
        parameters = list(model.parameters())
        trainable = [p for p in parameters if p.requires_grad]
        assert len(parameters) == facts["num_param_tensors"]
        assert len(trainable) == facts["num_trainable_tensors"]
        assert sum(p.numel() for p in parameters) == facts["num_params"]
        assert sum(p.numel() for p in trainable) == facts["num_trainable"]


def test_a_seed_gives_the_original_weights(golden):
    for name, use_norm in MODELS:
        g, prefix = golden("dbm_loss_cifar"), f"init.{name}.norm{use_norm}"
        torch.manual_seed(int(g["init.seed"]))
        model = build_model(LOSS_OF[name], 10, bool(use_norm))
        assert_close(torch.rand(3), g.tensor(f"{prefix}.next_rand"), 0)
        state = [value.double() for value in model.state_dict().values()]
        assert_close(torch.stack([x.sum() for x in state]), g.tensor(f"{prefix}.sum"), 1e-5)
        assert_close(
            torch.stack([x.abs().sum() for x in state]), g.tensor(f"{prefix}.abs_sum"), 1e-5
        )


def test_outputs_are_the_original(golden):
    for mode, (name, use_norm) in product(["eval", "train"], MODELS):
        g, prefix = golden("dbm_loss_cifar"), f"model.{name}.norm{use_norm}.{mode}"
        model = build_model(LOSS_OF[name], 10, bool(use_norm))
        fill(model, g["model.fill_seed"], fill_rules.dbm_loss_cifar)
        model.train(mode == "train")
        shape = (int(g["model.input_batch"]), 3, 32, 32)
        x = np.random.RandomState(int(g["model.input_seed"])).standard_normal(shape)
        x = torch.as_tensor(x, dtype=torch.float32)
        with torch.no_grad():
            if name == "resnet32":
                outputs = dict(zip(("logits", "feat"), model(x, return_features=True), strict=True))
            elif name == "bcl":
                outputs = dict(zip(("feat_mlp", "logits", "centers"), model(x), strict=True))
            else:
                outputs = dict(
                    zip(("output_ce", "output_p", "output_k"), model(x, x.flip(0)), strict=True)
                )
                outputs["mean_logits"] = outputs["output_ce"].mean(0)
        outputs_tol, sums_tol = (1e-5, 1e-6) if name == "resnet32" else (2e-4, 1e-3)
        for key, value in outputs.items():
            assert_close(value, g.tensor(f"{prefix}.{key}"), outputs_tol)
        if mode == "train":
            sums = [v.double().sum() for k, v in model.state_dict().items() if "running_" in k]
            assert_close(torch.stack(sums), g.tensor(f"{prefix}.bn_buffer_sums"), sums_tol)
        else:
            logits = outputs["mean_logits" if name == "ncl" else "logits"]
            assert torch.equal(model.classify(x), logits)


def test_cosine_heads_behind_the_margin(golden):
    for head in ["normedlinear", "fcnorm"]:
        g, name = golden("dbm_loss_cifar"), f"head.{head}"
        if head == "fcnorm":
            model = FCNorm(64, 10)
        else:
            model = build_model("ce", 10, use_norm=True).linear
        model.weight.data = g.tensor(f"{name}.weight")
        feat = g.tensor(f"{name}.feat").requires_grad_()
        max_margin, tau, lambda_inst, scale = g[f"{name}.hparams"]
        margin = DBMargin(g["cmo.counts"], max_margin, tau, scale, lambda_inst)
        target = g.tensor(f"{name}.target")
        cosine = model(feat)
        value = F.cross_entropy(margin(cosine, target), target)
        value.backward()
        assert_close(cosine, g.tensor(f"{name}.cos"), 1e-5)
        assert_close(value, g.tensor(f"{name}.value"), 1e-5)
        assert_close(feat.grad, g.tensor(f"{name}.grad_feat"), 1e-5)
        assert_close(model.weight.grad, g.tensor(f"{name}.grad_weight"), 1e-5)


def test_cosines_are_float32_under_autocast():
    for loss_fn in ["ce", "bcl", "ncl"]:
        model = build_model(loss_fn, 10, use_norm=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.classify(torch.randn(2, 3, 32, 32)).dtype == torch.float32


def test_what_bcl_contrasts_are_unit_vectors_under_autocast_too():
    """In bfloat16 their lengths are off by 0.003, which the temperature makes 0.03."""
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        features, _, centers = build_model("bcl", 10, use_norm=True)(torch.randn(4, 3, 32, 32))
    for unit in (features, centers):
        assert unit.dtype == torch.float32
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))


def small_ncl(dim, size, temperature):
    """An NCL model whose queues have the size of the golden numbers."""
    model = NCLModel(10, use_norm=True)
    model.MOCO = torch.nn.ModuleList(KeyQueue(dim, size, temperature) for _ in range(3))
    return model


def test_golden_contrastive_part_and_queue(golden):
    g = golden("dbm_loss_cifar")
    max_margin, tau, lambda_inst, scale, temperature = g["ncl.con.hparams"]
    before = g.tensor("ncl.con.queue_before")
    model = small_ncl(before.shape[1], before.shape[2], temperature)
    for queue, start in zip(model.MOCO, before, strict=True):
        queue.queue.copy_(start)
        queue.queue_ptr.fill_(int(g["ncl.con.ptr_before"]))
    counts, target = g["ncl.con.counts"], g.tensor("ncl.con.target")
    criterion = NCLLoss(counts, margin=DBMargin(counts, max_margin, tau, scale, lambda_inst))
    logits = g.tensor("ncl.con.output_ce").requires_grad_()
    queries = g.tensor("ncl.con.output_p").requires_grad_()

    classification = criterion(logits, target)
    contrastive = model.contrast(queries, g.tensor("ncl.con.output_k"))
    (classification + contrastive).backward()
    assert_close(classification, g.tensor("ncl.con.loss_ce"), 1e-5)
    assert_close(contrastive, g.tensor("ncl.con.loss_con"), 1e-5)
    assert_close(classification + contrastive, g.tensor("ncl.con.loss_total"), 1e-5)
    assert_close(logits.grad, g.tensor("ncl.con.grad_ce"), 1e-5)
    assert_close(queries.grad, g.tensor("ncl.con.grad_p"), 1e-5)
    after = torch.stack([queue.queue for queue in model.MOCO])
    assert_close(after, g.tensor("ncl.con.queue_after"), 1e-6)
    assert all(int(queue.queue_ptr) == g["ncl.con.ptr_after"] for queue in model.MOCO)


def test_queue_starts_over_at_its_end():
    queue = KeyQueue(dim=2, size=4, temperature=0.2)
    keys = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
    for _ in range(2):
        queue(keys, keys)
    assert int(queue.queue_ptr) == 0
    queue(keys.flip(0), keys.flip(0))
    assert queue.queue.T.tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]
    assert int(queue.queue_ptr) == 2


def test_golden_moving_average(golden):
    g = golden("dbm_loss_cifar")
    model = NCLModel(10)
    copy, trunk = model.backbone_MA[1].bn1, model.backbone[1].bn1
    size = len(copy.bias)
    before, param, after = (
        g.tensor(f"ema.{key}")[:size] for key in ("ma_before", "param", "ma_after")
    )
    copy.bias.data.copy_(before)
    trunk.bias.data.copy_(param)
    statistics, frozen = copy.running_mean.clone(), model.classifier_MA[1][0].weight.clone()
    trunk.running_mean.add_(1)
    model.update_average()
    assert_close(copy.bias.data, after, 1e-6)
    assert torch.equal(trunk.bias.data, param)
    assert torch.equal(copy.running_mean, statistics)  # parameters only
    assert torch.equal(model.classifier_MA[1][0].weight, frozen)


def test_copies_take_no_gradient_but_collect_statistics():
    model = NCLModel(10)
    view = torch.randn(4, 3, 32, 32)
    logits, queries, keys = model(view, view)
    assert logits.requires_grad
    assert queries.requires_grad
    assert not keys.requires_grad
    assert model.backbone_MA[0].bn1.num_batches_tracked == 1


def test_contrastive_loss_reaches_the_classifier_weights():
    model = build_model("bcl", 10, use_norm=True)
    _, _, centers = model(torch.randn(4, 3, 32, 32))
    centers.square().sum(0)[0].backward()
    assert model.fc.weight.grad.abs().sum() > 0
