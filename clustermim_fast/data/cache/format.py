"""The files of a cache, and what proves that they are whole.

cache.json          the index: settings, source, counts, mean and std, images of each shard
shard-00000.bin     images back to back, each uint8 planar [3, h, w]
shapes.npy          int32 [N, 2], height and width of each image
labels.npy          int64 [N], where the source has labels
names.txt           a line for each image: its name in the source
broken.txt          entry, label, name and reason of what could not be read, where there is any
SHA256SUMS          of all of these; `sha256sum -c SHA256SUMS` checks them too
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clustermim_fast.image_files import CACHE_INDEX

__all__ = ["VERSION", "Cache", "Unread", "check_cache", "file_sha256", "shard_name"]

VERSION = 1
SUMS = "SHA256SUMS"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Unread:
    """An entry of the source that could not be read."""

    entry: int
    label: int
    name: str
    reason: str


@dataclass(frozen=True)
class Cache:
    """An open cache; its shards are as long as the index says.

    Attributes:
        folder: where it is.
        facts: cache.json.
        shapes: int32 [N, 2], (height, width), pixels.
        labels: int64 [N] or None.
        broken: entries of the source that are not among the N.
    """

    folder: Path
    facts: dict[str, Any]
    shapes: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int64] | None
    broken: list[Unread]

    @classmethod
    def open(cls, folder: str | Path) -> Cache:
        """Read the index; look at the sums of the small files and the sizes of all shards.

        Raises ValueError naming the file that is missing, altered or cut short, and the remedy.
        """
        root = Path(folder)
        for name, digest in read_sums(root).items():
            if not name.endswith(".bin"):
                _require(root / name, digest)
        cache = cls.load(root)
        bad = cache.short_shards()
        if bad:
            raise ValueError(f"data: {bad[0][1]}; {cache.remedy()}")
        return cache

    @classmethod
    def load(cls, root: Path) -> Cache:
        """Read the index and look at nothing else."""
        facts = json.loads((root / CACHE_INDEX).read_text(encoding="utf-8"))
        if facts["format"] != VERSION:
            raise ValueError(
                f"data: the cache {root} has format {facts['format']}, this release reads "
                f"{VERSION}; make it again with `clustermim cache`"
            )
        labels, broken = root / "labels.npy", root / "broken.txt"
        return cls(
            root,
            facts,
            np.load(root / "shapes.npy", allow_pickle=False),
            np.load(labels, allow_pickle=False) if labels.is_file() else None,
            _read_broken(broken) if broken.is_file() else [],
        )

    @property
    def class_names(self) -> list[str] | None:
        names: list[str] | None = self.facts["classes"]
        return names

    def shard_bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of each shard, int64 [shards]."""
        sizes = 3 * self.shapes.astype(np.int64).prod(axis=1)
        ends = np.cumsum(self.facts["shards"])
        total = np.concatenate([[0], np.cumsum(sizes)])
        return np.diff(total[np.concatenate([[0], ends])])

    def short_shards(self) -> list[tuple[int, str]]:
        """Shards that are missing or not as long as they must be, with what is wrong."""
        bad = []
        for number, wanted in enumerate(self.shard_bytes().tolist()):
            path = self.folder / shard_name(number)
            if not path.is_file():
                bad.append((number, f"{path} is missing"))
            elif path.stat().st_size != wanted:
                bad.append((number, f"{path} has {path.stat().st_size:,} bytes, not {wanted:,}"))
        return bad

    def remedy(self) -> str:
        """What makes bad shards again."""
        again = f"clustermim cache data={self.facts['source']} out={self.folder}"
        if self.folder.name == self.facts["split"]:
            again = again.removesuffix(f"/{self.folder.name}")
        return f"`{again} size={self.facts['size']}` makes missing and short shards again"

    def all_labels(self) -> npt.NDArray[np.int64] | None:
        """Labels of every entry of the source, broken ones too: what a split is drawn from."""
        if self.labels is None:
            return None
        labels = np.empty(self.facts["entries"], dtype=np.int64)
        labels[self.kept_entries()] = self.labels
        for item in self.broken:
            labels[item.entry] = item.label
        return labels

    def kept_entries(self) -> npt.NDArray[np.int64]:
        """Place in the source of each image, int64 [N]."""
        kept = np.ones(self.facts["entries"], dtype=bool)
        kept[[item.entry for item in self.broken]] = False
        return np.flatnonzero(kept)


def check_cache(folder: str | Path, tick: Callable[[int], None] = lambda _: None) -> list[str]:
    """Read every byte of a cache and compare it with SHA256SUMS; what is wrong, a line each.

    tick: called with the bytes that were read since the last call.
    """
    root, problems = Path(folder), []
    for name, digest in read_sums(root).items():
        path = root / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif file_sha256(path, tick) != digest:
            problems.append(f"{path} is not what was written (its SHA-256 differs)")
    return problems


def shard_name(number: int) -> str:
    """shard-00012.bin"""
    return f"shard-{number:05d}.bin"


def file_sha256(path: Path, tick: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            tick(len(block))
    return digest.hexdigest()


def read_sums(root: Path) -> dict[str, str]:
    """SHA256SUMS: digest by file name."""
    try:
        lines = (root / SUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(f"data: {root} has no {SUMS}; make the cache again") from None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def write_file(path: Path, content: bytes) -> str:
    """Write so that the file is there whole or not at all; its SHA-256."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return hashlib.sha256(content).hexdigest()


def write_sums(root: Path, digests: dict[str, str]) -> None:
    """SHA256SUMS, sorted by name."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    write_file(root / SUMS, lines.encode())


def broken_lines(broken: list[Unread]) -> str:
    """broken.txt."""
    head = "entry\tlabel\tname\treason\n"
    rows = (f"{b.entry}\t{b.label}\t{_flat(b.name)}\t{_flat(b.reason)}\n" for b in broken)
    return head + "".join(rows)


def _read_broken(path: Path) -> list[Unread]:
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:])
    return [Unread(int(entry), int(label), name, reason) for entry, label, name, reason in rows]


def _flat(text: str) -> str:
    return " ".join(text.split())


def _require(path: Path, digest: str) -> None:
    if not path.is_file():
        raise ValueError(f"data: {path} is missing; make the cache again with `clustermim cache`")
    if file_sha256(path) != digest:
        raise ValueError(
            f"data: {path} is not what was written (its SHA-256 differs); restore it, or make the "
            "cache again with `clustermim cache ... restart=yes`"
        )
