"""ISIC 2019, and folders of one's own: ground truth, images on disk, splits, transforms."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms as T

from common.training import report
from common.training.errors import UsageError
from common.training.logs import write_text
from datasets.augment.colours import IMAGENET_MEAN, IMAGENET_STD, Triple
from datasets.classes import lacking
from datasets.folder import ENDINGS, Skipped, Split, entries, is_hidden, read_classes, read_folder
from datasets.images import SUFFIXES, read_rgb

# Class folders in the order of the labels, and their columns in the official ground truth.
TASKS = {
    "melanoma": {"BEN": "NV", "MAL": "MEL"},  # nevi, melanoma; labels 0 and 1
    "all": {name: name for name in ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")},
}
FOLDER = "imagefolder"  # the task of telling apart whatever classes a folder has
CLASSES = tuple(TASKS["melanoma"])
PARTS = ("train", "val", "test")
TREE = {"train": "TRAIN", "val": "VALID", "test": "TEST"}  # folders of a split on disk
MEAN = (0.59451115, 0.59429777, 0.59418184)  # of the authors' colour-constant images
STD = (0.14208533, 0.18548788, 0.20363748)
COLUMNS = ["path", "label", "image_id", "label_idx"]
OWN_LAYOUT = "expected DIR/<class>/*, or DIR/train/<class>/*, DIR/val/<class>/*, DIR/test/<class>/*"
DOWNLOAD = "https://challenge.isic-archive.com/data/#2019"


@dataclass(frozen=True)
class Images:
    """The images of a task.

    Attributes:
        table: path, label (class folder), image_id (unique), label_idx and, where the folders say
            it, part.
        folders: of the classes, in the order of the labels. classes: their names in reports.
        name: what they are, for the head of a picture.
        mean, std: of each channel, for normalisation.
        notes: for the user.
    """

    table: pd.DataFrame
    folders: list[str]
    classes: list[str]
    name: str
    mean: Triple
    std: Triple
    notes: list[str]


def read_ground_truth(path: str | Path, task: str = "melanoma") -> dict[str, list[str]]:
    """Image names (without suffix) of each class folder, in the order of the official csv.

    Rows of diagnoses that do not belong to the task are left out.
    """
    table = _read_csv(path, ("image", *TASKS[task].values()))
    return {
        name: table.loc[table[column] == 1, "image"].astype(str).tolist()
        for name, column in TASKS[task].items()
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

    Hidden ones, files that are no images, and folders are added to ``skipped``.

    Raises:
        UsageError: the folder cannot be listed, or a name occurs with two suffixes.
    """
    skipped = skipped or Skipped()
    found: dict[str, Path] = {}
    for entry in entries(folder):
        path = folder / entry.name
        if is_hidden(entry.name):
            skipped.hidden.append(str(path))
        elif entry.is_dir():
            skipped.folders.append(str(path))
        elif path.suffix.lower() not in SUFFIXES:
            skipped.others.append(str(path))
        elif found.setdefault(path.stem, path) != path:
            raise UsageError(f"{path}: {found[path.stem].name} is there, too; keep one of them")
    return found


def open_task(task: str, folder: str | Path) -> Images:
    """The images of a task in ``folder``: see ``find_images`` and ``find_own_images``.

    Raises:
        UsageError: see there.
    """
    if task == FOLDER:
        return find_own_images(Path(folder))
    skipped = Skipped()
    table = find_images(folder, TASKS[task], skipped)
    names = [column.lower() for column in TASKS[task].values()]
    data = "ISIC 2019" if task == "melanoma" else f"ISIC 2019, {len(names)} classes"
    return Images(table, list(TASKS[task]), names, data, MEAN, STD, skipped.notes(folder))


