"""Image sets given by a list file: ImageNet-LT, Places-LT and iNaturalist 2018."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from common.training.errors import UsageError
from datasets.images import read_rgb

WHERE = "the lists of the LT benchmarks: github.com/facebookresearch/classifier-balancing, data/"

# Images and classes of the published lists.
PUBLISHED = {
    "ImageNet_LT_train.txt": (115_846, 1000),
    "ImageNet_LT_val.txt": (20_000, 1000),
    "ImageNet_LT_test.txt": (50_000, 1000),
    "iNaturalist18_train.txt": (437_513, 8142),
    "iNaturalist18_val.txt": (24_426, 8142),
    "Places_LT_train.txt": (62_500, 365),
    "Places_LT_val.txt": (7_300, 365),
    "Places_LT_test.txt": (36_500, 365),
}


class ListFile(Dataset):
    """Images named in a text file, one ``relative/path label`` per line.

    ``dataset[i]`` is ``(image, label)``; with a list of transforms ``([one view of each], label)``.
    Images are RGB. Paths are kept as one array of bytes, so half a million of them cost some
    30 MB, which worker processes share.

    Args:
        list_file: the text file. Names hold no spaces; further columns are ignored.
        root: folder that the paths are relative to.
        transform: PIL image -> sample, or a list of such, applied to the same image in order.
        num_classes: None for a training list, whose labels must be 0..C-1 with each present. An
            evaluation list takes the C of its training list, and may lack classes.

    Attributes:
        targets: labels, (N,) int64.
        num_classes: C.
        cls_num_list: images of each class, C ints.

    Raises:
        UsageError: a file is missing or malformed, or labels are out of range; names the line.
    """

    def __init__(
        self,
        list_file: str | Path,
        root: str | Path,
        transform: Callable | Sequence[Callable] | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.list_file = Path(list_file)
        self.root = Path(root)
        self.transform = transform
        self.paths, self.targets = _read_list(self.list_file)
        self.num_classes = num_classes or int(self.targets.max()) + 1
        self._check_labels(all_present=num_classes is None)
        self._check_images()

    @property
    def cls_num_list(self) -> list[int]:
        return np.bincount(self.targets, minlength=self.num_classes).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple:
        image = read_rgb(self.path(index), f"line {index + 1} of {self.list_file}")
        if isinstance(self.transform, Sequence):
            image = [view(image) for view in self.transform]
        elif self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])

    def path(self, index: int) -> str:
        """File of image ``index``."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def relabel(self, class_map: np.ndarray) -> None:
        """Give every image of class c the label ``class_map[c]``, a permutation of 0..C-1."""
        if len(class_map) != self.num_classes:
            raise ValueError(f"{len(class_map)} new labels for {self.num_classes} classes")
        self.targets = np.asarray(class_map, dtype=np.int64)[self.targets]

    def _check_labels(self, all_present: bool) -> None:
        largest = int(self.targets.argmax())
        if self.targets[largest] >= self.num_classes:
            raise UsageError(
                f"{self.list_file}, line {largest + 1}: label {self.targets[largest]}, but there "
                f"are {self.num_classes} classes; give the lists and class count of one data set"
            )
        present = np.unique(self.targets)
        if all_present and len(present) < self.num_classes:
            absent = np.flatnonzero(present != np.arange(len(present)))[0]
            raise UsageError(
                f"{self.list_file}: labels go up to {self.num_classes - 1}, but label {absent} has "
                "no image; a training list numbers its classes from 0 without gaps"
            )

    def _check_images(self) -> None:
        """Look for a few images all over the list, so that a wrong root fails at once."""
        for index in np.unique(np.linspace(0, len(self) - 1, 16).astype(int)):
            if not os.path.isfile(self.path(index)):
                top = os.fsdecode(self.paths[index]).split("/")[0]
                raise UsageError(
                    f"{self.path(index)} does not exist (line {index + 1} of {self.list_file}): "
                    f"the image root must be the folder that holds {top}/, not {self.root}"
                )


def _read_list(list_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Paths (N,) bytes and labels (N,) int64."""
    if not list_file.is_file():
        raise UsageError(f"{list_file}: no such list file; {WHERE}")
    paths, labels = [], []
    with open(list_file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                path, label = line.split()[:2]
                labels.append(int(label))
                valid = 0 <= labels[-1] < 2**31
            except ValueError:
                valid = False
            if not valid:
                found = line.decode(errors="replace").strip() or "a blank line"
                raise UsageError(
                    f"{list_file}, line {number}: expected `relative/path label`, found {found}"
                )
            paths.append(path)
    if not paths:
        raise UsageError(f"{list_file}: no lines in it; expected `relative/path label`")
    return np.array(paths), np.array(labels, dtype=np.int64)


def find_list(name: str, folders: Sequence[str | Path]) -> Path:
    """The list file ``name`` in the first folder that has it; ``UsageError`` if none has."""
    for folder in folders:
        if (found := Path(folder) / name).is_file():
            return found
    raise UsageError(f"no {name} in {' or '.join(map(str, folders))}; {WHERE}")


def split_name(list_file: Path) -> str:
    """``val`` if the name of an evaluation list says so, else ``test``."""
    return "val" if "val" in list_file.stem.lower() else "test"


def size_warning(data: ListFile) -> str | None:
    """A sentence if a list named like a published one has another size: the figures then differ."""
    size = (len(data), data.num_classes)
    expected = PUBLISHED.get(data.list_file.name, size)
    if size == expected:
        return None
    return (
        f"{data.list_file}: {size[0]:,} images of {size[1]:,} classes, the published list has "
        f"{expected[0]:,} of {expected[1]:,}"
    )
