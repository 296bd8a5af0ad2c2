"""What folders and headers tell before an image is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from clustermim_fast.data.cache import cache_listing
from clustermim_fast.data.decode import DECODE_ERRORS
from clustermim_fast.data.digits import DIGITS_SIZE
from clustermim_fast.data.folder import list_folder


def native_size(path: str | Path, split: str = "train", sample: int = 64) -> tuple[int, int]:
    """Median (height, width) of up to `sample` images, from their headers, pixels."""
    if str(path) == "digits":
        return DIGITS_SIZE, DIGITS_SIZE
    cached = cache_listing(path, split, 0.0)
    if cached is not None:
        height, width = np.median(cached.shapes, axis=0)
        return int(height), int(width)
    paths = list_folder(path, split, 0.0).paths
    sizes = []
    for file in paths[:: max(1, len(paths) // sample)]:
        try:
            with Image.open(file) as image:
                sizes.append((image.height, image.width))
        except DECODE_ERRORS:
            continue
    if not sizes:
        raise ValueError(f"data: none of the images of {path} can be read")
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def all_labels(path: str | Path) -> npt.NDArray[np.int64] | None:
    """Class indices of everything below ``path``, broken files too; None where there are none."""
    cached = cache_listing(path, "all", 0.0)
    return list_folder(path, "all", 0.0).labels if cached is None else cached.labels
