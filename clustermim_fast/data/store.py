"""Where decoded images lie: one uint8 tensor for small sets, the files themselves for large
ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clustermim_fast.data.decode import DECODE_ERRORS, UInt8Array, decode_image

Broken = tuple[Path, str]
_VANISHED = (
    "data: the images of {} are gone (was a disk taken away?); bring them back, and "
    "the same command goes on from the last checkpoint"
)
_CHUNK = 512


class MemoryStore:
    """Images in one uint8 tensor: [N, 3, H, W] where all have one size, else flat with offsets."""

    in_memory = True

    def __init__(
        self, pixels: Tensor, shapes: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
    ) -> None:
        self._pixels = pixels
        self._shapes = shapes
        self._offsets = offsets
        self.broken: list[Broken] = []

    @classmethod
    def from_tensor(cls, images: Tensor) -> MemoryStore:
        """Wrap uint8 [N, 3, H, W]."""
        count, _, height, width = images.shape
        shapes = np.tile(np.array([[height, width]], dtype=np.int64), (count, 1))
        return cls(images.contiguous().view(-1), shapes, _offsets(shapes))

    @classmethod
    def from_arrays(cls, arrays: list[UInt8Array]) -> MemoryStore:
        """Pack uint8 [3, h, w] arrays; the list is emptied on the way, so that memory is not held
        twice.
        """
        shapes = np.array([array.shape[1:] for array in arrays], dtype=np.int64).reshape(-1, 2)
        offsets = _offsets(shapes)
        pixels = np.empty(int(offsets[-1]), dtype=np.uint8)
        for index in range(len(arrays)):
            array = arrays[index]
            arrays[index] = np.empty((3, 0, 0), dtype=np.uint8)
            pixels[offsets[index] : offsets[index + 1]] = array.reshape(-1)
        return cls(torch.from_numpy(pixels), shapes, offsets)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [3, h, w], a view."""
        height, width = self._shapes[index]
        start, stop = self._offsets[index], self._offsets[index + 1]
        return self._pixels[int(start) : int(stop)].view(3, int(height), int(width))

    @property
    def uniform(self) -> Tensor | None:
        """The whole set as uint8 [N, 3, H, W], or None where sizes differ."""
        if len(self) == 0 or (self._shapes != self._shapes[0]).any():
            return None
        height, width = (int(side) for side in self._shapes[0])
        return self._pixels.view(len(self), 3, height, width)


class FileStore:
    """Images decoded when they are asked for, in the process that asks.

    A file that cannot be read is replaced by the next one that can, the same for every process, and
    put on the list `broken` of the process that met it.
    """

    in_memory = False
    uniform = None

    def __init__(self, paths: list[Path], max_short_side: int) -> None:
        self._paths = paths
        self._max_short_side = max_short_side
        self.broken: list[Broken] = []
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [3, h, w]. Raises RuntimeError where no file of the set can be read."""
        for step in range(len(self._paths)):
            place = (index + step) % len(self._paths)
            if place in self._known:
                continue
            try:
                array = decode_image(self._paths[place], self._max_short_side)
            except DECODE_ERRORS as error:
                if isinstance(error, OSError) and error.errno and not self._is_there():
                    raise FileNotFoundError(_VANISHED.format(self._root())) from error
                self._known.add(place)
                self.broken.append((self._paths[place], reason_of(error)))
                continue
            return torch.from_numpy(array)
        raise RuntimeError(f"data: none of the {len(self._paths)} images can be read")

    def _root(self) -> str:
        folders = [str(path.parent) for path in (self._paths[0], self._paths[-1])]  # in order
        return os.path.commonpath(folders)

    def _is_there(self) -> bool:
        """Whether it is this file that is broken, and not the disk that is gone."""
        return os.path.isdir(self._root())


def load_files(
    paths: list[Path], max_short_side: int, *, progress: bool
) -> tuple[MemoryStore, npt.NDArray[np.int64], list[Broken]]:
    """Decode files into memory on as many threads as torch uses (Pillow releases the GIL).

    Returns the store, the indices of the files that could be read, and the broken files with a
    reason.
    """
    arrays: list[UInt8Array] = []
    kept: list[int] = []
    broken: list[Broken] = []
    bar = tqdm(total=len(paths), desc="reading images", unit=" images", disable=not progress)
    for index, result in enumerate(_decode_all(paths, max_short_side)):
        if isinstance(result, str):
            broken.append((paths[index], result))
        else:
            arrays.append(result)
            kept.append(index)
        if index % _CHUNK == 0:
            bar.update(index + 1 - bar.n)
    bar.update(len(paths) - bar.n)
    bar.close()
    return MemoryStore.from_arrays(arrays), np.array(kept, dtype=np.int64), broken


def _decode_all(paths: list[Path], max_short_side: int) -> Iterator[UInt8Array | str]:
    def decode_chunk(start: int) -> list[UInt8Array | str]:
        results: list[UInt8Array | str] = []
        for path in paths[start : start + _CHUNK]:
            try:
                results.append(decode_image(path, max_short_side))
            except DECODE_ERRORS as error:
                results.append(reason_of(error))
        return results

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for results in pool.map(decode_chunk, range(0, len(paths), _CHUNK)):
            yield from results


def estimate_bytes(paths: list[Path], max_short_side: int, sample: int = 64) -> int:
    """Bytes the decoded set will take, from the headers of up to `sample` evenly spaced files."""
    stride = max(1, len(paths) // sample)
    sizes = []
    for path in paths[::stride]:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except DECODE_ERRORS:
            continue
        factor = min(1.0, max_short_side / min(width, height))
        sizes.append(3 * width * height * factor * factor)
    return int(np.mean(sizes) * len(paths)) if sizes else 0


def reason_of(error: BaseException) -> str:
    """One line that says what was wrong with a file."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _offsets(shapes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(3 * shapes[:, 0] * shapes[:, 1])]).astype(np.int64)
