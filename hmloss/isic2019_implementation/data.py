"""ISIC 2019, melanoma against nevi: ground truth, images on disk, splits, transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms as T

from common.training import report
from common.training.checkpoint import atomic_file
from common.training.errors import UsageError
from datasets.folder import Skipped, is_hidden
from datasets.images import read_rgb

CLASSES = ("BEN", "MAL")  # class folders: nevi, melanoma; labels 0 and 1
DIAGNOSES = {"BEN": "NV", "MAL": "MEL"}  # their columns in the official ground truth
PARTS = ("train", "val", "test")
TREE = {"train": "TRAIN", "val": "VALID", "test": "TEST"}  # folders of a split on disk
SUFFIXES = (".jpg", ".jpeg", ".png")
MEAN = (0.59451115, 0.59429777, 0.59418184)  # of the authors' colour-constant images
STD = (0.14208533, 0.18548788, 0.20363748)
DOWNLOAD = "https://challenge.isic-archive.com/data/#2019"


def read_ground_truth(path: str | Path) -> dict[str, list[str]]:
    """Image names (without suffix) of each class, in the order of the official csv.

    Rows of other diagnoses are left out.
    """
    table = _read_csv(path, ("image", *DIAGNOSES.values()))
    return {
        name: table.loc[table[column] == 1, "image"].astype(str).tolist()
        for name, column in DIAGNOSES.items()
    }


def read_lesions(path: str | Path) -> dict[str, str]:
    """Lesion of each image name (without suffix), from the official metadata csv.

    Images whose lesion is not recorded are left out.
    """
    table = _read_csv(path, ("image", "lesion_id")).dropna(subset="lesion_id")
    return dict(zip(table["image"].astype(str), table["lesion_id"].astype(str), strict=True))


def _read_csv(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a readable csv ({error}); get it from {DOWNLOAD}") from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UsageError(
            f"{path}: no column {missing[0]!r}, found {', '.join(map(str, table.columns))}; "
            f"get the official file from {DOWNLOAD}"
        )
    return table


def images_below(folder: Path, skipped: Skipped | None = None) -> dict[str, Path]:
    """Images directly in a folder by their name without suffix, sorted; none that is hidden.

    Hidden ones are added to ``skipped``.
    """
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
    if skipped is not None:
        skipped.hidden += [str(path) for path in found if is_hidden(path.name)]
    return {path.stem: path for path in sorted(found) if not is_hidden(path.name)}


def find_images(folder: str | Path, skipped: Skipped | None = None) -> pd.DataFrame:
    """Table of the images in ``folder``/BEN and ``folder``/MAL, sorted by class and name.

    With ``folder``/TRAIN, VALID and TEST, each holding the class folders, their images and the
    column ``part``. Hidden images are left out and added to ``skipped``.

    Returns: columns path, label ("BEN", "MAL"), image_id (file name), label_idx (0, 1).
    Raises:
        UsageError: a folder is missing or empty, or a name occurs twice.
    """
    folder = Path(folder)
    if all((folder / name).is_dir() for name in TREE.values()):
        parts = [find_images(folder / TREE[part], skipped).assign(part=part) for part in PARTS]
        table = pd.concat(parts, ignore_index=True)
    else:
        rows = []
        for label, name in enumerate(CLASSES):
            if not (folder / name).is_dir():
                raise UsageError(
                    f"{(folder / name).resolve()}: no such folder; expected nevi in BEN/ and "
                    "melanomas in MAL/: make them with preprocessing/preprocess.py"
                )
            paths = images_below(folder / name, skipped).values()
            if not paths:
                raise UsageError(f"{(folder / name).resolve()}: no image in it")
            rows += [(str(path), name, path.name, label) for path in paths]
        table = pd.DataFrame(rows, columns=["path", "label", "image_id", "label_idx"])
    twice = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise UsageError(
            f"{folder}: {twice.iloc[0]} occurs twice ({len(twice)} such names); keep one"
        )
    return table


def cut_points(number: int, first: float = 0.8, second: float = 0.1) -> tuple[int, int]:
    """Where a list of ``number`` images is cut into three parts, the last one being the rest."""
    return int(number * first), int(number * first + number * second)


def split_images(
    ids_by_class: Mapping[str, Sequence[str]],
    rng: np.random.RandomState,
    *,
    order: Sequence[str] = PARTS,
    ratios: tuple[float, float] = (0.8, 0.1),
    lesion_of: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Part of each image: every class is shuffled and cut into three, as the original does.

    Args:
        ids_by_class: file names of each class, in a fixed order (the result depends on it).
        order: the parts in the order in which they are cut off: the authors' trainer takes train,
            test, val, their splitting script train, val, test.
        ratios: share of the first and of the second part.
        lesion_of: lesion of an image name without suffix. The images of a lesion then go
            together, to the part in which the first of them falls; without it, or for images that
            it lacks, each stands for itself.
    Returns: {file name: part}, in the order of the cut.
    """
    part_of: dict[str, str] = {}
    part_of_lesion: dict[str, str] = {}
    for ids in ids_by_class.values():
        lesions: dict[str, list[str]] = {}
        for name in ids:
            lesion = (lesion_of or {}).get(Path(name).stem, name)
            lesions.setdefault(lesion, []).append(name)
        shuffled = list(lesions)
        rng.shuffle(shuffled)
        first, second = cut_points(len(ids), *ratios)
        placed = 0
        for lesion in shuffled:
            part = order[(placed >= first) + (placed >= second)]
            # A lesion with images in both classes stays where the first class put it.
            part = part_of_lesion.setdefault(lesion, part)
            part_of.update(dict.fromkeys(lesions[lesion], part))
            placed += len(lesions[lesion])
    return part_of


