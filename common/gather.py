"""The whole batch in every process: losses compare its images, or divide by their weights."""

import torch
import torch.distributed as dist


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        # Each process computes the same loss from the same rows, so its gradient of its own rows is
        # complete. DistributedDataParallel will divide by the number of processes: undone here.
        world_size = dist.get_world_size()
        return grad.chunk(world_size)[dist.get_rank()] * world_size


def gather_batch(x: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, (world_size · N, …) in the order of the ranks, with gradient.

    Meant for a loss that every process computes in full and a model inside
    DistributedDataParallel: together they give the gradients of one process with the whole batch.
    Every process must bring equally many rows. In a single process this is ``x`` itself.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x.contiguous())
