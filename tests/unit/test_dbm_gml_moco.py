"""The MoCo wrapper: queue, encoders, whole training steps of the original, two processes."""

import functools
import os
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.models import resnet_cifar
from common.training.peers import part
from dbm_loss.GML.losses import GMLLoss
from dbm_loss.GML.moco import MoCo, partition_queue
from tests.programs import tools
from tests.unit import fill_rules

pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.fixture(scope="module")
def g(golden):
    return golden("dbm_loss_gml")


class Toy(nn.Module):
    """An encoder without batch statistics, whose features are the same in any batch."""

    feature_dim = 5

    def __init__(self, num_classes, use_norm):
        super().__init__()
        self.body = nn.Linear(3, self.feature_dim, bias=False)
        self.fc = nn.Linear(self.feature_dim, num_classes, bias=not use_norm)

    def forward(self, x, return_features=False):
        features = (x.flatten(1).unsqueeze(2) * self.body.weight.T).sum(1)
        logits = self.fc(features)
        return (logits, features) if return_features else logits


def toy_moco(K=12, C=3, base_k=2, **options):
    torch.manual_seed(0)
    moco = MoCo(Toy, dim=4, K=K, num_classes=C, **options)
    if base_k:
        moco.set_cls_weight(torch.tensor([0.5, 0.3, 0.2]), base_k)
    return moco


def test_queue_shares_are_the_originals(g):
    for i in range(3):
        case = g.facts["cases"]["qpart"][i]
        counts = g.tensor(f"qpart{i}_counts", torch.float32)
        weight = counts / counts.sum()
        start, slots = partition_queue(weight, case["K"], case["base_k"])
        np.testing.assert_array_equal(weight, g[f"qpart{i}_cls_weight"])
        np.testing.assert_array_equal(start, g[f"qpart{i}_start"])
        np.testing.assert_array_equal(slots, g[f"qpart{i}_slots"])
        freq_correction = weight / slots * case["K"]
        np.testing.assert_array_equal(freq_correction, g[f"qpart{i}_buffer_freq_correction"])
        moco = MoCo(Toy, dim=2, K=case["K"], num_classes=case["C"])
        moco.set_cls_weight(weight, case["base_k"])
        np.testing.assert_array_equal(moco.queue_l, g[f"qpart{i}_queue_l"])
        np.testing.assert_array_equal(moco.queue_i, g[f"qpart{i}_queue_i"])


def test_queue_shares_fill_the_queue():
    for C, K, base_k in [(8142, 65536, 4), (1000, 16384, 3), (7, 7, 1)]:
        counts = torch.rand(C, generator=torch.Generator().manual_seed(0)) ** 4 + 1e-4
        start, slots = partition_queue(counts / counts.sum(), K, base_k)
        assert int(slots.sum()) == K
        assert int(slots.min()) >= base_k
        assert torch.equal(start, slots.cumsum(0) - slots)


def test_queue_too_short_is_an_error():
    for K, base_k in [(299, 3), (300, 0)]:
        with pytest.raises(ValueError, match=f"base_k {base_k}: a queue of {K} gives 100 classes"):
            partition_queue(torch.full((100,), 0.01), K, base_k)


def queue_model(K, C, feat, keys):
    """A MoCo of which the test uses the queue alone."""
    Encoder = type("Encoder", (Toy,), {"feature_dim": feat})
    moco = MoCo(Encoder, dim=2, K=K, num_classes=C)
    moco.queue_k.copy_(keys)
    return moco


def test_seven_enqueues_by_class_are_the_originals(g):
    case = g.facts["cases"]["qb"]
    moco = queue_model(case["K"], case["C"], case["feat"], g.tensor("qb_queue_k0"))
    counts = g.tensor("qb_counts", torch.float32)
    moco.set_cls_weight(counts / counts.sum(), case["base_k"])
    np.testing.assert_array_equal(moco._start, g["qb_start"])
    np.testing.assert_array_equal(moco._slots, g["qb_slots"])
    for step in range(case["steps"]):
        batch = [g.tensor(f"qb_in_{name}")[step] for name in ("keys", "labels", "idx")]
        moco.enqueue(*batch)
        np.testing.assert_array_equal(moco.queue_k, g["qb_out_k"][step])
        np.testing.assert_array_equal(moco.queue_l, g["qb_out_l"][step])
        np.testing.assert_array_equal(moco.queue_i, g["qb_out_i"][step])
        np.testing.assert_array_equal(moco.queue_ptr, g["qb_out_p"][step])


