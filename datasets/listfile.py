"""Image sets given by a list file: ImageNet-LT, Places-LT and iNaturalist 2018."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from common.training.errors import UsageError
from common.training.report import fingerprint
from datasets.classes import lacking, read_names, require_distinct
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
# What the published lists are of.
SETS = {"ImageNet_LT": "ImageNet-LT", "iNaturalist18": "iNaturalist 2018", "Places_LT": "Places-LT"}

LINE = re.compile(rb"(.*\S)\s+(\d+)(?:\s+(.*\S))?")  # path, label, class name
COMMAS = re.compile(rb".+,\s*\d+\s*(,.*)?")  # the same, separated otherwise
BLANKS = "separate path, label and name by a blank or a tab"
DETOUR = re.compile(rb"//|(?:^|/)\.\.?(?:/|$)")  # a//b, ./a, ../a


class ListFile(Dataset):
    """Images named in a text file, one ``relative/path label`` or ``… label class name`` per line.

    The label is the last whole number of a line, so that names of files may hold spaces; where
    tabs separate the columns, it is the second column, whatever the others hold. Blank lines do
    not count, and backslashes are slashes. ``dataset[i]`` is ``(RGB image, label)``. Paths are kept
    as one array of bytes, so half a million of them cost some 30 MB, which worker processes share.

    Args:
        list_file: the text file.
        root: folder that the paths are relative to.
        transform: PIL image -> sample.
        num_classes: None for a training list, whose labels must be 0..C-1 with each present. An
            evaluation list takes the C of its training list, and may lack classes.
        names: file with the C class names, one a line, before those of the list.
        must_exist: look for all images at once, not first when they are read.

    Attributes:
        targets: labels, (N,) int64.
        num_classes: C.
        classes: C names; numbers where nothing names them.
        named: {label: name} as the list itself has them.
        cls_num_list: images of each class, C ints.
        notes: what is odd but accepted, for the user.

    Raises:
        UsageError: a file is missing or malformed, labels are out of range, an image has two;
            names the line. Classes share a name: says which. Images are missing: says how many,
            and the first.
    """

    def __init__(
        self,
        list_file: str | Path,
        root: str | Path,
        transform: Callable | None = None,
        num_classes: int | None = None,
        names: str | Path | None = None,
        must_exist: bool = True,
    ) -> None:
        self.list_file = Path(list_file)
        self.root = Path(root)
        self.transform = transform
        self.notes: list[str] = []
        paths, self.targets, self._lines, self.named = self._read()
        self.num_classes = num_classes or int(self.targets.max()) + 1
        self._check_labels(all_present=num_classes is None)
        self._check_paths(paths)
        if must_exist:
            self._check_files(paths)
        self.paths = np.array(paths)
        self.classes = [self.named.get(c, str(c)) for c in range(self.num_classes)]
        if names:
            self.classes = self._read_names(names)
        require_distinct([self.classes[c] for c in np.unique(self.targets)], self.list_file)
        self.notes += lacking(self.targets, self.classes, self.list_file)

    @property
    def source(self) -> str:
        """The list, in words."""
        return str(self.list_file)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the images' paths, for the facts of a report."""
        return {"list_sha256": fingerprint(self.paths)}

    @property
    def cls_num_list(self) -> list[int]:
        """Images of each class, C ints."""
        return np.bincount(self.targets, minlength=self.num_classes).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple:
        image = read_rgb(self.path(index), self.place(index))
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])

    @property
    def files(self) -> list[str]:
        """Files of all images."""
        return [self.path(index) for index in range(len(self))]

    def path(self, index: int) -> str:
        """File of image ``index``."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def place(self, index: int) -> str:
        """Where image ``index`` is named, for messages."""
        return f"line {self._lines[index]} of {self.list_file}"

    def relabel(self, class_map: np.ndarray) -> None:
        """Give every image of class c the label ``class_map[c]``, a permutation of 0..C-1."""
        if len(class_map) != self.num_classes:
            raise ValueError(f"{len(class_map)} new labels for {self.num_classes} classes")
        self.targets = np.asarray(class_map, dtype=np.int64)[self.targets]
        self.classes = [self.classes[c] for c in np.argsort(class_map)]

    def _read(self) -> tuple[list[bytes], np.ndarray, np.ndarray, dict[int, str]]:
        """Paths, labels (N,) int64, line of each (N,) int32, {label: class name}."""
        if not self.list_file.is_file():
            raise UsageError(f"{self.list_file}: no such list file; {WHERE}")
        paths, labels, lines = [], [], []
        named: dict[int, tuple[str, int]] = {}
        backslashes = 0
        with open(self.list_file, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(codecs.BOM_UTF8).strip()
                if not line:
                    continue
                path, label, name = _columns(line)
                if label is None:
                    found = line.decode(errors="replace")
                    raise UsageError(
                        f"{self.list_file}, line {number}: expected `relative/path label`, "
                        f"found {found}{_cure(line, header=not paths)}"
                    )
                if name is not None and named.setdefault(label, (name, number))[0] != name:
                    other, before = named[label]
                    raise UsageError(
                        f"{self.list_file}: class {label} is called {other} (line {before}) and "
                        f"{name} (line {number}); a class has one name"
                    )
                if b"\\" in path:
                    path = path.replace(b"\\", b"/")
                    backslashes += 1
                paths.append(path.removeprefix(b"./"))
                labels.append(label)
                lines.append(number)
        if not paths:
            raise UsageError(f"{self.list_file}: no lines in it; expected `relative/path label`")
        if all(path.endswith(b",") for path in paths):
            raise UsageError(
                f"{self.list_file}, line {lines[0]}: a comma behind the path, "
                f"{os.fsdecode(paths[0])}; {BLANKS}"
            )
        if backslashes:
            self._note(f"{backslashes} paths with backslashes, read as slashes")
        names = {label: name for label, (name, _) in named.items()}
        return paths, np.array(labels, dtype=np.int64), np.array(lines, dtype=np.int32), names

    def _note(self, text: str) -> None:
        self.notes.append(f"note: {self.list_file}: {text}")

    def _read_names(self, path: str | Path) -> list[str]:
        names = read_names(path)
        if len(names) != self.num_classes:
            raise UsageError(
                f"{path}: {len(names)} class names, but {self.list_file} has labels of "
                f"{self.num_classes} classes; name each of them, one a line"
            )
        return names

    def _check_labels(self, all_present: bool) -> None:
        largest = int(self.targets.argmax())
        if self.targets[largest] >= self.num_classes:
            raise UsageError(
                f"{self.list_file}, line {self._lines[largest]}: label {self.targets[largest]}, "
                f"but there are {self.num_classes} classes; give the lists and class count of one "
                "data set"
            )
        present = np.unique(self.targets)
        if all_present and len(present) < self.num_classes:
            absent = np.flatnonzero(present != np.arange(len(present)))[0]
            raise UsageError(
                f"{self.list_file}: labels go up to {self.num_classes - 1}, but label {absent} has "
                "no image; a training list numbers its classes from 0 without gaps"
            )

    def _check_paths(self, paths: list[bytes]) -> None:
        """An image has one label; one that is listed again, or lies elsewhere, is worth a note."""
        first: dict[bytes, int] = {}
        again, outside = [], []
        leads_out = _LeadsOut(self.root)
        for index, path in enumerate(paths):
            before = first.setdefault(self._plain(path), index)
            if before != index:
                if self.targets[before] != self.targets[index]:
                    raise UsageError(
                        f"{self.list_file}: {os.fsdecode(path)} has label {self.targets[before]} "
                        f"(line {self._lines[before]}) and label {self.targets[index]} (line "
                        f"{self._lines[index]}); an image has one class"
                    )
                again.append(index)
            if leads_out(path):
                outside.append(index)
        for indices, what in (
            (again, "are those of images named before"),
            (outside, f"lead out of {self.root}"),
        ):
            if indices:
                self._note(
                    f"{len(indices)} of {len(paths)} paths {what} (such as "
                    f"{os.fsdecode(paths[indices[0]])}, line {self._lines[indices[0]]})"
                )

    def _plain(self, path: bytes) -> bytes:
        """The path from the root without detours, the same for all spellings of it."""
        if not (path.startswith(b"/") or DETOUR.search(path)):
            return path
        root = os.path.abspath(os.fsencode(self.root))
        return os.path.relpath(os.path.join(root, path), root)

    def _check_files(self, paths: list[bytes]) -> None:
        """Look for all images by listing their folders, which is cheaper than asking for each."""
        wanted: dict[bytes, set[bytes]] = {}
        for path in paths:
            folder, name = _split(path)
            wanted.setdefault(folder, set()).add(name)
        root = os.fsencode(self.root)
        missing = {
            (folder, name)
            for folder, names in wanted.items()
            for name in _missing(os.path.join(root, folder), names)
        }
        if not missing:
            return
        total = sum(map(len, wanted.values()))
        index = next(i for i, path in enumerate(paths) if _split(path) in missing)
        cure = "restore them or remove their lines"
        top = os.fsdecode(paths[index]).split("/")[0]
        if len(missing) == total and top:
            cure = f"the image root must be the folder that holds {top}, not {self.root}"
        raise UsageError(
            f"{self.list_file}: {len(missing)} of {total} files are missing, first "
            f"{os.path.join(self.root, os.fsdecode(paths[index]))} (line {self._lines[index]}); "
            f"{cure}"
        )


def _columns(line: bytes) -> tuple[bytes, int | None, str | None]:
    """Path, label (None if there is no valid one) and class name (None if there is none)."""
    columns = line.split(b"\t") if b"\t" in line else line.split(maxsplit=2)
    if len(columns) == 2 or (len(columns) == 3 and b"\t" in line):
        path, label, name = (column.strip() for column in (*columns, b"")[:3])
    else:
        label = b""
    if not label.isdigit():
        match = LINE.fullmatch(line)
        if match is None:
            return line, None, None
        path, label, name = match.groups()
    name = name.decode(errors="replace") if name else None
    return path, int(label) if int(label) < 2**31 else None, name


def _cure(line: bytes, header: bool) -> str:
    """What may help a line without a label; ``header``: it is the first one."""
    if COMMAS.fullmatch(line):
        return f"; {BLANKS}, not by a comma"
    if header and not re.search(rb"\d", line):
        return "; if it is a header, remove it" + (f", and {BLANKS}" if b"," in line else "")
    return ""


class _LeadsOut:
    """Whether a path leads out of a folder, links followed; each of its folders is looked at once.

    Only absolute paths and those with ``..`` are asked about.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(os.fsencode(root))
        self._known: dict[bytes, bool] = {}

    def __call__(self, path: bytes) -> bool:
        if not (path.startswith(b"/") or (b".." in path and b".." in path.split(b"/"))):
            return False
        folder, _ = _split(path)
        if folder not in self._known:
            place = os.path.realpath(os.path.join(self._root, folder))
            self._known[folder] = os.path.commonpath([place, self._root]) != self._root
        return self._known[folder]


