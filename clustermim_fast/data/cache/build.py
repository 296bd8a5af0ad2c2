"""`build_cache`: a source to shards, in parallel, from where an earlier call was stopped."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from clustermim_fast.data.cache import format as files
from clustermim_fast.data.cache.format import Cache
from clustermim_fast.data.cache.index import exact_sums, write_index
from clustermim_fast.data.cache.sources import Source
from clustermim_fast.data.decode import DECODE_ERRORS, UInt8Array, decode_image, to_pixels
from clustermim_fast.data.store import reason_of
from clustermim_fast.image_files import CACHE_INDEX, CACHE_JOURNAL

__all__ = ["Settings", "begun_with", "build_cache", "clear_cache"]

_SHARD_BYTES = 128 * 1024**2
_MOST_IMAGES = 1024
_LOST = (FileNotFoundError, PermissionError, IsADirectoryError)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of a cache.

    source: as the caller named it; split: "train", "test" or "" (all of it); size: short side that
    larger images are reduced to, pixels, 0: none; decoder: of plain JPEG files.
    """

    source: str
    split: str
    size: int
    decoder: str

    def images_per_shard(self, count: int) -> int:
        """At most 1,024 images and about 128 MiB (of 4:3 images; 0: of 500 x 375); of few images
        64 shards, so that every core gets some.
        """
        one = 4 * (self.size or 375) ** 2
        return max(16, min(_MOST_IMAGES, _SHARD_BYTES // one, max(64, -(-count // 64))))


def build_cache(
    source: Source, folder: Path, settings: Settings, *, threads: int, progress: bool
) -> tuple[Cache, int]:
    """Make, go on with, or repair the cache in ``folder``.

    The files are the same, byte for byte, for any number of threads and after any kill.

    Returns:
        The open cache, and how many images this call decoded.

    Raises:
        ValueError: the folder holds the cache of other images or settings, none can be read, or a
            repaired shard would differ from what was written; OSError: the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(source, folder, settings)
    if not (folder / CACHE_INDEX).exists():
        done = work.journal()
    else:
        done = work.finished()
        if len(done) == len(work.ranges):
            return Cache.open(folder), 0
    fresh = work.make([n for n in range(len(work.ranges)) if n not in done], threads, progress)
    if not work.repaired:
        rows = [{**done, **fresh}[number] for number in range(len(work.ranges))]
        write_index(folder, source, work.facts, rows)
    (folder / CACHE_JOURNAL).unlink(missing_ok=True)
    return Cache.open(folder), sum(
        len(row["shapes"]) + len(row["broken"]) for row in fresh.values()
    )


def begun_with(folder: Path) -> dict[str, Any]:
    """The settings of the cache in a folder, finished or not; {} where there is none."""
    for name in (CACHE_INDEX, CACHE_JOURNAL):
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            facts: dict[str, Any] = json.loads(text if name == CACHE_INDEX else text.split("\n")[0])
            return facts
    return {}


def clear_cache(folder: Path) -> None:
    """Remove the files of a cache, finished or not, and nothing else."""
    for name in (CACHE_INDEX, CACHE_JOURNAL, files.SUMS, "names.txt", "broken.txt"):
        (folder / name).unlink(missing_ok=True)
    for pattern in ("shard-*.bin", "*.npy", "*.partial"):
        for path in folder.glob(pattern):
            path.unlink()


class _Work:
    """The shards of one cache, and the journal of those that are whole."""

    def __init__(self, source: Source, folder: Path, settings: Settings) -> None:
        self.source, self.folder, self.settings = source, folder, settings
        count = len(source.names)
        each = settings.images_per_shard(count)
        self.ranges = [range(i, min(i + each, count)) for i in range(0, count, each)]
        self.repaired: dict[int, str] = {}  # shards of a finished cache: what they must hash to
        listed = json.dumps([source.names, source.class_names]).encode()
        labels = b"" if source.labels is None else source.labels.tobytes()
        self.facts = {
            "format": files.VERSION,
            **dataclasses.asdict(settings),
            "entries": count,
            "listing": hashlib.sha256(listed + labels).hexdigest(),
        }
        self._bar: Any = None
        self._stop = threading.Event()

    def journal(self) -> dict[int, dict[str, Any]]:
        """Shards that an earlier call finished, by number; begins the journal where there is none.

        A line that a killed process was writing is dropped, with its shard.
        """
        path = self.folder / CACHE_JOURNAL
        for partial in self.folder.glob("*.partial"):
            partial.unlink()
        rows = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        if rows:
            self._require_same(rows[0])
        done = {row["shard"]: row for row in rows[1:] if self._whole(row)}
        text = "".join(json.dumps(row) + "\n" for row in [self.facts, *done.values()])
        files.write_file(path, text.encode())
        return done

    def finished(self) -> dict[int, dict[str, Any]]:
        """Shards of a finished cache that have their size; the others get into `repaired`."""
        cache = Cache.load(self.folder)
        self._require_same(cache.facts)
        (self.folder / CACHE_JOURNAL).unlink(missing_ok=True)
        sums = files.read_sums(self.folder)
        for number, _ in cache.short_shards():
            self.repaired[number] = sums[files.shard_name(number)]
        return {n: {} for n in range(len(self.ranges)) if n not in self.repaired}

    def _whole(self, row: dict[str, Any]) -> bool:
        path = self.folder / files.shard_name(row["shard"])
        return path.is_file() and path.stat().st_size == row["bytes"]

    def _require_same(self, facts: dict[str, Any]) -> None:
        for key in ("format", "size", "decoder"):
            if facts.get(key) != self.facts[key]:
                raise ValueError(
                    f"out: {self.folder} was begun with {key}={facts.get(key)}, and now {key} is "
                    f"{self.facts[key]}; give {key}={facts.get(key)}, another out=, or restart=yes "
                    "to throw it away"
                )
        if facts.get("listing") != self.facts["listing"]:
            raise ValueError(
                f"out: {self.folder} was begun when the source held other files or labels; choose "
                "another out=, or restart=yes to throw it away"
            )

    def make(self, numbers: list[int], threads: int, progress: bool) -> dict[int, dict[str, Any]]:
        """Make shards; each gets its line in the journal as soon as it is whole."""
        total = sum(len(self.ranges[number]) for number in numbers)
        rows: dict[int, dict[str, Any]] = {}
        waiting: set[Future[dict[str, Any]]] = set()
        with (
            tqdm(total=total, desc="caching", unit=" images", disable=not progress) as self._bar,
            open(self.folder / CACHE_JOURNAL, "a", encoding="utf-8") as journal,
            ThreadPoolExecutor(threads) as pool,
        ):
            try:
                waiting = {pool.submit(self._shard, number) for number in numbers}
                while waiting:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    # A failure ends this: what is whole by then gets its line first.
                    for future in sorted(finished, key=lambda one: one.exception() is not None):
                        row = future.result()
                        self._require_repaired(row)
                        rows[row["shard"]] = row
                        journal.write(json.dumps(row) + "\n")
                        journal.flush()
                        os.fsync(journal.fileno())
            except OSError as error:
                self._cancel(waiting)
                if error.errno == errno.ENOSPC:
                    raise self._disk_full(len(rows), len(numbers)) from error
                raise
            except BaseException:  # Ctrl-C: what is whole stays
                self._cancel(waiting)
                raise
        return rows

    def _require_repaired(self, row: dict[str, Any]) -> None:
        name = files.shard_name(row["shard"])
        if self.repaired.get(row["shard"], row["sha256"]) != row["sha256"]:
            (self.folder / name).unlink()
            raise ValueError(
                f"data: {name} of {self.folder} would not be what it was: the images have changed "
                "since; make a new cache with restart=yes"
            )

    def _cancel(self, waiting: set[Future[dict[str, Any]]]) -> None:
        self._stop.set()
        for future in waiting:
            future.cancel()

    def _disk_full(self, done: int, wanted: int) -> OSError:
        free = shutil.disk_usage(self.folder).free / 1e9
        return OSError(
            errno.ENOSPC,
            f"the disk of {self.folder} is full ({free:.1f} GB free; {done} of {wanted} shards of "
            "this call are whole and stay); free some and repeat the command, which goes on there",
        )

    def _shard(self, number: int) -> dict[str, Any]:
        path = self.folder / files.shard_name(number)
        partial = path.with_name(f"{path.name}.partial")
        digest = hashlib.sha256()
        shapes, broken = [], []
        sums, squares = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
        with open(partial, "wb") as file:
            for entry in self.ranges[number]:
                if self._stop.is_set():
                    raise InterruptedError("stopped")
                pixels = self._pixels(entry)
                self._bar.update()
                if isinstance(pixels, str):
                    broken.append([entry, pixels])
                    continue
                file.write(pixels.data)
                digest.update(pixels.data)
                shapes.append(pixels.shape[1:])
                more, more_squares = exact_sums(pixels.reshape(3, -1))
                sums += more
                squares += more_squares
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        return {
            "shard": number,
            "bytes": path.stat().st_size,
            "sha256": digest.hexdigest(),
            "shapes": shapes,
            "broken": broken,
            "sums": sums.tolist(),
            "squares": squares.tolist(),
        }

    def _pixels(self, entry: int) -> UInt8Array | str:
        """The image of an entry, or what is wrong with it; OSError where the source is lost."""
        size, decoder = self.settings.size or None, self.settings.decoder
        try:
            found = self.source.read(entry)
        except _LOST as error:
            return f"{type(error).__name__}: {error.strerror}"
        try:
            if isinstance(found, Image.Image):
                return to_pixels(found, size)
            return decode_image(found, size, decoder)
        except DECODE_ERRORS as error:
            return reason_of(error)
