"""GMLLoss against the original's numbers, against loops over the formula, and at its edges."""

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dbm_loss.GML.losses import GMLLoss, class_scores, distillation
from dbm_loss.margin import DBMargin

CASES = range(4)
DTYPES = [("f32", torch.float32), ("f64", torch.float64)]
TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-9, "atol": 1e-12},
}
# Prior and T_s are float32 logarithms in float64, too; their last bit differs between processors.
FLOAT32_CONSTANTS = TOLERANCE | {torch.float64: {"rtol": 2e-7, "atol": 1e-7}}


@pytest.fixture(scope="module")
def g(golden):
    return golden("dbm_loss_gml")


def golden_case(g, i, dtype):
    """Loss and inputs of case i; the floating-point inputs require gradients."""
    case = g.facts["cases"]["gml"][i]
    loss = GMLLoss(
        g[f"gml{i}_counts"],
        alpha=case["alpha"],
        beta=case["beta"],
        gamma=case["gamma"],
        temperature=case["temperature"],
    )
    if dtype is torch.float64:
        loss = loss.double()
    leaves = {
        name: g.tensor(f"gml{i}_{source}", dtype).requires_grad_()
        for name, source in (
            ("query", "query"), ("key", "key"), ("logits", "sup_logits"), ("t_logits", "t_logits"),
        )
    }  # fmt: skip
    labels = {
        "target": g.tensor(f"gml{i}_target"),
        "index": g.tensor(f"gml{i}_q_idx"),
        "k_labels": g.tensor(f"gml{i}_k_labels"),
        "k_index": g.tensor(f"gml{i}_k_idx"),
    }
    return loss, leaves, labels


def contrastive(loss, leaves, labels):
    return loss.contrastive(
        leaves["query"], labels["target"], labels["index"],
        leaves["key"], labels["k_labels"], labels["k_index"],
    )  # fmt: skip


def close(actual, expected, dtype, tolerance=TOLERANCE):
    torch.testing.assert_close(
        actual.detach(), torch.as_tensor(expected, dtype=dtype), **tolerance[dtype]
    )


def test_class_frequencies_are_the_originals(g):
    for i in CASES:
        loss, _, _ = golden_case(g, i, torch.float32)
        np.testing.assert_array_equal(loss.cls_weight, g[f"gml{i}_cls_weight"])


def test_terms_and_total_are_the_originals(g):
    for (name, dtype), i in product(DTYPES, CASES):
        loss, leaves, labels = golden_case(g, i, dtype)
        con, con_T = contrastive(loss, leaves, labels)
        close(con, g[f"gml{i}_loss_con_{name}"], dtype, FLOAT32_CONSTANTS)
        close(con_T, g[f"gml{i}_loss_con_T_{name}"], dtype, FLOAT32_CONSTANTS)
        sup = loss.supervised(leaves["logits"], labels["target"])
        close(sup, g[f"gml{i}_loss_sup_{name}"], dtype, FLOAT32_CONSTANTS)
        div = loss.divergence(leaves["logits"], leaves["t_logits"])
        close(div, g[f"gml{i}_loss_div_{name}"], dtype, FLOAT32_CONSTANTS)
        close(loss(**leaves, **labels), g[f"gml{i}_loss_{name}"], dtype, FLOAT32_CONSTANTS)


def test_total_without_a_teacher_is_the_originals(g):
    for i in CASES:
        loss, leaves, labels = golden_case(g, i, torch.float32)
        leaves["t_logits"] = None
        close(loss(**leaves, **labels), g[f"gml{i}_loss_no_teacher_f32"], torch.float32)


def test_class_scores_are_the_originals(g):
    for (name, dtype), i in product(DTYPES, CASES):
        loss, leaves, labels = golden_case(g, i, dtype)
        T_c = loss.log_T_c__no_wd__.detach().to(dtype).exp()
        similarity = (leaves["key"] @ leaves["query"].T).detach() / T_c
        C = loss.cls_weight.numel()
        own = labels["k_index"].unsqueeze(1) == labels["index"]
        assert own.any()
        close(class_scores(similarity, labels["k_labels"], C), g[f"gml{i}_logS_{name}"], dtype)
        score_T = class_scores(similarity, labels["k_labels"], C, exclude=own)
        close(score_T, g[f"gml{i}_logS_T_{name}"], dtype)