def test_five_enqueues_in_one_ring_are_the_originals(g):
    K, feat = g["qn_queue_k0"].shape
    moco = queue_model(K, g["qn_out_p"].shape[1], feat, g.tensor("qn_queue_k0"))
    moco.queue_l.copy_(g.tensor("qn_queue_l0"))
    for step in range(len(g["qn_in_keys"])):
        keys, labels = g.tensor("qn_in_keys")[step], g.tensor("qn_in_labels")[step]
        moco.enqueue(keys, labels, torch.arange(len(labels)))
        np.testing.assert_array_equal(moco.queue_k, g["qn_out_k"][step])
        np.testing.assert_array_equal(moco.queue_l, g["qn_out_l"][step])
        np.testing.assert_array_equal(moco.queue_i, g["qn_out_i"][step])
        np.testing.assert_array_equal(moco.queue_ptr, g["qn_out_p"][step])


def test_enqueue_by_class_by_loop():
    """Many batches, with more of a class than it has slots, against the rule written as a loop."""
    generator = torch.Generator().manual_seed(4)
    moco = toy_moco(K=12, base_k=1)
    start, slots = moco._start.tolist(), moco._slots.tolist()
    k, i = moco.queue_k.clone(), moco.queue_i.clone()
    pointer = [0, 0, 0]
    for _ in range(20):
        labels = torch.randint(0, 3, (11,), generator=generator)
        keys, index = torch.randn(11, 5, generator=generator), torch.randint(0, 99, (11,))
        moco.enqueue(keys, labels, index)
        seen = [0, 0, 0]
        for b, c in enumerate(labels.tolist()):
            if seen[c] < slots[c]:
                position = start[c] + (pointer[c] + seen[c]) % slots[c]
                k[position], i[position] = keys[b], index[b]
                seen[c] += 1
        pointer = [(p + n) % s for p, n, s in zip(pointer, seen, slots, strict=True)]
        assert torch.equal(moco.queue_k, k)
        assert torch.equal(moco.queue_i, i)
        assert moco.queue_ptr.tolist() == pointer
        assert torch.equal(moco.queue_l, torch.arange(3).repeat_interleave(moco._slots))


def test_one_ring_takes_batches_that_do_not_divide_it():
    moco = toy_moco(K=7, base_k=0)
    for step in range(3):
        moco.enqueue(torch.full((3, 5), float(step)), torch.full((3,), step), torch.arange(3))
    assert moco.queue_l.tolist() == [2, 2, 0, 1, 1, 1, 2]
    assert moco.queue_ptr[0] == 2
    with pytest.raises(ValueError, match="K 7: the queue is shorter than a batch of 8"):
        moco.enqueue(torch.zeros(8, 5), torch.zeros(8, dtype=torch.int64), torch.arange(8))


def encoder(arch, head="fc"):
    return functools.partial(getattr(resnet_cifar, arch), head=head)


def statistics(module):
    """Mean, population standard deviation, first and last element of each parameter."""
    rows = []
    for parameter in module.parameters():
        x = parameter.detach().double().flatten()
        rows.append([x.mean(), x.std(unbiased=False), x[0], x[-1]])
    return np.asarray(rows)


