"""common.gather: two processes with half the batch each are one with all of it.

One step of each paper's own training loop in float64, for every loss and rule: the loss that it
reports and, with a learning rate of 1, the gradients.
"""

import collections
from argparse import Namespace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize

import arbloss.engine
import dbm_loss.cifar.engine
import dbm_loss.GML.engine
import dbm_loss.large_scale.engine
import hmloss.engine
import hmloss.isic2019_implementation.engine
import ib_loss.engine
from common.gather import gather_batch
from common.training.launch import Process, distribute, unwrap
from common.training.learner import Learner
from common.training.logs import TextLog
from common.training.peers import part
from datasets.loaders import DeviceLoader
from dbm_loss.cifar.models import KeyQueue, NCLModel
from dbm_loss.GML.moco import MoCo

pytestmark = pytest.mark.usefixtures("no_gpu")
COUNTS = [40, 9, 3]
TARGET = torch.tensor([0, 0, 0, 1, 0, 2, 0, 1])  # every second one: the shares weigh differently
PIXELS = torch.randn(3, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
SCALER = torch.amp.GradScaler("cpu", enabled=False)
ARGS = {
    "channels_last": False, "amp": "none", "print_freq": 10**9, "save_every": 0,
    "use_norm": True, "use_dbm": True, "max_margin": 0.2, "tau": 1.0, "cos_scale": 30.0,
    "lambda_inst": 1.0, "margin_norm": "last", "mixup_prob": 1.0, "gamma": 1.0, "delta": 100.0,
    "alpha": 1.0, "beta": 1.0, "moco_t": 0.5, "start_ib_epoch": 0, "program": "main", "mark": "log",
}  # fmt: skip


class Small(nn.Module):
    """Logits between -0.9 and 0.9, of each image by itself: batch norm would see its share alone.

    ``order`` names what a program expects of its network.
    """

    def __init__(self, order: str = "logits"):
        super().__init__()
        self.order = order
        self.body = nn.Linear(48, 5)
        self.fc = nn.Linear(5, len(COUNTS))
        if order == "features logits centers":
            self.head_fc = nn.Linear(5, 4)

    def forward(self, x, return_features=False):
        features = self.body(x.flatten(1)).tanh()
        logits = 0.9 * self.fc(features).tanh()
        if return_features or self.order == "logits features":
            return logits, features
        if hasattr(self, "head_fc"):
            centers = normalize(self.head_fc(self.fc.weight), dim=1)
            return normalize(features[:, :4], dim=1), logits, centers
        return logits

    def classify(self, x):
        return self(x)


class SmallNCL(NCLModel):
    """NCL's three networks, linear."""

    def __init__(self):
        nn.Module.__init__(self)
        three = range(self.networks)
        flat = lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5))  # noqa: E731
        self.MOCO = nn.ModuleList(KeyQueue(4, 16, temperature=0.2) for _ in three)
        self.backbone = nn.ModuleList(flat() for _ in three)
        self.backbone_MA = nn.ModuleList(flat() for _ in three).requires_grad_(False)
        self.classifier = nn.ModuleList(nn.Linear(5, 4) for _ in three)
        self.classifier_MA = nn.ModuleList(nn.Linear(5, 4) for _ in three).requires_grad_(False)
        cosines = lambda: nn.Sequential(nn.Linear(5, len(COUNTS)), nn.Tanh())  # noqa: E731
        self.classifier_ce = nn.ModuleList(cosines() for _ in three)


class Encoder(nn.Module):
    """What MoCo expects."""

    feature_dim = 5

    def __init__(self, num_classes, use_norm):
        super().__init__()
        self.body = nn.Linear(48, 5)
        self.fc = nn.Linear(5, num_classes)

    def forward(self, x, return_features=False):
        features = self.body(x.flatten(1)).tanh()
        logits = 0.9 * self.fc(features).tanh()
        return (logits, features) if return_features else logits


def record(process):
    log = collections.defaultdict(lambda: TextLog(None))
    return SimpleNamespace(log=log, seed=0, process=process)


class Step:
    """One step of a training loop on this process's share; ``loss``, and ``grads`` by name."""

    def __init__(self, process, model, *, criterion=None, **ddp):
        self.process, self.model = process, distribute(model.double(), process, **ddp)
        self.rows = slice(process.rank, None, process.world_size)
        parameters = list(self.model.parameters())
        if criterion is not None:
            parameters += criterion.parameters()
        self.optimizer = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=1.0)
        self.before = {k: p.detach().clone() for k, p in unwrap(model).named_parameters()}

    def learner(self, forward):
        return Learner(self.model, self.optimizer, SCALER, forward)

    def batch(self, views=1):
        images = [view[self.rows].clone() for view in PIXELS[:views]]
        index = torch.arange(len(TARGET))[self.rows]
        return [(images if views > 1 else images[0], TARGET[self.rows], index)]

    def done(self, row):
        self.loss = row["train_loss"]
        after = unwrap(self.model).named_parameters()
        self.grads = {name: self.before[name] - p.detach() for name, p in after}
        return self


