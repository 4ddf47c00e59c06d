"""What a run is trained and evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Images:
    """uint8 images (N, H, W, 3), labels (N,) int64, and paths if each image is a file."""

    images: np.ndarray
    targets: np.ndarray
    files: Sequence[str] | None = None


@dataclass(frozen=True)
class Data:
    """Images to train and to evaluate on, and what identifies them.

    Attributes:
        train, test: ``Images`` where they fit in memory, else data sets with ``targets`` (N,).
        classes: their names, (C,); numbers where the data have no names.
        cls_num_list: training images of each class (C,).
        facts: for the report: where the images are, SHA-256 of their names or pixels and of labels.
        split: which one the test set is, ``test`` or ``val``.
        chosen_on: on what the best epoch is chosen: ``split``, ``val`` or a ``held-out`` part.
        notes: for the user.
        val: images by which the best epoch is chosen; None: it is chosen on the test set.
        name: what the data are, for the head of a picture.
        own: whether they are the user's: a folder, a file, or a list that is no published one.
    """

    train: Dataset | Images
    test: Dataset | Images
    classes: list[str]
    cls_num_list: list[int]
    facts: dict[str, object]
    split: str = "test"
    chosen_on: str = "test"
    notes: Sequence[str] = ()
    val: Dataset | Images | None = None
    name: str = ""
    own: bool = False

    @property
    def files(self) -> Sequence[str] | None:
        """The test images, if they are files."""
        return getattr(self.test, "files", None)
