"""The images that a run is evaluated on, and those by which its best epoch is chosen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from common.training.errors import UsageError

HELD_OUT = "held-out"  # what a part of the training images is called where splits have names


def stratified_part(targets: Sequence[int], fraction: float, seed: int = 0) -> np.ndarray:
    """Positions of training images for validation, ascending: ``fraction`` of each class.

    Rounded, but at least one image of a class that has two, and never all of a class.

    Args:
        targets: labels of the training images, (N,).
        seed: of the choice.
    """
    targets = np.asarray(targets)
    rng = np.random.RandomState(seed)
    chosen = [np.zeros(0, dtype=np.int64)]
    for label in np.unique(targets):
        positions = rng.permutation(np.flatnonzero(targets == label))
        wanted = max(int(fraction * len(positions) + 0.5), 1)
        chosen.append(positions[: min(wanted, len(positions) - 1)])
    return np.sort(np.concatenate(chosen))


class Part(Dataset):
    """Some images of a data set that has ``targets`` and ``transform``, with another transform."""

    def __init__(self, data: Dataset, positions: np.ndarray, transform: Callable) -> None:
        self._data = copy.copy(data)
        self._data.transform = transform
        self._positions = np.asarray(positions)
        self.targets = np.asarray(data.targets)[self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple:
        return self._data[int(self._positions[index])]


def hold_out(
    train: Dataset,
    fraction: float,
    transform: Callable,
    val_set: str | None = None,
    strata: Sequence[int] | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Training images without the part for validation, and that part, seen through ``transform``.

    Without a ``fraction`` all of them, and None.

    Args:
        strata: labels by which the part is drawn, (N,), where those of ``train`` are relabelled.
    Raises:
        UsageError: there are validation images already, in ``val_set``; the part is empty.
    """
    if not fraction:
        return train, None
    refuse_second(fraction, val_set)
    part = stratified_part(train.targets if strata is None else strata, fraction)
    require_part(part, fraction)
    rest = np.setdiff1d(np.arange(len(train)), part)
    return Part(train, rest, train.transform), Part(train, part, transform)


def refuse_second(fraction: float, val_set: str | None) -> None:
    """Refuse to take validation images from the training images where there are others."""
    if fraction and val_set is not None:
        raise UsageError(
            f"val_fraction {fraction:g}: {val_set} is for validation already; leave it out"
        )


def require_part(part: np.ndarray, fraction: float) -> None:
    """Refuse a validation part without images."""
    if not len(part):
        raise UsageError(
            f"val_fraction {fraction:g}: no class has the two images that it takes to give one "
            "away; leave it out"
        )


def part_name(fraction: float) -> str:
    """The validation part of the training images, in words."""
    return f"{fraction:g} of the training images"


def evaluation_facts(
    test_set: str, test_images: int, val_set: str | None = None, val_images: int = 0
) -> dict[str, object]:
    """What is evaluated, for the report.

    ``val_set``: what the best epoch is chosen on, if that is something else.
    """
    facts: dict[str, object] = {"test_set": test_set, "test_images": test_images}
    if val_set is not None:
        facts |= {"val_set": val_set, "val_images": val_images}
    return facts


def evaluation_notes(facts: dict[str, object], split: str) -> list[str]:
    """The same for the user. ``split``: which one the test set is, ``test`` or ``val``."""
    chosen = "the best epoch is chosen on it, too"
    if "val_set" in facts:
        chosen = f"the best epoch is chosen on {_counted(facts, 'val')}"
    notes = [f"evaluated on {_counted(facts, 'test')}; {chosen}"]
    if "val_set" in facts:
        notes.append(
            "note: in training, epochs are evaluated on the validation set, the test set at the end"
        )
    elif split != "test":
        notes.append(f"note: what is called test below is the {split} split")
    return notes


def _counted(facts: dict[str, object], split: str) -> str:
    number = facts[f"{split}_images"]
    return f"{facts[f'{split}_set']}, {number:,} image{'' if number == 1 else 's'}"