def ib(process, loss_type, train_rule):
    engine = ib_loss.engine
    args = Namespace(**ARGS, loss_type=loss_type, train_rule=train_rule)
    criterion = engine.build_criterion(args, COUNTS, epoch=0, drw_epoch=0).double()
    step = Step(process, Small())
    learner = step.learner(engine.forward_pass)
    return step.done(
        engine.train_one_epoch(learner, step.batch(), criterion, 0, args, record(process))
    )


def hml(process, loss_type, weighting_type, hml_stage):
    engine = hmloss.engine
    args = Namespace(**ARGS, loss_type=loss_type, weighting_type=weighting_type)
    criterion = engine.build_criterion(args, COUNTS, hml_stage)
    step = Step(process, Small())
    learner = step.learner(engine.forward_pass)
    return step.done(
        engine.train_one_epoch(learner, step.batch(), criterion, 0, args, record(process))
    )


def isic(process, loss_type, weighting_type, hml_stage):
    args = Namespace(**ARGS, loss_type=loss_type, weighting_type=weighting_type)
    criterion = hmloss.engine.build_criterion(args, COUNTS, hml_stage)
    step, engine = Step(process, Small()), hmloss.engine
    learner = step.learner(engine.forward_pass)
    return step.done(hmloss.isic2019_implementation.engine.train_one_epoch(
        learner, step.batch(), criterion, 0, lambda _: 1.0, args, process
    ))  # fmt: skip


def dbm_cifar(process, loss_fn, cmo=False):
    engine = dbm_loss.cifar.engine
    args = Namespace(**ARGS, loss_fn=loss_fn)
    schedule = SimpleNamespace(drw_epoch=0 if loss_fn.endswith("drw") else None)
    criterion = engine.build_criterion(args, COUNTS, schedule)
    order = "features logits centers" if loss_fn == "bcl" else "logits"
    step = Step(process, SmallNCL() if loss_fn == "ncl" else Small(order))
    views = {"ncl": 2, "bcl": 3}.get(loss_fn, 1)
    np.random.seed(2)  # the coin says yes
    pasted = [(PIXELS[1][step.rows], TARGET.flip(0)[step.rows], None)] if cmo else None
    learner = step.learner(engine.forward_pass(loss_fn))
    return step.done(
        engine.train_one_epoch(learner, step.batch(views), criterion, 0, args, process, pasted)
    )


def dbm_large(process, loss_fn, cmo=False):
    engine = dbm_loss.large_scale.engine
    args = Namespace(**ARGS, loss_fn=loss_fn)
    criterion = engine.build_criterion(args, COUNTS, drw_epoch=0)
    order = "features logits centers" if loss_fn == "bcl" else "logits"
    step = Step(process, Small(order))
    views = 3 if loss_fn == "bcl" else 1
    ((_, target, index),) = step.batch()
    batch = [(PIXELS[:views, step.rows].flatten(0, 1), target, index)]
    pasted = [(PIXELS[1][step.rows], TARGET.flip(0)[step.rows], index)] if cmo else None
    learner, loaders = step.learner(engine.forward_pass(loss_fn)), (batch, pasted)
    return step.done(engine.train_one_epoch(
        learner, loaders, criterion, 0, args, record(process), engine.Sums(process)
    ))  # fmt: skip


def gml(process, use_dbm):
    engine = dbm_loss.GML.engine
    args = Namespace(**ARGS | {"use_dbm": use_dbm})
    moco = MoCo(Encoder, dim=4, K=24, mlp=False, num_classes=len(COUNTS))
    moco.set_distiller(Encoder(len(COUNTS), True))
    criterion = engine.build_criterion(args, COUNTS).double()
    engine.partition(moco, Namespace(base_k=2, cls_num_list=COUNTS))
    ddp = {"find_unused_parameters": True, "broadcast_buffers": False}
    step = Step(process, moco, criterion=criterion, **ddp)
    temperature = criterion.log_T_c__no_wd__
    before = temperature.detach().clone()
    learner = step.learner(engine.forward_pass)
    step.done(engine.train_one_epoch(
        learner, step.batch(views=3), distribute(criterion, process, **ddp), 0, args,
        record(process), engine.Means(process),
    ))  # fmt: skip
    step.grads["temperature"] = before - temperature.detach()
    return step


