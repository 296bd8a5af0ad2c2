"""Finished caches as the images of a set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clustermim_fast.data.cache.format import Cache, file_sha256, read_sums, shard_name
from clustermim_fast.data.folder import held_out
from clustermim_fast.data.store import Broken, MemoryStore
from clustermim_fast.image_files import cache_parts

__all__ = ["CacheListing", "CacheStore", "cache_listing", "open_caches"]


class CacheStore:
    """Images of caches one after the other, mapped into memory: a batch reads the pages it needs.

    keep: which images, int64 [N], places in all of them. Processes share the pages; a forked or
    spawned worker maps the files itself.
    """

    in_memory = False
    uniform = None

    def __init__(self, caches: list[Cache], keep: npt.NDArray[np.int64]) -> None:
        self._caches, self._keep = caches, keep
        self.broken: list[Broken] = []
        self._shapes = np.concatenate([cache.shapes for cache in caches]).astype(np.int64)
        counts = np.concatenate([cache.facts["shards"] for cache in caches])
        self._shard = np.repeat(np.arange(len(counts)), counts)
        sizes = 3 * self._shapes.prod(axis=1)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        first = np.cumsum(counts) - counts  # image of each shard
        self._offset = starts[:-1] - starts[first][self._shard]
        self._files = [
            (str(cache.folder / shard_name(n)), size)
            for cache in caches
            for n, size in enumerate(cache.shard_bytes().tolist())
        ]
        self._remedies = [cache.remedy() for cache in caches for _ in cache.facts["shards"]]
        self._maps: list[Tensor | None] = [None] * len(self._files)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": [None] * len(self._files)}

    def __len__(self) -> int:
        return len(self._keep)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [3, h, w], a view of the file; not to be written to."""
        place = int(self._keep[index])
        height, width = self._shapes[place].tolist()
        start = int(self._offset[place])
        number = int(self._shard[place])
        whole = self._map(number)
        self._require_whole(number)
        return whole[start : start + 3 * height * width].view(3, height, width)

    def _require_whole(self, number: int) -> None:
        """A look at the file's size, 1 us: to read a map beyond its file's end kills the process.

        A shard may be removed or replaced: the map keeps what it had.
        """
        path, size = self._files[number]
        try:
            found = os.stat(path).st_size
        except FileNotFoundError:
            return
        if found < size:
            raise ValueError(
                f"data: {path} has {found:,} bytes, not {size:,}: it was cut after it was opened; "
                f"{self._remedies[number]}, and the same command goes on from the last checkpoint"
            )

    def _map(self, number: int) -> Tensor:
        found = self._maps[number]
        if found is None:
            path, size = self._files[number]
            # Unlike numpy's, this map keeps no file descriptor: there may be thousands of shards.
            found = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
            self._maps[number] = found
        return found

    def in_memory_store(self) -> MemoryStore:
        """The same images read into memory, after a look at the SHA-256 of each shard.

        Raises ValueError naming a shard that was altered.
        """
        for cache in self._caches:
            for name, digest in read_sums(cache.folder).items():
                path = cache.folder / name
                if name.endswith(".bin") and file_sha256(path) != digest:
                    raise ValueError(
                        f"data: {path} is not what was written (its SHA-256 differs); delete it: "
                        f"{cache.remedy()}"
                    )
        shapes = self._shapes[self._keep]
        pixels = torch.empty(int((3 * shapes.prod(axis=1)).sum()), dtype=torch.uint8)
        start = 0
        for index in range(len(self)):
            image = self[index]
            pixels[start : start + image.numel()] = image.flatten()
            start += image.numel()
        offsets = np.concatenate([[0], np.cumsum(3 * shapes.prod(axis=1))]).astype(np.int64)
        return MemoryStore(pixels, shapes, offsets)


@dataclass(frozen=True)
class CacheListing:
    """The images of a split of a cache, without their pixels.

    caches, and the places `keep` int64 [N] in all of them; labels int64 [N] or None; unread: what
    the source held and could not be read, of these caches.
    """

    caches: list[Cache]
    keep: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None
    class_names: list[str] | None

    @property
    def shapes(self) -> npt.NDArray[np.int64]:
        """Heights and widths, int64 [N, 2]."""
        return np.concatenate([c.shapes for c in self.caches])[self.keep].astype(np.int64)

    @property
    def broken(self) -> list[Broken]:
        """Unreadable entries of the source."""
        return [(Path(item.name), item.reason) for c in self.caches for item in c.broken]


def cache_listing(path: str | Path, split: str, holdout: float) -> CacheListing | None:
    """The images of a split of the cache at ``path``, as `list_folder` would choose them from its
    source; None where there is no cache.
    """
    parts = cache_parts(path)
    if not parts:
        return None
    if split == "all" or "" in parts:
        caches = [Cache.open(place) for place in parts.values()]
    elif split not in parts:
        raise ValueError(f"data: {path} has no images for split={split!r}, only {', '.join(parts)}")
    else:
        caches = [Cache.open(parts[split])]
    keep = np.arange(sum(len(cache.shapes) for cache in caches))
    names = caches[0].class_names
    same = all(cache.class_names == names for cache in caches)
    labels = None
    if same and names is not None:
        labels = np.concatenate([c.labels for c in caches if c.labels is not None])
    if "" in parts and split != "all" and not (split == "train" and holdout == 0.0):
        if holdout == 0.0:
            raise ValueError(
                f"data: {path} was made from images without train/ and test/, and its test images "
                "were asked for; set data.holdout, for instance 0.2"
            )
        # By place in the source, so that the split is that of the source.
        cache = caches[0]
        test = held_out(cache.all_labels(), cache.facts["entries"], holdout)
        keep = np.flatnonzero(test[cache.kept_entries()] == (split == "test"))
        labels = None if labels is None else labels[keep]
    return CacheListing(caches, keep, labels, names if labels is not None else None)


def open_caches(listing: CacheListing, in_memory: str, limit: int) -> CacheStore | MemoryStore:
    """Mapped, or in memory: in_memory "yes", "no", or "auto" (below ``limit`` bytes)."""
    store = CacheStore(listing.caches, listing.keep)
    total = int((3 * listing.shapes.prod(axis=1)).sum())
    if in_memory == "yes" or (in_memory == "auto" and total <= limit):
        return store.in_memory_store()
    return store
