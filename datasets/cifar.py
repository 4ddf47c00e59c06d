"""CIFAR-10 and CIFAR-100 from the authors' archive, downloaded and extracted where absent."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch.distributed as dist

from common.training import launch
from common.training.checkpoint import atomic_file
from common.training.errors import UsageError
from common.training.logs import Progress
from datasets.sources import Source

SITE = "https://www.cs.toronto.edu/~kriz/"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Cifar:
    """What is known of a data set: MD5 of the archive and of each file in its folder.

    Attributes:
        splits: {split: {file: MD5}}. meta: (file, MD5) with the class names.
        labels, names: keys of the labels and of the class names in the files.
    """

    archive: str
    md5: str
    folder: str
    splits: dict[str, dict[str, str]]
    meta: tuple[str, str]
    labels: str
    names: str
    site: str = SITE

    def files(self, split: str) -> dict[str, str]:
        """{file: MD5} of a split and of the class names."""
        return {**self.splits[split], self.meta[0]: self.meta[1]}


SETS = {
    "cifar10": Cifar(
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        {
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
        ("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        "labels",
        "label_names",
    ),
    "cifar100": Cifar(
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        {
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        ("meta", "7973b15100ade9c7d40fb424638fde48"),
        "fine_labels",
        "fine_label_names",
    ),
}


def held_out(root: Path) -> tuple[str, ...]:
    """See ``datasets.sources.held_out``."""
    return ("test",)


def open_split(name: str, root: Path, split: str, size: int) -> Source:
    """See ``datasets.sources.open_source``; several processes leave the download to the first."""
    cifar = SETS[name]
    problem = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            _provide(cifar, root, split)
        except UsageError as error:
            problem = f"dataset {name}: {error}"
    if problem := launch.broadcast_object(problem):
        raise UsageError(problem)
    # The MD5s are those of the authors' files, so that unpickling runs nobody else's code.
    batches = [_unpickle(root / cifar.folder / file) for file in cifar.splits[split]]
    pixels = np.concatenate([batch["data"] for batch in batches])
    pixels = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    targets = np.concatenate([batch[cifar.labels] for batch in batches]).astype(np.int64)
    classes = list(_unpickle(root / cifar.folder / cifar.meta[0])[cifar.names])
    return Source(name, targets, classes, lambda indices: pixels[np.asarray(indices)])


def _unpickle(path: Path) -> dict:
    return pickle.loads(path.read_bytes(), encoding="latin1")


def _provide(cifar: Cifar, root: Path, split: str) -> None:
    """Have the intact files of the split in their folder: from the archive, or from its site.

    A kill at any moment leaves whole files alone; the same call again makes up for the others.
    """
    lacking = {
        file: md5
        for file, md5 in cifar.files(split).items()
        if _md5(root / cifar.folder / file) != md5
    }
    if not lacking:
        return
    archive, url = root / cifar.archive, cifar.site + cifar.archive
    if (found := _md5(archive)) != cifar.md5:
        here = f"neither {cifar.archive} nor {cifar.folder}/ is in {root.resolve()}"
        if found is not None:
            here = (
                f"{archive} is damaged or cut short ({archive.stat().st_size:,} bytes, "
                f"MD5 {found} instead of {cifar.md5})"
            )
        elif (root / cifar.folder).is_dir():
            here = f"{root / cifar.folder / min(lacking)} is missing or damaged"
        try:
            _download(url, archive, cifar.md5)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"{here}, and the archive is not to be had from {url} ({reason}); "
                f"put that archive, or its folder {cifar.folder}/, into {root}/"
            ) from None
    try:
        _extract(archive, root, cifar.folder, lacking)
    except OSError as error:
        raise UsageError(f"cannot extract {archive} to {root}/ ({error})") from None


def _md5(path: Path) -> str | None:
    """None if there is no such file."""
    if not path.is_file():
        return None
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _download(url: str, path: Path, md5: str) -> None:
    """Raises ``OSError``: no connection, no place. ``ValueError``: it broke off, other content."""
    launch.say_download(url, path)
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=60) as response:
        path.parent.mkdir(parents=True, exist_ok=True)
        progress = Progress(path.name, -(-int(response.headers.get("Content-Length", 0)) // CHUNK))
        with atomic_file(path) as file:
            for chunk in _chunks(response):
                digest.update(chunk)
                file.write(chunk)
                progress.step()
            progress.close()
            if digest.hexdigest() != md5:
                raise ValueError(f"what comes from there has the MD5 {digest.hexdigest()}")


def _chunks(response: BinaryIO) -> Iterator[bytes]:
    """What the site sends. Raises ``ValueError``, as an ``OSError`` would be the written file's."""
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except OSError as error:
        raise ValueError(error) from None


def _extract(archive: Path, root: Path, folder: str, files: dict[str, str]) -> None:
    """Write the files of an intact archive's folder, each of them atomically."""
    (root / folder).mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for file in files:
            content = tar.extractfile(f"{folder}/{file}").read()
            with atomic_file(root / folder / file) as written:
                written.write(content)
