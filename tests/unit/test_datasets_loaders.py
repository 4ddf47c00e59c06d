"""The two loaders: replayable, shared exactly among processes, startable in the middle."""

import contextlib
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

from common.training.launch import Process
from common.training.seeds import derive, seed_everything
from datasets import loaders
from datasets.loaders import (
    DeviceLoader,
    WorkersLoader,
    drawn_by_weight,
    epoch_batches,
    in_order,
    prefetch,
    shuffled,
)
from datasets.memory import ArrayDataset

CPU = Process(torch.device("cpu"))
RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (23, 8, 8, 3)).astype(np.uint8)
TARGETS = RNG.randint(0, 4, 23)


def ranks(world):
    return [Process(torch.device("cpu"), rank, world) for rank in range(world)]


def noisy(images, generator):
    return images.float() + torch.rand(images.shape, generator=generator)


def noisy_image(image):
    value = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)
    return value + torch.rand(()) + np.random.rand()


def device(process=CPU, **options):
    return DeviceLoader(IMAGES, TARGETS, 5, noisy, seed=1, process=process, **options)


def workers(process=CPU, number=0, **options):
    dataset = ArrayDataset(IMAGES, TARGETS, noisy_image)
    return WorkersLoader(dataset, 5, workers=number, seed=1, process=process, **options)


def everything(loader):
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def test_an_epoch_holds_every_sample_once_with_its_label():
    for build in [device, workers]:
        images, target, index = everything(build())
        assert sorted(index.tolist()) == list(range(23)) and index.tolist() != list(range(23))
        assert target.tolist() == TARGETS[index].tolist()
        clean = torch.from_numpy(IMAGES[index]).permute(0, 3, 1, 2)
        noise = images.double() - clean
        assert noise.min() >= 0 and noise.max() < 2


def test_an_epoch_can_be_replayed_and_entered_in_the_middle():
    for build in [device, workers]:
        loader = build()
        loader.set_epoch(3)
        whole = everything(loader)
        again = build()
        again.set_epoch(4)
        other = everything(again)
        again.set_epoch(3)
        assert all(torch.equal(a, b) for a, b in zip(whole, everything(again), strict=True))
        assert not torch.equal(whole[2], other[2])
        again.set_epoch(3, start_batch=2)
        assert all(torch.equal(a[10:], b) for a, b in zip(whole, everything(again), strict=True))
        assert len(again) == 5  # of the whole epoch


def test_the_number_of_workers_changes_nothing():
    alone, two = workers(number=0), workers(number=2)
    for epoch in (0, 1):  # persistent workers see the new epoch
        for loader in (alone, two):
            loader.set_epoch(epoch)
        for a, b in zip(everything(alone), everything(two), strict=True):
            assert torch.equal(a, b)


def test_without_workers_the_programs_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3).tolist(), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    everything(workers())
    assert (torch.rand(3).tolist(), np.random.rand()) == expected


def test_the_order_is_not_what_the_program_draws_in_the_epoch():
    """As mixup's partners in an epoch of one batch: each image would be mixed with one known."""
    loader = WorkersLoader(
        ArrayDataset(IMAGES, TARGETS, noisy_image), 23, workers=0, seed=1, process=CPU
    )
    loader.set_epoch(2)
    _, _, order = everything(loader)
    seed_everything(1, "training", 2)
    assert not torch.equal(order, torch.randperm(23))
    torch.manual_seed(derive(1, "order", 2))
    assert torch.equal(order, torch.randperm(23))


def test_no_two_batches_of_the_device_draw_the_same():
    """Not in one epoch, nor in two, in two processes or with two seeds."""

    def first_draws(**options):
        options = {"seed": 1, "process": CPU} | options
        draw = lambda images, generator: torch.rand(1, generator=generator)  # noqa: E731
        loader = DeviceLoader(IMAGES, TARGETS, 5, draw, **options)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            yield from [draws.item() for draws, *_ in loader]

    found = [*first_draws(), *first_draws(seed=2), *first_draws(process=ranks(2)[1])]
    assert len(found) == len(set(found)) == 3 * 2 * 5