def find_images(
    folder: str | Path, classes: Iterable[str] = CLASSES, skipped: Skipped | None = None
) -> pd.DataFrame:
    """Table of the images in the class folders in ``folder``, sorted by class and name.

    With ``folder``/TRAIN, VALID and TEST, each holding the class folders, their images and the
    column ``part``. Hidden images are left out and added to ``skipped``.

    Returns: columns path, label (class folder), image_id (file name), label_idx.
    Raises:
        UsageError: a folder is missing or empty, or a name occurs twice.
    """
    folder = Path(folder)
    if all((folder / name).is_dir() for name in TREE.values()):
        parts = [
            find_images(folder / TREE[part], classes, skipped).assign(part=part) for part in PARTS
        ]
        table = pd.concat(parts, ignore_index=True)
    else:
        rows = []
        for label, name in enumerate(classes):
            if not (folder / name).is_dir():
                raise UsageError(
                    f"{(folder / name).resolve()}: no such folder; expected {_expected(classes)}: "
                    "make them with preprocessing/preprocess.py"
                )
            paths = images_below(folder / name, skipped).values()
            if not paths:
                raise UsageError(f"{(folder / name).resolve()}: no image in it, {ENDINGS}")
            rows += [(str(path), name, path.name, label) for path in paths]
        table = pd.DataFrame(rows, columns=COLUMNS)
    twice = table.loc[table["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise UsageError(
            f"{folder}: {twice.iloc[0]} occurs twice ({len(twice)} such names); keep one"
        )
    return table


def _expected(classes: Iterable[str]) -> str:
    if tuple(classes) == CLASSES:
        return "nevi in BEN/ and melanomas in MAL/"
    return f"the folders {', '.join(f'{name}/' for name in classes)}"


def find_own_images(root: Path) -> Images:
    """Images of any classes: in DIR/{train,val,test}/<class>/*, or in DIR/<class>/* without parts.

    The classes are in the order of their names as text, or of DIR/classes.txt. An image's id is its
    path below ``root``.

    Raises:
        UsageError: another layout, fewer than two classes, a class without images.
    """
    frames, notes = [], []
    if (root / "train").is_dir():
        if missing := [part for part in PARTS if not (root / part).is_dir()]:
            raise UsageError(
                f"{root / missing[0]}: no such folder; the best epoch is chosen on val/ and test/ "
                "is reported: add it, or put all images into DIR/<class>/* to have them split"
            )
        for part in PARTS:
            found = read_folder(root, part)
            frames.append(_own_table(root, found).assign(part=part))
            known = lacking(found.targets, found.classes, root / part)  # check_parts says it
            notes += [note for note in found.notes if note not in known]
        classes = found.classes
    else:
        found = read_classes(root, OWN_LAYOUT)
        frames.append(_own_table(root, found))
        classes, notes = found.classes, found.notes
    if len(classes) < 2:
        raise UsageError(f"{root}: one class, {classes[0]}; {OWN_LAYOUT}, two classes or more")
    table = pd.concat(frames, ignore_index=True)
    name = root.resolve().name
    return Images(table, classes, classes, name, IMAGENET_MEAN, IMAGENET_STD, notes)


def _own_table(root: Path, split: Split) -> pd.DataFrame:
    rows = [
        (file, split.classes[label], Path(file).relative_to(root).as_posix(), int(label))
        for file, label in zip(split.files, split.targets, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


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
    write_text(path, f"# {note}\n{csv.to_csv(index=False)}")


def load_split(path: str | Path, images: pd.DataFrame) -> pd.DataFrame:
    """``images`` with the column part of a saved split.

    Raises:
        UsageError: no split file, or it and the images do not belong together.
    """
    try:
        # A name may hold a #, or bytes that are no UTF-8.
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = list(dropwhile(lambda line: line.startswith("#"), file))
        csv = io.BytesIO("".join(lines).encode(errors="surrogateescape"))
        table = pd.read_csv(csv, encoding_errors="surrogateescape")
        part_of = dict(zip(table["image"], table["part"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path}: not a split (a csv with image,label,part): {error}; "
            "make one with preprocessing/split.py, or move the file away"
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
                "the images changed since: make a new split with preprocessing/split.py, or move "
                "the file away"
            )
    return images.assign(part=images["image_id"].map(part_of))


def check_parts(table: pd.DataFrame, source: object, classes: Sequence[str] = CLASSES) -> list[str]:
    """Training needs images of every class, an evaluation those of two: else there is no AUC.

    Returns: notes on classes that have no image to be evaluated.
    Raises:
        UsageError: says which part lacks what.
    """
    notes = []
    for part in PARTS:
        labels = table.loc[table["part"] == part, "label_idx"].to_numpy(dtype=np.int64)
        absent = [name for label, name in enumerate(classes) if label not in labels]
        if absent and (part == "train" or len(classes) - len(absent) < 2):
            raise UsageError(
                f"{source}: no {absent[0]} image in the {part} part; training needs every class, "
                "the other parts two: more images, or other ratios or seed"
            )
        notes += lacking(labels, classes, f"the {part} part of {source}")
    return notes


def train_transform(image_size: int = 300, mean: Triple = MEAN, std: Triple = STD) -> Callable:
    """The original's augmentation of PIL images, in its order."""
    return T.Compose(
        [
            T.Resize((image_size, image_size)),
            T.RandomHorizontalFlip(),
            T.RandomVerticalFlip(),
            T.RandomRotation(20),
            T.ColorJitter(brightness=0.1, contrast=0.1, hue=0.1),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


def eval_transform(image_size: int = 300, mean: Triple = MEAN, std: Triple = STD) -> Callable:
    """Resize and normalise."""
    return T.Compose([T.Resize((image_size, image_size)), T.ToTensor(), T.Normalize(mean, std)])


def fingerprints(table: pd.DataFrame) -> dict[str, str]:
    """SHA-256 of the images' names, class folders and parts, and of their labels."""
    table = table.sort_values("image_id")
    text = table[["image_id", "label", "part"]].to_csv(index=False).encode(errors="surrogateescape")
    return {
        "split_sha256": report.fingerprint(np.frombuffer(text, dtype=np.uint8)),
        "labels_sha256": report.fingerprint(table["label_idx"].to_numpy(dtype="<i8")),
    }


class ISIC2019(Dataset):
    """Images of a table with the columns path and label_idx, decoded when asked for.

    ``dataset[i]`` is (transformed RGB image, label); ``targets`` are the labels, (N,) int64.
    """

    def __init__(self, table: pd.DataFrame, transform: Callable[[Image.Image], torch.Tensor]):
        self.paths = table["path"].tolist()
        self.targets = table["label_idx"].to_numpy(dtype=np.int64)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(read_rgb(self.paths[index])), int(self.targets[index])