def test_fresh_wrapper_is_the_originals(g):
    torch.manual_seed(g.facts["seed"])
    moco = MoCo(encoder("resnet32"), dim=32, K=4096, num_classes=100)
    np.testing.assert_allclose(statistics(moco), g["init_moco_cifar"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moco.queue_k[:2, :4], g["init_moco_cifar_queue_k_head"], rtol=1e-6)
    np.testing.assert_array_equal(moco.queue_l[:16], g["init_moco_cifar_queue_l_head"])


def test_names_and_sizes_are_the_originals(g):
    for teacher in [False, True]:
        moco = MoCo(encoder("resnet32"), dim=32, K=4096, num_classes=100)
        name = "moco_cifar_resnet32_nodistill"
        if teacher:
            moco.set_distiller(resnet_cifar.resnet56(100, use_norm=True, head="fc"))
            name = "moco_cifar_resnet32_teacher_resnet56"
        facts = g.facts["models"][name]
        assert [[k, list(v.shape)] for k, v in moco.state_dict().items()] == facts["state_dict"]
        assert sum(p.numel() for p in moco.parameters()) == facts["num_params"]
        trainable = sum(p.numel() for p in moco.parameters() if p.requires_grad)
        assert trainable == facts["trainable"]


def unit_queue(rs, key, shape):
    values = fill_rules.dbm_loss_imagenet(rs, key, shape)
    return values / np.linalg.norm(values, axis=1, keepdims=True) if key == "queue_k" else values


def fill(moco, seed):
    """The fill rule of the golden runs, which leaves the queue's labels and indices alone."""
    integers = {name: buffer.clone() for name, buffer in moco.named_buffers() if "queue" in name}
    fill_rules.fill(moco, seed, unit_queue)
    for name in ("queue_l", "queue_i", "queue_ptr"):
        moco.get_buffer(name).copy_(integers[name])


def test_training_steps_are_the_originals(g):
    for dtype, name in product(["f64", "f32"], ["distill", "nodistill", "teacher"]):
        run = next(r for r in g.facts["cases"]["runs"] if r["name"] == name)
        seed, C, weights = g.facts["seed"], run["C"], run["loss"]
        double = dtype == "f64"
        torch.manual_seed(seed + 8)
        moco = MoCo(encoder(run["arch"]), run["dim"], run["K"], num_classes=C, align_labels=False)
        if run["distill"]:
            moco.set_distiller(encoder(run["arch_t"])(C, use_norm=True))
        fill(moco, seed + 5)
        criterion = GMLLoss(
            run["counts"], weights["alpha"], weights["beta"], weights["gamma"], weights["T"]
        )
        if run["bk"]:
            moco.set_cls_weight(criterion.cls_weight, run["bk"])
            np.testing.assert_array_equal(moco.queue_l, g[f"run_{name}_queue_l0"])
        if double:
            moco, criterion = moco.double(), criterion.double()
        T_c = criterion.log_T_c__no_wd__
        optimizer = torch.optim.SGD(
            [{"params": list(moco.parameters())}, {"params": [T_c], "weight_decay": 0.0}],
            lr=run["lr"], momentum=0.9, weight_decay=5e-4,
        )  # fmt: skip
        r = np.random.RandomState(seed + 6)
        prior = np.asarray(run["counts"]) / sum(run["counts"])
        loose = {"rtol": 1e-6, "atol": 1e-9} if double else {"rtol": 1e-2, "atol": 1e-4}
        tight = {"rtol": 1e-6, "atol": 1e-9} if double else {"rtol": 1e-4, "atol": 1e-5}
        losses, grad_norms, grad_T, first, first_view = [], [], [], None, None
        torch.manual_seed(seed + 7)
        moco.train()
        for step in range(run["steps"]):
            views = [
                torch.as_tensor(r.randn(run["B"], 3, 32, 32)).float().to(moco.queue_k.dtype)
                for _ in range(3)
            ]
            target = torch.as_tensor(r.choice(C, run["B"], p=prior))
            index = torch.as_tensor(r.choice(sum(run["counts"]), run["B"], replace=False))
            np.testing.assert_array_equal(target, g[f"run_{name}_targets"][step])
            np.testing.assert_array_equal(index, g[f"run_{name}_index"][step])
            out = moco(*views, target, index)
            if step == 0:
                first = {key: value.detach().clone() for key, value in out.items()}
                first_view = views[0]
            loss = criterion(target=target, index=index, **out)
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            grad_norms.append(
                [np.nan if p.grad is None else p.grad.norm().item() for p in moco.parameters()]
            )
            grad_T.append(np.nan if T_c.grad is None else T_c.grad.item())
            optimizer.step()

        def same(actual, array, tolerance):
            np.testing.assert_allclose(
                actual, g[f"run_{name}_{array}"], **tolerance, err_msg=array, equal_nan=True
            )

        same(losses, f"losses_{dtype}", {"rtol": tight["rtol"]})
        for key, rows in (("query", None), ("key", 16), ("logits", None), ("t_logits", None)):
            same(first[key][:rows], f"first_{key}_{dtype}", loose)
        same(first["k_labels"], "first_k_labels", {})
        same(first["k_index"], "first_k_idx", {})
        same(np.asarray(grad_norms), f"grad_norms_{dtype}", loose)
        same(grad_T, f"grad_log_T_c_{dtype}", loose)
        same(T_c.detach(), f"log_T_c_final_{dtype}", loose)
        same([p.detach().norm() for p in moco.parameters()], f"param_norms_{dtype}", loose)
        running = [v.norm() for k, v in moco.state_dict().items() if "running" in k]
        same(running, f"buffer_norms_{dtype}", loose)
        if double:
            same(moco.queue_k, "queue_k_final_f64", tight)
            same(moco.queue_l, "queue_l_final", {})
            same(moco.queue_i, "queue_i_final", {})
            same(moco.queue_ptr, "queue_ptr_final", {})
        moco.eval()
        with torch.no_grad():
            same(moco(first_view), f"eval_logits_{dtype}", loose)


def test_without_a_teacher_labels_stay_with_their_features():
    for base_k in [0, 2]:
        images, labels = torch.randn(8, 3, 1, 1), torch.tensor([0, 1, 2, 0, 1, 0, 2, 0])
        kept = {}
        for align in (True, False):
            moco = toy_moco(K=24, base_k=base_k, align_labels=align)
            moco(images, images, images, labels, torch.arange(8))
            with torch.no_grad():
                _, expected = moco.encoder_k(images, return_features=True)
            written = (moco.queue_k[:, None] == expected).all(dim=2)  # K x B
            assert (written.sum(dim=0) == 1).all()
            kept[align] = moco.queue_l[written.int().argmax(dim=0)]
        assert torch.equal(kept[True], labels)
        assert not torch.equal(kept[False], labels)


def test_momentum_update_by_hand():
    moco = toy_moco(m=0.9)
    before = moco.encoder_k.body.weight.clone()
    with torch.no_grad():
        moco.encoder_q.body.weight.add_(1)
    x = torch.randn(4, 3, 1, 1)
    moco(x, x, x, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    expected = 0.9 * before + 0.1 * moco.encoder_q.body.weight
    torch.testing.assert_close(moco.encoder_k.body.weight, expected.detach())


def test_without_contrast_the_key_side_stands_still():
    moco = toy_moco(m=0.9)
    before = {k: v.clone() for k, v in moco.state_dict().items()}
    x = torch.randn(4, 3, 1, 1)
    out = moco(x, x, contrast=False)
    assert list(out) == ["logits"]
    assert torch.equal(out["logits"], moco.encoder_q(x))
    assert all(torch.equal(v, before[k]) for k, v in moco.state_dict().items())


class Wide(Toy):
    feature_dim = 9


def test_query_and_keys_are_unit_vectors_under_autocast_too():
    moco = toy_moco()
    images, labels = torch.randn(3, 6, 3), torch.randint(0, 3, (6,))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        out = moco(*images, labels, index=torch.arange(6))
    for unit in (out["query"], out["key"]):
        assert unit.dtype == torch.float32
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))


