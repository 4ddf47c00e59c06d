"""Two ways to feed a training loop, with one set of rules.

Both yield batches ``(images or views, target, index)`` on the training device, images in the wanted
memory format. Both are replayable: everything that an epoch draws derives from (seed, epoch),
whatever the number of workers, and ``set_epoch`` may start in the middle of an epoch. With several
processes each takes its share of every global batch in training; in evaluation they take turns with
whole batches.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from common.training.errors import RunError, UsageError
from common.training.launch import Process
from common.training.seeds import derive

Order = Callable[[torch.Generator], torch.Tensor]

# More workers than cores, by default on a small machine: said when a loader is made and iterated.
warnings.filterwarnings("ignore", message="This DataLoader will create")


def shuffled(num_samples: int) -> Order:
    """Every sample once, in random order."""
    return lambda generator: torch.randperm(num_samples, generator=generator)


def in_order(num_samples: int) -> Order:
    """Every sample once, in the stored order (evaluation)."""
    return lambda generator: torch.arange(num_samples)


def drawn_by_weight(weights: Sequence[float], num_samples: int) -> Order:
    """``num_samples`` draws with replacement, sample i in proportion to ``weights[i]``."""
    weights = torch.as_tensor(np.asarray(weights), dtype=torch.float64)
    return lambda generator: torch.multinomial(weights, num_samples, True, generator=generator)


def epoch_batches(
    order: torch.Tensor, batch_size: int, process: Process, *, drop_last: bool, even: bool
) -> list[torch.Tensor]:
    """The batches of this process.

    Args:
        order: sample indices of the whole epoch.
        batch_size: in training over all processes, in evaluation of each.
        even: training: every process gets equally many samples of each batch (the last batch wraps
            around where it does not divide), and more than one: a last batch that is too small for
            batch norm joins the one before. Otherwise the processes take turns: whole batches, so
            that a loss is that of one process, and no sample twice (evaluation).
    """
    batches = [batch for batch in order.split(batch_size) if len(batch)]
    if even and not drop_last and left_over(len(order), batch_size, process):
        batches[-2:] = [torch.cat(batches[-2:])]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    if not even:
        return batches[process.rank :: process.world_size]
    shares = []
    for batch in batches:
        wanted = -(-len(batch) // process.world_size) * process.world_size
        batch = batch.repeat(-(-wanted // len(batch)))[:wanted]
        shares.append(batch[process.rank :: process.world_size])
    return shares


def left_over(num_samples: int, batch_size: int, process: Process) -> int:
    """Samples in a last batch that gives each process only one; 0 if it gives more, or is full."""
    rest = num_samples % batch_size if num_samples > batch_size else 0
    return rest if rest <= process.world_size else 0


class _EpochPlan:
    """Which samples each batch of the epoch holds; shared by both loaders."""

    def __init__(
        self,
        order: Order,
        batch_size: int,
        seed: int,
        process: Process,
        drop_last: bool,
        even: bool,
        quiet: bool,
    ) -> None:
        self._order, self._batch_size, self._seed = order, batch_size, seed
        self._process, self._drop_last, self._even = process, drop_last, even
        self._augment = "augment" if even else "augment in evaluation"
        self.set_epoch(0)
        if even and not quiet:
            self._say_what_is_left_over()

    def _say_what_is_left_over(self) -> None:
        number, size = self.num_samples, self._batch_size
        start = f"note: {number} images in batches of {size} leave {number % size} over"
        if self._drop_last and number > size and number % size:
            self._process.say(f"{start}: left out of the epoch, as the loss takes full batches")
        elif not self._drop_last and left_over(number, size, self._process):
            self._process.say(
                f"{start}, too few for batch norm: the last batch of an epoch joins the one before"
            )

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        generator = torch.Generator().manual_seed(derive(self._seed, "order", epoch))
        order = self._order(generator)
        self.epoch, self.start_batch, self.num_samples = epoch, start_batch, len(order)
        self.batches = epoch_batches(
            order,
            self._batch_size,
            self._process,
            drop_last=self._drop_last,
            even=self._even,
        )

    def batch_seed(self, batch: int) -> int:
        return derive(self._seed, self._augment, self.epoch, batch, self._process.rank)

    def sample_seed(self, batch: int, position: int) -> int:
        # Of the place in the global batch: a sample may be drawn more than once, and the number of
        # processes changes nothing.
        rank, world_size = self._process.rank, self._process.world_size
        if self._even:
            position = rank + position * world_size
        else:
            batch = rank + batch * world_size
        return derive(self._seed, self._augment, self.epoch, batch, position)


class _Planned:
    """A loader whose ``_plan`` says which samples each batch holds."""

    _plan: _EpochPlan

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch that the next iteration yields, from its ``start_batch``-th batch on."""
        self._plan.set_epoch(epoch, start_batch)

    def __len__(self) -> int:
        """Batches in a whole epoch of this process."""
        return len(self._plan.batches)

    @property
    def full_batch(self) -> int:
        """Images of this process in each batch but the last."""
        return len(self._plan.batches[0])


