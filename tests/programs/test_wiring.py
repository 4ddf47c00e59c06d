"""What each program feeds its network and its optimiser, watched in one run of each.

The parts have unit tests; these see that every program puts them together: that it shuffles anew in
each epoch, trains in training mode on augmented images and evaluates in evaluation mode on plain
ones, normalised as its data are, and steps all its parameters with the rates that its flags say.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision import transforms as T

import hmloss.trainer
import ib_loss.trainer
from common.training import launch
from common.training.seeds import derive
from datasets import loaders
from hmloss.isic2019_implementation import train_isic
from hmloss.losses import CELoss, HMLoss
from ib_loss.losses import IBLoss
from tests.programs import small_runs

# Epochs in which each training loader is used, where those are not the first three.
EPOCHS = {
    "dbm_cifar_cmo": [range(10), [4, 5, 6]],
    "dbm_large_cmo": [range(5), [1, 2, 3]],
    "hml_isic": [[1, 2, 3]],
}
SGD = {"momentum": 0.8, "weight_decay": 0.003}
# Flags that say something else than the defaults, the rates that follow from them in the first
# three epochs, and what else the optimiser is told.
NESTEROV = {**SGD, "nesterov": True}
FLAGS = ["--momentum", "0.8", "--wd", "0.003", "--amp", "bf16"]
COSINE = [*FLAGS, "--nesterov", "--cos"]
WORKERS = ["--loader", "workers", "--workers", "0"]
KEYS = ["momentum", "0.8", "weight_decay", "0.003", "amp", "bf16"]
WARM = [0.02, 0.04, 0.06]  # of 0.1 in five epochs
HUNDREDTH = [0.001] * 3  # the second stage of IB and HML, from the start
TOLD = {
    "ib_cifar": (FLAGS, HUNDREDTH, SGD),
    "ib_tiny": (FLAGS, HUNDREDTH, SGD),
    "dbm_cifar": ([*COSINE, "--stretch_schedule"], WARM, NESTEROV),
    "dbm_cifar_bcl": ([*COSINE, "--stretch_schedule", *WORKERS], WARM, NESTEROV),
    "dbm_cifar_ncl": ([*COSINE, "--stretch_schedule"], WARM, NESTEROV),
    "dbm_cifar_cmo": ([*COSINE, "--stretch_schedule"], WARM, NESTEROV),
    "dbm_large": ([*FLAGS, "--nesterov"], WARM, NESTEROV),
    "dbm_large_bcl": (COSINE, [0.1, 0.075, 0.025], NESTEROV),
    "dbm_large_cmo": ([*FLAGS, "--nesterov"], WARM, NESTEROV),
    "gml_teacher": ([*FLAGS, "--lr", "0.1"], WARM, SGD),
    "gml_student": ([*FLAGS, "--lr", "0.1"], WARM, SGD),
    "gml": ([*FLAGS, "--lr", "0.1"], [0.1 * (2 + 2**0.5) / 4, 0.05, 0.1 * (2 - 2**0.5) / 4], SGD),
    "hml_cifar": (FLAGS, HUNDREDTH, SGD),
    "hml_inat": (FLAGS, HUNDREDTH, SGD),
    "hml_folder": (FLAGS, HUNDREDTH, SGD),
    # A climb of 1 % to 100 % in ten steps: four of them in each epoch.
    "hml_isic": (
        ["--amp", "bf16", "--step_size_up", "10"],
        [0.001 * (0.01 + 0.099 * k) for k in range(10)],
        {},
    ),
    "arb_stage1": (KEYS, WARM, SGD),
    "arb_stage2": (KEYS, [0.05, 0.0375, 0.0125], SGD),  # the classifier has half the rate
}
CIFAR = [(0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)]
IMAGENET = [(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)]
INAT = [(0.466, 0.471, 0.380), (0.195, 0.194, 0.192)]
ISIC = [(0.59451115, 0.59429777, 0.59418184), (0.14208533, 0.18548788, 0.20363748)]
LARGE = [T.Resize(256), T.CenterCrop(224)]
# Of a test image: what happens before the normalisation, and mean and standard deviation.
PLAIN = {
    "ib_tiny": (LARGE, IMAGENET),
    "dbm_large": (LARGE, IMAGENET),
    "dbm_large_bcl": (LARGE, IMAGENET),
    "dbm_large_cmo": (LARGE, IMAGENET),
    "gml": (LARGE, IMAGENET),
    "hml_inat": ([T.Resize(37), T.CenterCrop(32)], INAT),
    "hml_folder": ([T.Resize(37), T.CenterCrop(32)], IMAGENET),
    "hml_isic": ([T.Resize((8, 8))], ISIC),
}


class Watch:
    """Everything that a run does with its loaders, networks and optimisers."""

    def __init__(self, name: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.name, self.folder = name, folder
        # The batches of each loader, iteration by iteration.
        self.training: dict[object, list[list[tuple]]] = {}
        self.evaluating: dict[object, list[list[tuple]]] = {}
        self.modes: dict[str, set[tuple[bool, bool]]] = {"train": set(), "evaluate": set()}
        self.steps: list[list[dict]] = []  # parameter groups
        self.networks: list[nn.Module] = []
        self.phase = "train"
        self.epochs: dict[object, list[int]] = {}
        for kind in (loaders.DeviceLoader, loaders.WorkersLoader):
            patch.setattr(kind, "__iter__", self.watched(kind.__iter__))
        distribute = launch.distribute

        def distributed(module, *args, **kwargs):
            self.networks.append(module)
            return distribute(module, *args, **kwargs)

        patch.setattr(launch, "distribute", distributed)

    def watched(self, original):
        def batches(loader):
            even = loader._plan._even
            iterations = (self.training if even else self.evaluating).setdefault(loader, [])
            iterations.append([])
            self.epochs.setdefault(loader, []).append(loader._plan.epoch)
            for images, target, index in original(loader):
                first = images if isinstance(images, torch.Tensor) else images[0]
                iterations[-1].append((first[: len(target)].clone(), target, index.tolist()))
                self.phase = "train" if even else "evaluate"
                yield images, target, index

        return batches

    def called(self, module, _):
        if isinstance(module, nn.Conv2d):
            self.modes[self.phase].add((module.training, torch.is_autocast_enabled("cpu")))

    def stepped(self, optimizer, *_):
        self.steps.append([dict(group) for group in optimizer.param_groups])


@pytest.mark.parametrize("name", small_runs.PROGRAMS)
def test_a_program_puts_its_parts_together(name, tmp_path, monkeypatch):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    program, argv = small_runs.command(name)
    seen = Watch(name, tmp_path, monkeypatch)
    hooks = [
        nn.modules.module.register_module_forward_pre_hook(seen.called),
        register_optimizer_step_pre_hook(seen.stepped),
    ]
    try:
        program.main([*argv, *TOLD[name][0]])
    finally:
        for hook in hooks:
            hook.remove()
    each_epoch_has_the_order_of_its_seed_and_number(seen)
    every_parameter_is_stepped_with_the_rates_of_the_flags(seen)
    networks_learn_in_training_mode_and_are_evaluated_in_the_other(seen)
    images_are_evaluated_as_they_are(seen)
    images_are_augmented_anew_in_each_epoch(seen)


@pytest.mark.parametrize(
    ("name", "trainer", "flags", "kinds"),
    [
        ("ib_cifar", ib_loss.trainer, ["--start_ib_epoch", "1"], [nn.CrossEntropyLoss, IBLoss]),
        ("hml_cifar", hmloss.trainer, ["--start_hm_epoch", "1"], [CELoss, HMLoss]),
        ("hml_isic", train_isic, ["--start_hm_epoch", "2"], [CELoss, HMLoss]),  # counts from 1
    ],
)
def test_the_loss_of_the_second_stage_starts_in_its_epoch(
    name, trainer, flags, kinds, tmp_path, monkeypatch
):
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    seen, train_one_epoch = [], trainer.train_one_epoch

    def spy(model, loader, criterion, *rest):
        seen.append(criterion)
        return train_one_epoch(model, loader, criterion, *rest)

    monkeypatch.setattr(trainer, "train_one_epoch", spy)
    program, argv = small_runs.command(name)
    program.main([*argv, *flags])
    first, second = kinds
    assert [type(criterion) for criterion in seen] == [first, second, second]
    assert seen[1] is seen[2]  # compiled for a GPU, another would be recorded anew


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("ib_cifar", ["--loss_type", "CE", "--train_rule", "DRW", "--val_fraction", "0.3"]),
        ("dbm_cifar", ["--loss_fn", "ce_drw"]),
        ("dbm_large", ["--loss_fn", "ce_drw"]),
    ],
)
def test_deferred_class_weights_start_in_the_epoch_of_the_stretched_schedule(
    name, flags, tmp_path, monkeypatch
):
    """Epoch 160 of 200 is epoch 2 of 3."""
    small_runs.make_data(tmp_path)
    small_runs.small_networks(monkeypatch)
    monkeypatch.chdir(tmp_path)
    weighted, cross_entropy = {True: [], False: []}, nn.functional.cross_entropy

    def spy(*args, weight=None, **kwargs):
        seen = weighted[torch.is_grad_enabled()]
        seen.append(weight is not None and bool((weight != 1).any()))
        return cross_entropy(*args, weight=weight, **kwargs)

    monkeypatch.setattr(nn.functional, "cross_entropy", spy)
    program, argv = small_runs.command(name)
    program.main([*argv, *flags, "--stretch_schedule"])
    training, evaluating = weighted[True], weighted[False]
    assert training[:: len(training) // 3] == [False, False, True]
    if name == "ib_cifar":  # with the loss of the epoch: three validations, the test of the last
        assert evaluating[:4] == [False, False, True, True]


def each_epoch_has_the_order_of_its_seed_and_number(seen: Watch) -> None:
    epochs = EPOCHS.get(seen.name, [[0, 1, 2]])
    assert len(seen.training) == len(epochs)
    seeds = [small_runs.SEED, derive(small_runs.SEED, "balanced")]
    for (loader, iterations), its_epochs, seed in zip(
        seen.training.items(), epochs, seeds, strict=False
    ):
        found = [[i for *_, index in batches for i in index] for batches in iterations]
        assert len(found) == len(its_epochs)
        assert len(set(map(tuple, found))) == len(found)
        for order, epoch in zip(found, its_epochs, strict=True):
            generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
            expected = loader._plan._order(generator).tolist()
            assert order == expected[: len(order)]
            if "cmo" not in seen.name and seen.name != "arb_stage2":  # those draw by class
                shuffled = torch.randperm(len(expected), generator=generator.manual_seed(
                    derive(seed, "order", epoch)))  # fmt: skip
                assert expected == shuffled.tolist()

    if seen.name == "hml_isic":  # may augment what it evaluates: --augmented_eval
        validation = next(iter(seen.evaluating))
        assert seen.epochs[validation] == [1, 2, 3]


def every_parameter_is_stepped_with_the_rates_of_the_flags(seen: Watch) -> None:
    _, rates, told = TOLD[seen.name]
    steps_of_an_epoch = len(next(iter(seen.training.values()))[0])
    every = 1 if seen.name == "hml_isic" else steps_of_an_epoch
    found = [groups[0]["lr"] for groups in seen.steps[::every]]
    assert found[: len(rates)] == pytest.approx(rates, rel=1e-6)
    trained = {p for network in seen.networks for p in network.parameters() if p.requires_grad}
    for groups in seen.steps:
        stepped = [p for group in groups for p in group["params"]]
        assert trained <= set(stepped) and len(stepped) == len(set(stepped))
        for number, group in enumerate(groups):
            decay = told.get("weight_decay")
            if seen.name.startswith("gml") and number == 1:  # the temperature
                assert len(group["params"]) == 1 and group["weight_decay"] == 0
                decay = 0
            expected = {**told, "weight_decay": decay} if told else {}
            assert {key: group[key] for key in expected} == expected


def networks_learn_in_training_mode_and_are_evaluated_in_the_other(seen: Watch) -> None:
    """Both in the precision that is asked for."""
    assert seen.modes["evaluate"] == {(False, True)}
    assert seen.modes["train"] == {(seen.name != "arb_stage2", True)}  # whose trunk is frozen


def images_are_evaluated_as_they_are(seen: Watch) -> None:
    """Not augmented, and normalised with mean and standard deviation of their data set."""
    before, (mean, std) = PLAIN.get(seen.name, ([], CIFAR))
    recipe = T.Compose([*before, T.ToTensor(), T.Normalize(mean, std)])
    files = sorted(Path(seen.folder, "data", "test").rglob("*.jpg"))
    if seen.name == "hml_isic":
        (table,) = seen.folder.rglob("predictions.csv")
        with open(table, newline="") as file:
            files = [seen.folder / row["image"] for row in csv.DictReader(file)]
    *_, iterations = seen.evaluating.values()
    for batches in iterations:
        for images, _, index in batches:
            for image, i in zip(images, index, strict=True):
                expected = recipe(Image.open(files[i]).convert("RGB"))
                # Half a level of a resize on the device.
                torch.testing.assert_close(image, expected, rtol=0, atol=0.03)


def images_are_augmented_anew_in_each_epoch(seen: Watch) -> None:
    """The normalisation is that of the test images: without it they are whole levels."""
    _, (mean, std) = PLAIN.get(seen.name, ([], CIFAR))
    mean, std = (torch.tensor(x)[:, None, None] for x in (mean, std))
    for iterations in seen.training.values():
        views = defaultdict(list)
        for batches in iterations:
            for images, _, index in batches:
                levels = (images * std + mean) * 255
                assert levels.min() > -0.01 and levels.max() < 255.01
                torch.testing.assert_close(levels, levels.round(), rtol=0, atol=0.01)
                for image, i in zip(images, index, strict=True):
                    views[i].append(image)
        repeated = [image for image in views.values() if len(image) > 1]
        assert any(not torch.equal(first, second) for first, second, *_ in repeated)
