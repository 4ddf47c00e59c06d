"""What is faster is the default, and the user's word counts."""

from argparse import Namespace

import pytest
import torch
import torch.distributed as dist

from common.training import speed
from common.training.launch import Process
from common.training.peers import part
from datasets.loaders import epoch_batches

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_channels_last_where_it_is_faster_unless_the_user_says():
    cases = [
        (None, CPU, "none", True),
        (None, CPU, "bf16", True),
        (None, GPU, "none", False),
        (None, GPU, "bf16", True),
        (None, GPU, "fp16", True),
        (False, CPU, "none", False),
        (True, GPU, "none", True),
    ]
    for asked, device, amp, expected in cases:
        assert speed.use_channels_last(asked, device, amp) is expected


def test_evaluation_batches_grow_with_the_memory_of_a_gpu(monkeypatch):
    cases = [
        (100, CPU, 32, 0, 100),
        (100, GPU, 32, 80, 4000),  # 12,207 fit
        (128, GPU, 32, 8, 1152),  # 1,220 fit
        (100, GPU, 224, 80, 200),
        (256, GPU, 224, 8, 256),
    ]
    for nominal, device, side, gigabytes, expected in cases:
        facts = Namespace(total_memory=gigabytes * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
        assert speed.evaluation_batch(nominal, device, side) == expected


def evaluated_beside(rank, folder):
    """The images that this of two processes evaluates: their GPUs have 24 and 48 GB."""
    facts = Namespace(total_memory=24 * 10**9 * (rank + 1))
    torch.cuda.get_device_properties = lambda device: facts
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    batch_size = speed.evaluation_batch(100, GPU, 32)
    part(failed=False)
    here = Process(CPU, rank, world_size=2)
    batches = epoch_batches(torch.arange(10_000), batch_size, here, drop_last=False, even=False)
    torch.save(batches, folder / f"{rank}.pt")


def test_gpus_of_different_memory_evaluate_each_image_once(tmp_path):
    torch.multiprocessing.start_processes(
        evaluated_beside, (tmp_path,), nprocs=2, start_method="fork"
    )
    one, other = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [len(batch) for batch in (*one, *other)] == [3600, 2800, 3600]
    assert torch.cat([*one, *other]).unique().tolist() == list(range(10_000))


def forward(model, criterion, images, target, factor=1.0):
    return criterion(model(images) * factor, target), images


MODEL, CRITERION = torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss()
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, TARGET = torch.rand(4, 2, generator=GENERATOR), torch.tensor([0, 1, 2, 0])


@pytest.fixture
def graphs(monkeypatch):
    """What was given to the compiler: a graph module a compilation."""
    given = []

    def compile_(graph, inputs):
        given.append(graph)
        return graph

    monkeypatch.setitem(speed.COMPILER, "cpu", {"backend": compile_})
    torch._dynamo.reset()
    return given


def test_full_batches_are_compiled_once_whatever_the_factor_and_others_run_as_they_are(
    graphs, capsys
):
    compiled = speed.compiled(forward, True, Process(CPU), full_batch=4)
    graphs.clear()  # what tried the compiler
    for factor in (1.0, 0.5, 0.25):
        for count in (4, 3, 4):
            batch = IMAGES[:count], TARGET[:count], factor
            loss, _ = compiled(MODEL, CRITERION, *batch)
            expected, _ = forward(MODEL, CRITERION, *batch)
            assert loss.item() == pytest.approx(expected.item())
    assert len(graphs) == 1
    assert speed.compile_seconds(Process(CPU)) > 0
    assert capsys.readouterr().out.startswith("compiled in ")
    assert speed.compile_seconds(Process(CPU)) == 0 and capsys.readouterr().out == ""


def test_without_a_compiler_one_line_says_so(monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("no g++ here\nand a second line")

    monkeypatch.setitem(speed.COMPILER, "cpu", {"backend": broken})
    assert speed.compiled(forward, True, Process(CPU), full_batch=4) is forward
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: compile has no effect, there is no working compiler (")
    assert "no g++ here" in line


def test_nothing_is_compiled_unasked():
    assert speed.compiled(forward, False, Process(CPU), full_batch=4) is forward
