"""What takes long and does not change, kept on disk: decoded images, features, centroids, truth.

A file's name holds a hash of everything that its content depends on, so nothing is ever stale.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

DEFAULT = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clustermim_fast" / "bench"
)


def content_key(*parts: object) -> str:
    """A hash of arrays, tensors, files (paths) and of anything else by its text."""
    digest = hashlib.blake2b(digest_size=10)
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.contiguous().numpy()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(memoryview(np.ascontiguousarray(part)).cast("B"))
        elif isinstance(part, Path):
            digest.update(part.read_bytes())
        else:
            digest.update(f"|{part}|".encode())
    return digest.hexdigest()


class Cache:
    """Arrays under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tensor(self, name: str, key: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor called ``name`` of ``key``, made where it is not there yet."""
        path = self.folder / f"{name}-{key}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path))
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
        np.save(unfinished, made.numpy())
        unfinished.replace(path)
        return made