def arb(process, stage, global_counts, **switches):
    engine = arbloss.engine
    off = dict.fromkeys(("LAS", "arbloss", "arbloss_fl", "warbloss", "mixup", "diagnostic"), False)
    config = SimpleNamespace(**ARGS | off | {
        "smooth_head": 0.3, "smooth_tail": 0.1, "num_classes": len(COUNTS),
        "arb_loss_use_global_class_cnt": global_counts, **switches,
    })  # fmt: skip
    criterion = engine.build_criterion(config, stage, COUNTS).double()
    count = engine.class_counter(config, stage, COUNTS, process.device)
    step = Step(process, Small("logits features"))
    learner = step.learner(engine.forward_pass)
    row, _ = engine.train_one_epoch(
        learner, step.batch(), criterion, count, 0, config, process, lambda *_: None
    )
    return step.done(row)


LOSSES = ("CE", "Focal", "LDAM", "HML", "HML2")
DBM_LOSSES = ("ce", "ce_drw", "bs", "ldam", "ldam_drw", "bcl")
CASES = [
    *product([ib], ("CE", "LDAM", "Focal", "IB", "IBFocal"),
             ("None", "CBReweight", "IBReweight", "DRW")),
    *product([hml, isic], LOSSES, ("None", "CS", "CB"), (False, True)),
    *product([dbm_cifar], (*DBM_LOSSES, "ncl")),
    *product([dbm_large], DBM_LOSSES),
    *product([dbm_cifar, dbm_large], ("ce_drw", "ldam_drw"), (True,)),  # with CMO
    *product([gml], (False, True)),
    (arb, 1, True, {}), (arb, 1, True, {"arbloss": True}), (arb, 1, True, {"LAS": True}),
    *((arb, 2, True, {name: True}) for name in ("arbloss", "arbloss_fl", "warbloss", "LAS")),
]  # fmt: skip


def run_case(case, process):
    make, *words = case
    switches = words.pop() if isinstance(words[-1], dict) else {}
    torch.manual_seed(1)
    step = make(process, *words, **switches)
    return {"loss": step.loss, **step.grads}


def case_name(case):
    make, *words = case
    return "-".join([make.__name__, *(str(word) for word in words)])


def evaluate(process, paper):
    """Loss and accuracy on 13 images in batches of 5, with class weights in the loss."""
    torch.manual_seed(1)
    pixels = np.random.RandomState(0).randint(0, 256, (13, 4, 4, 3)).astype(np.uint8)
    loader = DeviceLoader(
        pixels, [0] * 8 + [1, 2, 0, 2, 1], 5, lambda x, _: x.double() / 255,
        seed=0, process=process, train=False,
    )  # fmt: skip
    args, model = Namespace(**ARGS, loss_type="CE"), Small().double()
    if paper == "ib":
        args.train_rule = "IBReweight"
        criterion = ib_loss.engine.build_criterion(args, COUNTS, 0, 0).double()
        tally = ib_loss.engine.evaluate(model, loader, criterion, 3, args, process)
    else:
        args.weighting_type = "CS"
        criterion = hmloss.engine.build_criterion(args, COUNTS, False)
        tally = hmloss.engine.evaluate(model, loader, criterion, 3, args, process)
    result = tally.result()
    return {name: result[name] for name in ("loss", "top1", "ece")}


def everything(process):
    steps = {case_name(case): run_case(case, process) for case in CASES}
    return steps | {paper: evaluate(process, paper) for paper in ("ib", "hml")}


def child(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        found = everything(Process(torch.device("cpu"), rank, world_size=2))
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        part(failed=False)


@pytest.fixture(scope="module")
def alone_and_together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(child, (str(folder),), nprocs=2, start_method="fork")
    together = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return everything(Process(torch.device("cpu"))), together


def test_two_processes_are_one(alone_and_together):
    for name in [*map(case_name, CASES), "ib", "hml"]:
        alone, together = alone_and_together
        for rank in together:
            torch.testing.assert_close(rank[name], alone[name], rtol=1e-9, atol=1e-12)


def test_the_steps_depend_on_the_weights_and_move_something(alone_and_together):
    alone, _ = alone_and_together
    assert all(sum(float(g.abs().sum()) for k, g in found.items() if k != "loss") > 1e-3
               for name, found in alone.items() if "-" in name)  # fmt: skip
    assert alone["ib-CE-None"]["loss"] != alone["ib-CE-IBReweight"]["loss"]


def test_a_single_process_has_the_whole_batch():
    x = torch.randn(3, 2)
    assert gather_batch(x) is x