def _split(path: bytes) -> tuple[bytes, bytes]:
    name = path.rpartition(b"/")[2]
    return path[: len(path) - len(name)], name


def _missing(folder: bytes, names: set[bytes]) -> set[bytes]:
    """Those of the names that are not in the folder."""
    try:
        absent = names.difference(os.listdir(folder))
    except OSError:
        return names
    # A file system may know a file by other spellings than that of its listing.
    return {name for name in absent if not os.path.exists(os.path.join(folder, name))}


def find_list(name: str, folders: Sequence[str | Path], flag: str, number: str = "") -> Path:
    """The list file ``name`` in the first folder that has it.

    Args:
        flag: by which the user says where it is, for the message.
        number: by which the user says how many classes it has, if lists of one's own take the name.
    Raises:
        UsageError: none has it.
    """
    for folder in folders:
        if (found := Path(folder) / name).is_file():
            return found
    where = " or ".join(map(str, folders))
    own = f"; a list of your own takes this name as well, with {number}" if number else ""
    raise UsageError(f"no {name} in {where}; put it there, or give {flag}{own}; {WHERE}")


def require_some(list_file: object, files: Sequence[str], root: object) -> None:
    """Refuse a list whose paths start elsewhere: none of its ``files`` is there.

    Raises:
        UsageError: names the list and the folder.
    """
    if files and not any(map(os.path.exists, files)):
        raise UsageError(
            f"{list_file}: none of its {len(files)} images is in {root}; give by --root the folder "
            "that its paths start from"
        )