def test_gradients_are_the_originals(g):
    for (name, dtype), i in product(DTYPES, CASES):
        loss, leaves, labels = golden_case(g, i, dtype)
        loss(**leaves, **labels).backward()
        found = {
            "query": leaves["query"].grad, "key": leaves["key"].grad,
            "sup_logits": leaves["logits"].grad, "t_logits": leaves["t_logits"].grad,
            "log_T_c": loss.log_T_c__no_wd__.grad,
        }  # fmt: skip
        for leaf, grad in found.items():
            expected = g[f"gml{i}_g_{leaf}_{name}"]
            found_grad = torch.zeros(expected.shape, dtype=dtype) if grad is None else grad
            close(found_grad, expected, dtype, FLOAT32_CONSTANTS)


def test_distillation_is_the_originals(g):
    for (name, dtype), temperature in product(DTYPES, [4, 1]):
        student = g.tensor("kd_student", dtype).requires_grad_()
        loss = distillation(student, g.tensor("kd_teacher", dtype), temperature)
        loss.backward()
        close(loss, g[f"kd_T{temperature}_loss_{name}"], dtype)
        close(student.grad, g[f"kd_T{temperature}_grad_{name}"], dtype)


def test_margin_in_the_supervised_term(g):
    for name, dtype in DTYPES:
        setting = g.facts["cases"]["ext"]
        margin = DBMargin(
            g["ext_counts"],
            max_margin=setting["max_margin"],
            tau=setting["tau"],
            scale=setting["cos_scale"],
            lambda_inst=setting["lambda_inst"],
        )
        loss = GMLLoss(g["ext_counts"], beta=0.0, margin=margin)
        cosine = g.tensor("ext_cosine", dtype).requires_grad_()
        target = g.tensor("ext_target")
        close(margin(cosine, target), g[f"ext_logits_{name}"], dtype)
        total = loss(cosine, target)
        total.backward()
        close(total, g[f"ext_loss_sup_{name}"], dtype)
        close(cosine.grad, g[f"ext_grad_{name}"], dtype)


def test_margin_leaves_the_distillation_alone(g):
    counts, cosine = g["ext_counts"], g.tensor("ext_cosine", torch.float32)
    plain = GMLLoss(counts)
    with_margin = GMLLoss(counts, margin=DBMargin(counts, scale=30.0))
    teacher = cosine.flip(0)
    assert with_margin.divergence(cosine, teacher) == plain.divergence(cosine, teacher)


def test_saved_state_is_the_originals(g):
    loss = GMLLoss([3, 2])
    assert [[k, list(v.shape)] for k, v in loss.state_dict().items()] == g.facts[
        "criterion_state_dict"
    ]
    assert [k for k, _ in loss.named_parameters()] == g.facts["criterion_params"]


def by_loop(u, labels, weight, C):
    """S_bc (B, C) written out from the formula; u and weight are (K, B)."""
    K, B = u.shape
    score = torch.full((B, C), -math.inf, dtype=u.dtype)
    for b in range(B):
        for c in range(C):
            keys = [k for k in range(K) if labels[k] == c and weight[k, b]]
            if keys:
                score[b, c] = math.log(sum(math.exp(u[k, b]) for k in keys) / len(keys))
    return score


def test_class_scores_by_loop():
    torch.manual_seed(0)
    u, labels = torch.randn(30, 5, dtype=torch.float64) * 5, torch.randint(0, 6, (30,))
    exclude = torch.rand(30, 5) < 0.2
    close(class_scores(u, labels, 7), by_loop(u, labels, torch.ones(30, 5), 7), torch.float64)
    for c in range(6):  # so that no class is excluded as a whole
        exclude[(labels == c).nonzero()[0]] = False
    expected = by_loop(u, labels, ~exclude, 7)
    assert expected.isinf().any(dim=0).tolist() == [False] * 6 + [True]
    close(class_scores(u, labels, 7, exclude), expected, torch.float64)


def test_where_the_original_is_nan_the_class_is_left_out_or_scored_whole(g):
    for name in ["empty", "selfonly"]:
        leaves = {
            key: g.tensor(f"gmledge_{name}_{source}", torch.float32).requires_grad_()
            for key, source in (("query", "query"), ("key", "key"), ("logits", "sup_logits"))
        }
        labels = {
            key: g.tensor(f"gmledge_{name}_{source}")
            for key, source in (
                ("target", "target"), ("index", "q_idx"),
                ("k_labels", "k_labels"), ("k_index", "k_idx"),
            )
        }  # fmt: skip
        loss = GMLLoss(g[f"gmledge_{name}_counts"], temperature=0.1)
        assert np.isnan(g[f"gmledge_{name}_loss"])
        C = loss.cls_weight.numel()
        similarity = (leaves["key"] @ leaves["query"].T).detach() / loss.log_T_c__no_wd__.exp()
        own = labels["k_index"].unsqueeze(1) == labels["index"]
        score = class_scores(similarity, labels["k_labels"], C)
        score_T = class_scores(similarity, labels["k_labels"], C, exclude=own)
        for ours, array in ((score, "logS"), (score_T, "logS_T")):
            theirs = g.tensor(f"gmledge_{name}_{array}")
            known = theirs.isfinite()
            close(ours[known], theirs[known], torch.float32)
            absent = torch.bincount(labels["k_labels"], minlength=C) == 0
            assert (ours[:, absent] == -math.inf).all()
            assert ours[:, ~absent].isfinite().all()
        if name == "selfonly":
            nan = torch.as_tensor(g["gmledge_selfonly_logS_T"]).isnan()
            assert nan.any()
            close(score_T[nan], score[nan].detach(), torch.float32)
        total = loss(**leaves, **labels)
        total.backward()
        assert total.isfinite()
        assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
        assert loss.log_T_c__no_wd__.grad.isfinite().all()


