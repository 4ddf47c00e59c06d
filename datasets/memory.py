"""Images in memory as a map-style data set, for the worker loader."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from torch.utils.data import Dataset


class ArrayDataset(Dataset):
    """uint8 images (N, H, W, 3) and labels (N,); ``dataset[i]`` is (transformed PIL image, label).

    ``transform`` may be a list of transforms: each makes one view of the image.
    """

    def __init__(
        self, images: np.ndarray, targets: Sequence[int], transform: Callable | Sequence[Callable]
    ) -> None:
        self.images = images
        self.targets = np.asarray(targets, dtype=np.int64)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.fromarray(self.images[index])
        if callable(self.transform):
            views: object = self.transform(image)
        else:
            views = tuple(transform(image) for transform in self.transform)
        return views, int(self.targets[index])
