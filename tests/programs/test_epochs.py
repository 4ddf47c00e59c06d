"""Every program shuffles anew in each epoch, as (seed, epoch) says."""

import pytest
import torch

from common.training.seeds import derive
from datasets import loaders
from tests.programs import small_runs

# Epochs in which each training loader is used, where those are not the first three.
EPOCHS = {
    "dbm_cifar_cmo": [range(10), [4, 5, 6]],
    "dbm_large_cmo": [range(5), [1, 2, 3]],
    "hml_isic": [[1, 2, 3]],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def orders(monkeypatch):
    """{training loader: the indices that it yielded, a list for each iteration}."""
    seen = {}
    for kind in (loaders.DeviceLoader, loaders.WorkersLoader):

        def watch(loader, original=kind.__iter__):
            if loader._plan._even:
                seen.setdefault(loader, []).append([])
            for batch in original(loader):
                if loader._plan._even:
                    seen[loader][-1] += batch[2].tolist()
                yield batch

        monkeypatch.setattr(kind, "__iter__", watch)
    return seen


@pytest.mark.parametrize("name", small_runs.PROGRAMS)
def test_each_epoch_has_the_order_of_its_seed_and_number(here, orders, name):
    program, argv = small_runs.command(name)
    orders.clear()
    epochs = EPOCHS.get(name, [[0, 1, 2]])
    program.main(argv)
    assert len(orders) == len(epochs)
    seeds = [small_runs.SEED, derive(small_runs.SEED, "balanced")]
    for (loader, found), its_epochs, seed in zip(orders.items(), epochs, seeds, strict=False):
        assert len(found) == len(its_epochs)
        assert len(set(map(tuple, found))) == len(found)
        for order, epoch in zip(found, its_epochs, strict=True):
            generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
            expected = loader._plan._order(generator).tolist()
            assert order == expected[: len(order)]
            if "cmo" not in name and name != "arb_stage2":  # those draw by class
                shuffled = torch.randperm(len(expected), generator=generator.manual_seed(
                    derive(seed, "order", epoch)))  # fmt: skip
                assert expected == shuffled.tolist()