def test_no_two_samples_draw_the_same():
    def draws(**options):
        dataset = ArrayDataset(IMAGES, TARGETS, lambda image: torch.rand(()))
        loader = WorkersLoader(dataset, 5, workers=0, process=CPU, **options)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            yield from everything(loader)[0].tolist()

    found = [*draws(seed=1), *draws(seed=2), *draws(seed=1, train=False)]
    assert len(found) == len(set(found)) == 3 * 2 * 23


def test_training_and_evaluation_are_augmented_differently():
    in_stored_order = workers(order=in_order(23))
    assert not torch.equal(everything(in_stored_order)[0], everything(workers(train=False))[0])


def test_processes_share_each_global_batch_evenly():
    for world in [2, 3, 4]:
        single = epoch_batches(torch.arange(25), 10, CPU, drop_last=False, even=True)
        shares = [
            epoch_batches(torch.arange(25), 10, p, drop_last=False, even=True) for p in ranks(world)
        ]
        assert len({tuple(len(part) for part in share) for share in shares}) == 1
        for step, batch in enumerate(single):
            together = torch.cat([share[step] for share in shares])
            assert set(together.tolist()) == set(batch.tolist())
            assert len(together) - len(batch) < world


def test_a_last_batch_of_one_image_joins_the_one_before(capsys):
    cases = [
        (21, 1, [5, 5, 5, 6]),
        (22, 1, [5, 5, 5, 5, 2]),
        (22, 2, [3, 3, 3, 4]),  # 5, 5, 5, 7 images, shared evenly
        (23, 2, [3, 3, 3, 3, 2]),
        (3, 4, [1]),  # no batch to join
    ]
    for build, (count, world, sizes) in product([device, workers], cases):
        for process in ranks(world):
            loader = build(process, order=shuffled(count))
            assert len(loader) == len(sizes)
            assert [len(target) for _, target, _ in loader] == sizes
        note = (
            f"note: {count} images in batches of 5 leave {count % 5} over, too few for batch norm"
        )
        said = capsys.readouterr().out
        assert said.count(note) == said.count("\n") == (len(sizes) == 4)  # by process 0 alone


def test_evaluation_and_full_batches_alone_have_no_need_of_it(capsys):
    assert [len(t) for _, t, _ in device(train=False, order=in_order(21))] == [5, 5, 5, 5, 1]
    assert capsys.readouterr().out == ""
    assert [len(t) for _, t, _ in device(drop_last=True, order=in_order(21))] == [5] * 4
    assert capsys.readouterr().out == (
        "note: 21 images in batches of 5 leave 1 over: left out of the epoch, as the loss takes "
        "full batches\n"
    )
    device(drop_last=True, order=in_order(20))
    assert capsys.readouterr().out == ""


def test_processes_augment_as_one_would():
    whole = everything(workers(train=False))[0]  # in stored order
    for process in ranks(2):
        images, _, share = everything(workers(process, train=False))
        assert torch.equal(images, whole[share])


def test_evaluation_repeats_and_drops_nothing():
    for world in [2, 5]:
        shares = [everything(device(p, train=False))[2] for p in ranks(world)]
        assert sorted(torch.cat(shares).tolist()) == list(range(23))


def test_incomplete_batches_can_be_dropped():
    assert [len(t) for _, t, _ in device(drop_last=True)] == [5] * 4


def test_weighted_order_prefers_heavy_samples():
    order = drawn_by_weight([0.0, 1.0, 3.0], 8000)(torch.Generator().manual_seed(0))
    counts = order.bincount(minlength=3)
    assert counts[0] == 0 and counts[2] / counts[1] == pytest.approx(3, rel=0.1)
    assert sorted(shuffled(9)(torch.Generator()).tolist()) == list(range(9))


def test_a_sample_drawn_twice_is_augmented_twice():
    order = lambda generator: torch.zeros(4, dtype=torch.int64)  # noqa: E731
    images, _, index = everything(workers(order=order))
    assert index.tolist() == [0] * 4
    assert len({float(image.sum()) for image in images}) == 4