def test_query_of_a_class_without_keys_adds_nothing():
    torch.manual_seed(1)
    loss = GMLLoss([5, 4, 3], temperature=0.2)
    query, key = F.normalize(torch.randn(2, 4), dim=1), F.normalize(torch.randn(6, 4), dim=1)
    query.requires_grad_()
    k_labels, k_index = torch.tensor([0, 0, 1, 1, 1, 0]), torch.arange(6)
    index = torch.tensor([10, 11])
    con, con_T = loss.contrastive(query, torch.tensor([0, 2]), index, key, k_labels, k_index)
    alone = loss.contrastive(query[:1], torch.tensor([0]), index[:1], key, k_labels, k_index)
    (con + con_T).backward()
    torch.testing.assert_close(con, alone[0] / 2)
    torch.testing.assert_close(con_T, alone[1] / 2)
    assert query.grad[0].any()
    assert not query.grad[1].any()


def test_scores_survive_a_tiny_temperature():
    """With T_c = 0.001 the original's exponentials of the far class are all 0, their log -inf."""
    similarity = torch.tensor([[1.0], [0.9], [-1.0], [-0.9]], requires_grad=True)
    score = class_scores(similarity / 0.001, torch.tensor([0, 0, 1, 1]), 2)
    torch.testing.assert_close(score, torch.tensor([[1000.0, -900.0]]) - math.log(2))
    score.sum().backward()
    assert similarity.grad.isfinite().all()


def test_only_the_temperature_sees_the_leave_one_out_score():
    """The gradients that the table in the docstring promises, term by term."""
    torch.manual_seed(2)
    loss = GMLLoss([5, 4, 3], temperature=0.2)
    query, key = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    k_labels, k_index = torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6)
    target, index = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])
    con, con_T = loss.contrastive(query, target, index, key, k_labels, k_index)
    grads = torch.autograd.grad(
        con, [query, key, loss.log_T_c__no_wd__], retain_graph=True, allow_unused=True
    )
    assert grads[0].any() and grads[1].any() and grads[2] is None
    grads = torch.autograd.grad(con_T, [query, key, loss.log_T_c__no_wd__], allow_unused=True)
    assert grads[0] is None and grads[1] is None and grads[2].any()


def test_a_class_without_training_images_is_never_predicted():
    loss = GMLLoss([5, 0, 3], beta=0.0)
    logits = torch.zeros(2, 3, requires_grad=True)
    total = loss(logits, torch.tensor([0, 2]))
    total.backward()
    expected = -(math.log(5 / 8) + math.log(3 / 8)) / 2
    assert total.item() == pytest.approx(expected)
    assert (logits.grad[:, 1] == 0).all()


def test_half_precision_inputs_are_computed_in_float32(g):
    for half in [torch.float16, torch.bfloat16]:
        loss, leaves, labels = golden_case(g, 0, torch.float32)
        halves = {name: leaf.detach().to(half) for name, leaf in leaves.items()}
        expected = loss(**{name: leaf.float() for name, leaf in halves.items()}, **labels)
        assert expected.dtype == torch.float32
        assert torch.equal(loss(**halves, **labels), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(**halves, **labels), expected)


def test_no_tensor_of_keys_by_queries_by_classes():
    """C = 8142 and K = 16384 with B = 4: a B x K x C tensor of float32 would take 2 TB."""
    torch.manual_seed(3)
    loss = GMLLoss(torch.randint(2, 1000, (8142,)), temperature=0.07)
    key = F.normalize(torch.randn(16384, 8), dim=1)
    k_labels = torch.cat([torch.arange(8142), torch.randint(0, 8142, (16384 - 8142,))])
    con, con_T = loss.contrastive(
        key[:4], k_labels[:4], torch.arange(4), key, k_labels, torch.arange(16384)
    )
    assert con.isfinite() and con_T.isfinite()
