"""Every program shuffles anew in each epoch, as (seed, epoch) says."""

import pytest
import torch
from torch import nn

from arbloss import train_stage1, train_stage2
from common.models import resnet
from common.training.seeds import derive
from datasets import loaders
from dbm_loss.cifar import main as dbm_cifar
from dbm_loss.cifar import models
from dbm_loss.GML import cifar_ce, cifar_main
from dbm_loss.GML import main as gml
from dbm_loss.large_scale import train as dbm_large
from hmloss.cifar_implementation import train_cifar as hml_cifar
from hmloss.inat_implementation import train_inat
from hmloss.isic2019_implementation import train_isic
from ib_loss import cifar_train as ib_cifar
from ib_loss import tinyimage_train as ib_tiny
from tests.programs import tools
from tests.programs.arbloss_data import CONFIG

SEED = 7
COUNTS = [7, 4, 2]  # in batches of 4 one image is left over
CIFAR = ["--dataset", "imagefolder", "--imb_type", "none", "--image_size", "8", "--seed", "7"]
DBM = [*CIFAR, "--data_dir", "data", "--batch-size", "4", "--loss_fn", "ce"]
GML = [*CIFAR, "--data", "data", "--arch", "resnet20", "--epochs", "3", "-b", "4",
       "--mark", "run"]  # fmt: skip
LARGE = ["--dataset", "imagefolder", "--root", "data", "-b", "4", "-j", "0", "--seed", "7"]
ARB = ["dataset", "imagefolder", "data_path", "data", "num_classes", "3", "imb_factor", "null",
       "image_size", "8", "backbone", "resnet20_fe", "batch_size", "4", "num_epochs", "3",
       "seed", "7", "head_class_idx", "[0,1]", "med_class_idx", "[1,2]", "tail_class_idx",
       "[2,3]"]  # fmt: skip
STAGE = str(CONFIG / "cifar10" / "cifar10_imb001_stage{}.yaml")
# What runs, and the epochs in which each of its training loaders is used.
PROGRAMS = {
    "ib_cifar": (ib_cifar, [*CIFAR, "--root", "data", "-a", "resnet20", "-b", "4", "--epochs", "3"],
                 [0, 1, 2]),
    "ib_tiny": (ib_tiny, [*CIFAR, "--root", "data", "--no-pretrained", "-b", "4", "--epochs", "3"],
                [0, 1, 2]),
    "dbm_cifar": (dbm_cifar, [*DBM, "--epochs", "3"], [0, 1, 2]),
    "dbm_cifar_cmo": (dbm_cifar, [*DBM, "--cmo", "--epochs", "10"], range(10), [4, 5, 6]),
    "dbm_large": (dbm_large, [*LARGE, "--epochs", "3"], [0, 1, 2]),
    "dbm_large_cmo": (dbm_large, [*LARGE, "--cmo", "--epochs", "5", "--start_data_aug", "0",
                                  "--end_data_aug", "1"], range(5), [1, 2, 3]),
    "gml_teacher": (cifar_ce, GML, [0, 1, 2]),
    "gml_student": (cifar_main, [*GML, "--moco-k", "16", "--moco-dim", "4"], [0, 1, 2]),
    "gml": (gml, ["--dataset", "imagefolder", "--data", "data", "--arch", "resnet18", "-b", "4",
                  "--workers", "0", "--moco_k", "16", "--moco_dim", "4", "--base_k", "2",
                  "--epochs", "3", "--seed", "7", "--mark", "run",
                  "--aug", "randcls_sim"], [0, 1, 2]),
    "hml_cifar": (hml_cifar, [*CIFAR, "--root", "data", "-a", "resnet20", "-b", "4",
                              "--epochs", "3", "--num_runs", "1"], [0, 1, 2]),
    "hml_inat": (train_inat, ["--dataset_dir", "data", "-a", "resnet10", "--image_size", "32",
                              "-b", "4", "-j", "0", "--epochs", "3", "--seed", "7"], [0, 1, 2]),
    "hml_isic": (train_isic, ["--arch", "resnet20", "--random_init", "--image_size", "8", "-b", "4",
                              "-j", "0", "--num_epochs", "3", "--num_runs", "1", "--seed", "7"],
                 [1, 2, 3]),
    "arb_stage1": (train_stage1, ["--cfg", STAGE.format("1_mixup"), *ARB], [0, 1, 2]),
    "arb_stage2": (train_stage2, ["--cfg", STAGE.format("2_mislas"), *ARB], [0, 1, 2]),
}  # fmt: skip


class Tiny(nn.Module):
    """A network for 224 pixels that costs nothing."""

    feature_dim = 6

    def __init__(self, num_classes, use_norm=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=16)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x, return_features=False):
        features = self.conv(x).relu().mean(dim=(2, 3))
        logits = self.fc(features)
        return (logits, features) if return_features else logits


def make_lists(root):
    for part, split in (("train", "train"), ("val", "test")):
        files = sorted((root / split).rglob("*.jpg"))
        lines = [f"{file.relative_to(root)} {int(file.parent.name[-3:])}" for file in files]
        (root / f"iNaturalist18_{part}.txt").write_text("\n".join(lines))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Data of every program where it looks for it, and networks that cost little."""
    root = tools.make_image_folder(tmp_path / "data", COUNTS, size=8, test_per_class=1)
    make_lists(root)
    for name, split in (("BEN", "train"), ("MAL", "test")):
        tools.make_image_folder(tmp_path / "isic" / name, [16], size=8, test_per_class=16)
        (tmp_path / "dataset").mkdir(exist_ok=True)
        (tmp_path / "isic" / name / split / "class_000").rename(tmp_path / "dataset" / name)
    for number, file in enumerate(sorted((tmp_path / "dataset" / "MAL").iterdir())):
        file.rename(file.with_name(f"mal{number}.jpg"))
    monkeypatch.setattr(models, "BLOCKS", 1)
    monkeypatch.setattr(dbm_large, "build_model", lambda _, __, num_classes, *a: Tiny(num_classes))
    monkeypatch.setattr(resnet, "resnet10", Tiny)
    monkeypatch.setattr(resnet, "resnet18", Tiny)
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


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_epoch_has_the_order_of_its_seed_and_number(here, orders, name):
    program, argv, *epochs = PROGRAMS[name]
    if name == "arb_stage2":
        train_stage1.main([*PROGRAMS["arb_stage1"][1], "num_epochs", "1", "arbloss", "False"])
        (path,) = here.glob("saved/*/ckps/current.pth.tar")
        argv = [*argv, "resume", str(path)]
        orders.clear()
    program.main(argv)
    assert len(orders) == len(epochs)
    seeds = [SEED, derive(SEED, "balanced")]
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
