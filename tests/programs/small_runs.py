"""A small run of every training program, with its paper's loss, for tests that go over all of them.

Every run trains 13 images in batches of 4, so that one image is left over.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from arbloss import train_stage1, train_stage2
from common.models import resnet, resnet_cifar
from common.models.heads import NormedLinear
from dbm_loss.cifar import main as dbm_cifar
from dbm_loss.cifar import models as dbm_models
from dbm_loss.GML import cifar_ce, cifar_main
from dbm_loss.GML import main as gml
from dbm_loss.large_scale import train as dbm_large
from hmloss.cifar_implementation import train_cifar as hml_cifar
from hmloss.inat_implementation import train_inat
from hmloss.isic2019_implementation import model as isic_model
from hmloss.isic2019_implementation import train_isic
from ib_loss import cifar_train as ib_cifar
from ib_loss import tinyimage_train as ib_tiny
from tests.programs import tools
from tests.programs.arbloss_data import CONFIG

COUNTS = [7, 4, 2]
SEED = 7
CIFAR = ["--dataset", "imagefolder", "--imb_type", "none", "--image_size", "8", "--seed", "7"]
IB = [*CIFAR, "--root", "data", "-b", "4", "--epochs", "3", "--start_ib_epoch", "0",
      "--loss_type", "IB", "--train_rule", "IBReweight"]  # fmt: skip
DBM = [*CIFAR, "--data_dir", "data", "--batch-size", "4", "--use_norm", "--use_dbm"]
GML = [*CIFAR, "--data", "data", "--arch", "resnet20", "--epochs", "3", "-b", "4",
       "--mark", "run", "--use_dbm"]  # fmt: skip
LARGE = ["--dataset", "imagefolder", "--root", "data", "-b", "4", "-j", "0", "--seed", "7",
         "--use_norm", "--use_dbm"]  # fmt: skip
HML = ["--seed", "7", "--loss_type", "HML", "--weighting_type", "CS", "--start_hm_epoch", "0"]
ARB = ["dataset", "imagefolder", "data_path", "data", "num_classes", "3", "imb_factor", "null",
       "image_size", "8", "backbone", "resnet20_fe", "batch_size", "4", "num_epochs", "3",
       "seed", "7", "head_class_idx", "[0,1]", "med_class_idx", "[1,2]", "tail_class_idx",
       "[2,3]"]  # fmt: skip
STAGE = str(CONFIG / "cifar10" / "cifar10_imb001_stage{}.yaml")
PROGRAMS = {
    "ib_cifar": (ib_cifar, [*IB, "-a", "resnet20"]),
    "ib_tiny": (ib_tiny, [*IB, "--no-pretrained"]),
    "dbm_cifar": (dbm_cifar, [*DBM, "--loss_fn", "bs", "--epochs", "3"]),
    "dbm_cifar_bcl": (dbm_cifar, [*DBM, "--loss_fn", "bcl", "--epochs", "3"]),
    "dbm_cifar_ncl": (dbm_cifar, [*DBM, "--loss_fn", "ncl", "--epochs", "3"]),
    "dbm_cifar_cmo": (dbm_cifar, [*DBM, "--loss_fn", "ce", "--cmo", "--epochs", "10"]),
    "dbm_large": (dbm_large, [*LARGE, "--loss_fn", "bs", "--epochs", "3"]),
    "dbm_large_bcl": (dbm_large, [*LARGE, "--loss_fn", "bcl", "--epochs", "3"]),
    "dbm_large_cmo": (dbm_large, [*LARGE, "--loss_fn", "ce", "--cmo", "--epochs", "5",
                                  "--start_data_aug", "0", "--end_data_aug", "1"]),
    "gml_teacher": (cifar_ce, GML),
    "gml_student": (cifar_main, [*GML, "--moco-k", "16", "--moco-dim", "4"]),
    "gml": (gml, ["--dataset", "imagefolder", "--data", "data", "--arch", "resnet18", "-b", "4",
                  "--workers", "0", "--moco_k", "16", "--moco_dim", "4", "--base_k", "2",
                  "--epochs", "3", "--seed", "7", "--mark", "run", "--aug", "randcls_sim"]),
    "hml_cifar": (hml_cifar, [*CIFAR, *HML, "--root", "data", "-a", "resnet20", "-b", "4",
                              "--epochs", "3", "--num_runs", "1"]),
    "hml_inat": (train_inat, [*HML, "--dataset_dir", "data", "-a", "resnet10", "--image_size", "32",
                              "-b", "4", "-j", "0", "--epochs", "3"]),
    "hml_folder": (train_inat, [*HML, "--dataset", "imagefolder", "--root", "data", "-a",
                                "resnet10", "--image_size", "32", "-b", "4", "-j", "0",
                                "--epochs", "3"]),
    "hml_isic": (train_isic, [*HML, "--arch", "resnet20", "--random_init", "--image_size", "8",
                              "-b", "4", "-j", "0", "--num_epochs", "3", "--num_runs", "1"]),
    "arb_stage1": (train_stage1, ["--cfg", STAGE.format("1_mixup"), *ARB]),
    "arb_stage2": (train_stage2, ["--cfg", STAGE.format("2_mislas"), *ARB]),
}  # fmt: skip


class Tiny(nn.Module):
    """A network for 224 pixels that costs nothing."""

    feature_dim = 6

    def __init__(self, num_classes: int | None, use_norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=16)
        self.fc = None
        if num_classes is not None:
            self.fc = (NormedLinear if use_norm else nn.Linear)(6, num_classes)

    def forward(self, x, return_features=False):
        features = self.conv(x).relu().mean(dim=(2, 3))
        if self.fc is None:
            return features
        logits = self.fc(features)
        return (logits, features) if return_features else logits


def make_data(root: Path) -> None:
    """``data`` and ``dataset`` in ``root``: the images where each program looks for them."""
    data = tools.make_image_folder(root / "data", COUNTS, size=8, test_per_class=1)
    for part, split in (("train", "train"), ("val", "test")):
        files = sorted((data / split).rglob("*.jpg"))
        lines = [f"{file.relative_to(data)} {int(file.parent.name[-3:])}" for file in files]
        (data / f"iNaturalist18_{part}.txt").write_text("\n".join(lines))
    for name, split in (("BEN", "train"), ("MAL", "test")):
        tools.make_image_folder(root / "isic" / name, [16], size=8, test_per_class=16)
        (root / "dataset").mkdir(exist_ok=True)
        (root / "isic" / name / split / "class_000").rename(root / "dataset" / name)
    for number, file in enumerate(sorted((root / "dataset" / "MAL").iterdir())):
        file.rename(file.with_name(f"mal{number}.jpg"))


def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-8 for small images, ``Tiny`` for large ones."""
    resnet8 = partial(resnet_cifar.ResNetCIFAR, 1)
    monkeypatch.setattr(resnet_cifar, "resnet20", resnet8)
    monkeypatch.setattr(isic_model, "resnet20", resnet8)
    monkeypatch.setattr(dbm_models, "BLOCKS", 1)
    monkeypatch.setattr(resnet, "resnet50", Tiny)
    monkeypatch.setattr(resnet, "resnet10", Tiny)
    monkeypatch.setattr(resnet, "resnet18", Tiny)


def command(name: str) -> tuple[ModuleType, list[str]]:
    """The program ``name`` and its flags; stage 2 of arbloss gets its stage 1 first."""
    program, argv = PROGRAMS[name]
    if name == "arb_stage2":
        train_stage1.main([*PROGRAMS["arb_stage1"][1], "num_epochs", "1", "arbloss", "False"])
        (path,) = Path().glob("saved/*/ckps/current.pth.tar")
        argv = [*argv, "resume", str(path)]
    return program, argv