class DeviceLoader(_Planned):
    """The whole set on the training device, augmented there a batch at a time.

    Args:
        images: uint8, (N, H, W, 3) as data sets hold them. targets: labels, (N,).
        batch_size: in training over all processes, in evaluation of each.
        transform: ``(uint8 (B, 3, H, W), CPU generator) -> float images`` or a tuple of views.
        order: samples of an epoch, default each once, shuffled.
        train: equal shares of each batch for all processes; otherwise (evaluation) they take turns
            with whole batches, and no sample is repeated.
        quiet: say nothing of a last batch that is left out or joins the one before.
        memory_format: of the images that the loader yields.
    """

    def __init__(
        self,
        images: np.ndarray,
        targets: Sequence[int],
        batch_size: int,
        transform: Callable[[torch.Tensor, torch.Generator], object],
        *,
        seed: int,
        process: Process,
        order: Order | None = None,
        train: bool = True,
        drop_last: bool = False,
        quiet: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        layout = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
        self.images = layout.to(process.device)
        self.targets = torch.as_tensor(
            np.asarray(targets), dtype=torch.int64, device=process.device
        )
        self._transform, self._memory_format = transform, memory_format
        self._device = process.device
        order = order or (shuffled if train else in_order)(len(images))
        self._plan = _EpochPlan(order, batch_size, seed, process, drop_last, train, quiet)

    def __iter__(self) -> Iterator[tuple]:
        plan = self._plan
        for batch in range(plan.start_batch, len(plan.batches)):
            index = plan.batches[batch].to(self._device, non_blocking=True)
            generator = torch.Generator().manual_seed(plan.batch_seed(batch))
            images = self._transform(self.images[index], generator)
            yield in_format(images, self._memory_format), self.targets[index], index

    def close(self) -> None:
        """Let go of the images; the loader cannot be used any more."""
        self.images = self.targets = None


class WorkersLoader(_Planned):
    """Any map-style data set, sample by sample in worker processes that live as long as the run.

    ``dataset[i]`` is ``(image or views, label)`` or ``(image or views, label, index)``; its
    transforms use the global generators of torch, numpy and ``random``, which are seeded for each
    sample, so that the number of workers changes nothing. Arguments as for ``DeviceLoader``, and
    ``finish``: what remains to be done to the images (or list of views) of a whole batch on the
    device. On a GPU the next batch is copied and finished while the network computes on this one.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        workers: int,
        seed: int,
        process: Process,
        order: Order | None = None,
        train: bool = True,
        drop_last: bool = False,
        quiet: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
        finish: Callable[[Tensor | list[Tensor]], Tensor | list[Tensor]] | None = None,
    ) -> None:
        self._device, self._memory_format, self._finish = process.device, memory_format, finish
        # One for all epochs: what was copied on a stream is freed for the same stream alone.
        self._copying = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        order = order or (shuffled if train else in_order)(len(dataset))
        self._plan = _EpochPlan(order, batch_size, seed, process, drop_last, train, quiet)
        self._loader = DataLoader(
            _Seeded(dataset),
            batch_sampler=_KeyedBatches(self._plan),
            num_workers=workers,
            pin_memory=process.device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else each epoch draws from the program's generator
        )

    def __iter__(self) -> Iterator[tuple]:
        try:
            yield from prefetch(self._loader, self._to_device, self._copying)
        except UsageError as error:  # torch puts the worker's traceback before the message
            # An image that proves damaged now ends a run that could not foresee it.
            raise RunError(str(error).rsplit("UsageError: ", 1)[-1].strip()) from None
        except (EOFError, ConnectionError, FileNotFoundError) as error:
            if not self._loader.num_workers or str(error).startswith("Caught "):  # of a sample
                raise
            # It died while its batch was fetched; in torch's words of a worker that is missed.
            raise RuntimeError("DataLoader worker (pid unknown) exited unexpectedly") from None

    def _to_device(self, images: Tensor | list[Tensor], target: Tensor, index: Tensor) -> tuple:
        def move(x: Tensor) -> Tensor:
            return x.to(self._device, non_blocking=True)

        views = move(images) if isinstance(images, Tensor) else [move(view) for view in images]
        views = in_format(views, self._memory_format)
        if self._finish is not None:
            views = self._finish(views)
        return views, move(target), move(index)

    def close(self) -> None:
        """End the workers; the loader cannot be used any more.

        Left to the garbage collector, each of them would be waited for, for five seconds.
        """
        self._loader = None


Loader = DeviceLoader | WorkersLoader


def in_format(
    images: Tensor | Sequence[Tensor], memory_format: torch.memory_format
) -> Tensor | list[Tensor]:
    """Images (B, C, H, W), or each of several views, in a memory format."""
    if isinstance(images, Tensor):
        return images.contiguous(memory_format=memory_format)
    return [in_format(view, memory_format) for view in images]


def prefetch(
    batches: Iterable[tuple], prepare: Callable[..., tuple], copying: torch.cuda.Stream | None
) -> Iterator[tuple]:
    """``prepare(*batch)`` of each batch; on a GPU one batch ahead, on the stream ``copying``."""
    if copying is None:
        for loaded in batches:
            yield prepare(*loaded)
        return
    computing = torch.cuda.current_stream(copying.device)
    ahead = None
    for loaded in batches:
        ready = ahead
        with torch.cuda.stream(copying):
            ahead = prepare(*loaded)
        if ready is not None:
            yield ready
        computing.wait_stream(copying)
        for tensor in _tensors(ahead):
            tensor.record_stream(computing)
    if ahead is not None:
        yield ahead


def _tensors(batch: Tensor | Sequence) -> Iterator[Tensor]:
    if isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _tensors(part)
    else:
        yield batch


class _KeyedBatches:
    """Batch sampler whose keys carry each sample's seed: persistent workers see no other state."""

    def __init__(self, plan: _EpochPlan) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan.batches) - self._plan.start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan = self._plan
        for batch in range(plan.start_batch, len(plan.batches)):
            indices = plan.batches[batch].tolist()
            yield [(plan.sample_seed(batch, i), index) for i, index in enumerate(indices)]


class _Seeded(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple:
        seed, index = key
        if get_worker_info() is not None:
            return self._sample(seed, index)
        state = torch.get_rng_state(), np.random.get_state(), random.getstate()
        try:
            return self._sample(seed, index)
        finally:  # without workers the program's own generators are left as they were
            torch.set_rng_state(state[0])
            np.random.set_state(state[1])
            random.setstate(state[2])

    def _sample(self, seed: int, index: int) -> tuple:
        # torch.manual_seed would also look for CUDA, which a worker must not touch.
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        sample = self.dataset[index]
        return sample if len(sample) == 3 else (*sample, index)