def check_names(train: ListFile, other: ListFile) -> None:
    """Refuse a list that calls a class otherwise than the training list; numbers are no names.

    Before either is relabelled.

    Raises:
        UsageError: names the list, the class and both names.
    """
    for label in sorted(train.named.keys() & other.named.keys()):
        name, trained = other.named[label], train.named[label]
        if name != trained and not (name.isdigit() or trained.isdigit()):
            raise UsageError(
                f"{other.list_file}: class {label} is called {name}, and {trained} in "
                f"{train.list_file}; number the classes of all lists alike"
            )


def split_name(list_file: Path) -> str:
    """``val`` if the name of an evaluation list says so, else ``test``."""
    return "val" if "val" in list_file.stem.lower() else "test"


def is_published(data: ListFile) -> bool:
    """Whether a list has name and classes of a published one, and its images within 1 %.

    Lists without a few damaged images are still the published ones, see ``size_warning``.
    """
    images, num_classes = PUBLISHED.get(data.list_file.name, (0, 0))
    return data.num_classes == num_classes and abs(len(data) - images) <= images / 100


def data_name(train: ListFile) -> str:
    """What a training list is of, for the head of a picture: a published set, else its folder."""
    if is_published(train):
        return SETS[train.list_file.name.rpartition("_")[0]]
    return train.root.resolve().name


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
