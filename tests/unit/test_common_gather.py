"""common.gather: two processes with half the batch each are one with all of it."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from common.gather import gather_batch
from dbm_loss.losses import BCLLoss
from dbm_loss.margin import DBMargin
from tests.programs import tools

COUNTS = [40, 9, 3]
BATCH = 8


class SmallBCL(nn.Module):
    """The heads of BCL without batch norm, whose statistics are those of each process."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 5)
        self.fc = nn.Linear(6, len(COUNTS))
        self.head_fc = nn.Linear(6, 5)

    def forward(self, x):
        unit = nn.functional.normalize
        return unit(self.head(x)), self.fc(x).tanh() * 0.9, unit(self.head_fc(self.fc.weight))


def small_model() -> nn.Module:
    torch.manual_seed(1)
    return SmallBCL().double()


def step(model: nn.Module, views: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    feat, logits, centers = model(views.flatten(0, 1))
    n = len(target)
    features = gather_batch(torch.stack([feat[n : 2 * n], feat[2 * n :]], dim=1))
    criterion = BCLLoss(COUNTS, margin=DBMargin(COUNTS, scale=30.0))
    loss = criterion(gather_batch(logits[:n]), features, centers, gather_batch(target))
    loss.backward()
    return loss.detach()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    views = torch.randn(3, BATCH, 6, generator=generator, dtype=torch.float64)
    return views, torch.randint(0, len(COUNTS), (BATCH,), generator=generator)


def child(rank: int, port: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(small_model())
        views, target = batch()
        loss = step(model, views[:, rank::2], target[rank::2])
        grads = {name: p.grad for name, p in model.module.named_parameters()}
        torch.save({"loss": loss, "grads": grads}, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_compute_the_loss_and_gradients_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(child, (tools.free_port(), str(tmp_path)), nprocs=2)
    model = small_model()
    loss = step(model, *batch())
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got["loss"], loss)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(got["grads"][name], parameter.grad, msg=name)


def test_a_single_process_has_the_whole_batch():
    x = torch.randn(3, 2)
    assert gather_batch(x) is x