def test_a_worker_that_dies_while_its_batch_is_fetched():
    """That is not the same as a sample that cannot be read."""
    cases = [
        (EOFError(), RuntimeError, "DataLoader worker .* exited unexpectedly"),
        (ConnectionResetError(), RuntimeError, "DataLoader worker .* exited unexpectedly"),
        (EOFError("Caught EOFError in DataLoader worker process 0."), EOFError, "Caught"),
    ]
    for error, kind, words in cases:

        class Broken:
            num_workers = 1

            def __iter__(self):
                raise error
                yield

        loader = workers()
        loader._loader = Broken()
        with pytest.raises(kind, match=words):
            list(loader)


def test_several_views_of_one_image():
    dataset = ArrayDataset(IMAGES, TARGETS, [noisy_image, noisy_image])
    loader = WorkersLoader(dataset, 4, workers=0, seed=0, process=CPU)
    (first, second), target, _ = next(iter(loader))
    assert first.shape == second.shape == (4, 3, 8, 8) and target.shape == (4,)
    assert not torch.equal(first, second)


def test_images_come_in_the_wanted_memory_format_with_the_same_values():
    for build in [device, workers]:
        loader = build(memory_format=torch.channels_last)
        images = next(iter(loader))[0]
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, next(iter(build()))[0])


def test_every_view_comes_in_the_wanted_memory_format():
    dataset = ArrayDataset(IMAGES, TARGETS, [noisy_image, noisy_image])
    options = {"seed": 0, "process": CPU, "memory_format": torch.channels_last}
    pair = lambda images, generator: (images.float(), images.float())  # noqa: E731
    cases = (
        WorkersLoader(dataset, 4, workers=0, **options),
        DeviceLoader(IMAGES, TARGETS, 4, pair, **options),
    )
    for loader in cases:
        views = next(iter(loader))[0]
        assert type(views) is list and len(views) == 2
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views)


def test_a_whole_batch_is_finished_on_the_device():
    finished = workers(finish=lambda images: images + 100)
    for (plain, *_), (images, *_) in zip(workers(), finished, strict=True):
        assert torch.equal(images, plain + 100)


def test_on_a_gpu_the_next_batch_is_copied_while_one_is_computed(monkeypatch):
    """The order of events, with the streams of a GPU that is not there written down."""
    events = []

    class Stream:
        device = "cuda"

        def wait_stream(self, other):
            events.append("wait")

    class OnDevice:
        def __init__(self, name):
            self.name = name

        def record_stream(self, stream):
            events.append(f"own {self.name}")

    def prepare(name):
        events.append(f"copy {name}")
        return ([OnDevice(name)], OnDevice(name.upper()))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    for (first,), _ in prefetch(["a", "b", "c"], prepare, Stream()):
        events.append(f"compute {first.name}")
    expected = (
        "copy a,wait,own a,own A,copy b,compute a,wait,own b,own B,copy c,compute b,wait,own c,"
        "own C,compute c"
    )
    assert events == expected.split(",")
    events.clear()
    assert not list(prefetch([], prepare, Stream())) and not events


def test_a_loader_copies_on_one_stream_in_all_epochs(monkeypatch):
    """The allocator keeps memory by stream: with a new one each epoch, a new set of buffers."""
    made, used = [], []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or len(made))
    monkeypatch.setattr(loaders, "prefetch", lambda *args: used.append(args[-1]) or [])
    for loader in [workers(Process(torch.device("cuda", 0))), workers()]:
        for _ in range(3):
            list(loader)
    assert made == [torch.device("cuda", 0)] and used == [1, 1, 1, None, None, None]


def test_more_workers_than_cores_are_no_warning():
    code = (
        "import os; from tests.unit.test_datasets_loaders import workers\n"
        "os.sched_getaffinity = lambda process: {0}\n"
        "loader = workers(number=2); next(iter(loader)); loader.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