def test_a_teachers_keys_are_trained_under_autocast_too():
    images = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))
    labels, grads = torch.arange(6) % 3, []
    for half in (False, True):
        moco = toy_moco()
        moco.set_distiller(Toy(3, True))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = moco(*images, labels, index=torch.arange(6))
        out["key"][:, 0].sum().backward()
        grads.append(moco.embed_k[0].weight.grad)
    assert (grads[1] - grads[0]).norm() < 0.1 * grads[0].norm()


def test_teacher_of_another_feature_size():
    moco = toy_moco(feat_t=9)
    with pytest.raises(ValueError, match="features of size 5, feat_t says 9"):
        moco.set_distiller(Toy(3, True))
    moco.set_distiller(Wide(3, True))
    x = torch.randn(4, 3, 1, 1)
    out = moco(x, x, x, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert out["key"].shape == (12, 4)
    out["key"].sum().backward()
    assert all(p.grad is not None for p in moco.embed_k.parameters())
    assert not any(p.requires_grad for p in moco.encoder_k.parameters())


def test_train_keeps_the_teacher_in_evaluation_mode_and_returns_the_module():
    moco = toy_moco()
    moco.set_distiller(Toy(3, True))
    assert moco.train() is moco
    assert moco.training and moco.encoder_q.training and not moco.encoder_k.training
    assert moco.eval() is moco
    assert not moco.encoder_q.training


def steps_of_rank(rank, world_size, folder, teacher):
    """Three steps on this process's part of each batch; rank 0 leaves the state for the test."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
        )
    moco = toy_moco(K=24)
    if teacher:
        moco.set_distiller(Toy(3, True))
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(100 + rank)  # the order of rank 0 has to reach the others
    share = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    for step in range(3):
        im_cls, im_q, im_k = torch.randn(3, 8, 3, 1, 1, generator=generator)[:, share]
        labels = torch.randint(0, 3, (8,), generator=generator)[share]
        index = torch.arange(8)[share] + 8 * step
        out = moco(im_cls, im_q, im_k, labels, index)
    state = {k: v for k, v in moco.state_dict().items() if k.startswith("queue")}
    torch.save(state | {"t_logits": out["t_logits"]}, f"{folder}/rank{rank}of{world_size}.pt")
    if world_size > 1:
        part(failed=False)


def test_two_processes_keep_the_queue_of_one(tmp_path):
    context = torch.multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    for teacher in (True, False):
        folder = tmp_path / str(teacher)
        folder.mkdir()
        processes = [
            context.Process(target=steps_of_rank, args=(rank, world_size, folder, teacher))
            for rank, world_size in ((0, 1), (0, 2), (1, 2))
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(tools.TIMEOUT)
            assert process.exitcode == 0
        alone, first, second = (
            torch.load(folder / f"rank{name}.pt", weights_only=True)
            for name in ("0of1", "0of2", "1of2")
        )
        for name in ("queue_k", "queue_l", "queue_i", "queue_ptr"):
            assert torch.equal(first[name], alone[name]), name
            assert torch.equal(second[name], alone[name]), name
        both = torch.cat([first["t_logits"], second["t_logits"]])  # sums of another order
        torch.testing.assert_close(both, alone["t_logits"], rtol=1e-5, atol=1e-6)