def save_split(path: str | Path, table: pd.DataFrame, note: str) -> None:
    """Write image, label and part of each image as csv, below a comment line."""
    csv = table[["image_id", "label", "part"]].rename(columns={"image_id": "image"})
    with atomic_file(path) as file:
        file.write(f"# {note}\n{csv.to_csv(index=False)}".encode())


def load_split(path: str | Path, images: pd.DataFrame) -> pd.DataFrame:
    """``images`` with the column part of a saved split.

    Raises:
        UsageError: no split file, or it and the images do not belong together.
    """
    try:
        table = pd.read_csv(path, comment="#")
        part_of = dict(zip(table["image"], table["part"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path}: not a split (a csv with image,label,part): {error}; "
            "make one with preprocessing/split.py"
        ) from None
    odd = set(part_of.values()) - set(PARTS)
    if odd:
        raise UsageError(f"{path}: part {sorted(map(str, odd))[0]!r}, known are {', '.join(PARTS)}")
    here = set(images["image_id"])
    for what, names in (
        ("names images that are not there", part_of.keys() - here),
        ("lacks images that are there", here - part_of.keys()),
    ):
        if names:
            raise UsageError(
                f"{path}: {what} ({len(names)}, such as {min(names)}); "
                "the images changed since: make a new split with preprocessing/split.py"
            )
    return images.assign(part=images["image_id"].map(part_of))


def check_parts(table: pd.DataFrame, source: object) -> None:
    """Every part needs images of both classes: metrics are undefined without.

    Raises:
        UsageError: says which part lacks what.
    """
    for part in PARTS:
        for name in CLASSES:
            if not ((table["part"] == part) & (table["label"] == name)).any():
                raise UsageError(
                    f"{source}: no {name} image in the {part} part; "
                    "each part needs both classes: more images, or other ratios or seed"
                )


def train_transform(image_size: int = 300) -> Callable:
    """The original's augmentation of PIL images, in its order."""
    return T.Compose(
        [
            T.Resize((image_size, image_size)),
            T.RandomHorizontalFlip(),
            T.RandomVerticalFlip(),
            T.RandomRotation(20),
            T.ColorJitter(brightness=0.1, contrast=0.1, hue=0.1),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


def fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 of the images' names, labels and parts."""
    text = table.sort_values("image_id")[["image_id", "label", "part"]].to_csv(index=False)
    return report.fingerprint(np.frombuffer(text.encode(), dtype=np.uint8))


def eval_transform(image_size: int = 300) -> Callable:
    """Resize and normalise."""
    return T.Compose([T.Resize((image_size, image_size)), T.ToTensor(), T.Normalize(MEAN, STD)])


class ISIC2019(Dataset):
    """Images of a table with the columns path and label_idx, decoded when asked for.

    ``dataset[i]`` is (transformed RGB image, label); ``targets`` are the labels, (N,) int64.
    """

    classes = CLASSES

    def __init__(self, table: pd.DataFrame, transform: Callable[[Image.Image], torch.Tensor]):
        self.paths = table["path"].tolist()
        self.targets = table["label_idx"].to_numpy(dtype=np.int64)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(read_rgb(self.paths[index])), int(self.targets[index])
