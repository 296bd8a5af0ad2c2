"""`clustermim cache`: images decoded once, for every epoch of every run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from clustermim_fast.data.cache import (
    Cache,
    Settings,
    begun_with,
    build_cache,
    check_cache,
    clear_cache,
    open_sources,
)
from clustermim_fast.image_files import JPEG_DECODERS, cache_parts, jpeg_decoder

__all__ = ["cache_images", "verify_cache"]


def cache_images(
    data: str | Path,
    out: str | Path,
    *,
    size: int = 256,
    workers: int | None = None,
    decoder: str = "auto",
    restart: bool = False,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
) -> list[Cache]:
    """Decode images to a cache that every command takes as data=.

    The same call goes on where an earlier one was stopped, and makes missing or short shards of a
    finished cache again.

    Args:
        data: see `data.cache.open_sources`.
        out: folder of the cache; of OUT/train and OUT/test where the source has both.
        size: short side that larger images are reduced to, pixels; 0 keeps all pixels.
        workers: threads; None: one for each core.
        decoder: of plain JPEG files: "simplejpeg", "torchcodec", "pillow" or "auto", the fastest
            installed. The pixels do not depend on it.
        restart: throw away what the folder holds of a cache.
        progress: show a bar; None: where stderr is a terminal.
        say: takes a line for each split.

    Raises:
        ValueError: settings that do not fit the source or the folder; OSError: the disk.
    """
    if size < 0:
        raise ValueError(f"size: expected pixels, or 0 to keep all, got {size}")
    if decoder != "auto" and decoder not in JPEG_DECODERS:
        raise ValueError(
            f"decoder: expected auto or one of {', '.join(JPEG_DECODERS)}, got {decoder!r}"
        )
    threads = len(os.sched_getaffinity(0)) if workers is None else workers
    if threads < 1:
        raise ValueError(f"workers: expected a number of threads from 1 up, got {threads}")
    caches = []
    for split, source in open_sources(data).items():
        folder = Path(out).expanduser() / split
        if restart:
            clear_cache(folder)
        chosen = decoder
        if decoder == "auto":
            chosen = str(begun_with(folder).get("decoder", jpeg_decoder()))
        package = _require_installed(chosen)
        start = time.perf_counter()
        cache, decoded = build_cache(
            source,
            folder,
            Settings(str(data), split, size, chosen),
            threads=threads,
            progress=sys.stderr.isatty() if progress is None else progress,
        )
        seconds = time.perf_counter() - start
        how = "complete already"
        if decoded:
            how = (
                f"{decoded:,} read in {seconds:.1f} s ({decoded / seconds:.0f} images/s, "
                f"{threads} threads, JPEG by {package})"
            )
        say(f"{_summary(cache)}; {how}")
        caches.append(cache)
    return caches


def verify_cache(
    folder: str | Path, *, progress: bool | None = None, say: Callable[[str], None] = print
) -> None:
    """Compare every byte of a cache with its checksums.

    Raises ValueError naming what is altered, short or missing, and the remedy.
    """
    parts = cache_parts(folder)
    if not parts:
        raise ValueError(f"check: {folder} is no cache (no cache.json)")
    problems: list[str] = []
    remedy = ""
    for place in parts.values():
        total = sum(path.stat().st_size for path in place.iterdir() if path.is_file())
        show = sys.stderr.isatty() if progress is None else progress
        with tqdm(
            total=total, desc=f"checking {place}", unit="B", unit_scale=True, disable=not show
        ) as bar:
            found = check_cache(place, bar.update)
        problems += found
        if not found:
            say(f"{_summary(Cache.open(place))}; every file is what was written")
        elif all(".bin" in line for line in found):
            remedy = f"; delete the file, and {Cache.load(place).remedy()}"
    if problems:
        raise ValueError(f"check: {'; '.join(problems)}{remedy}")


def _require_installed(decoder: str) -> str:
    """ "simplejpeg 1.9.0"; ValueError where it is not installed."""
    try:
        return f"{decoder} {version(decoder)}"
    except ModuleNotFoundError:
        raise ValueError(
            f"decoder: {decoder} is not installed; pip install {decoder}, or decoder=pillow "
            "restart=yes"
        ) from None


def _summary(cache: Cache) -> str:
    facts = cache.facts
    classes = f", {len(facts['classes'])} classes" if facts["classes"] else ", no labels"
    short = f"short side <= {facts['size']} px" if facts["size"] else "own sizes"
    mean, std = (" ".join(f"{v:.3f}" for v in facts[key]) for key in ("mean", "std"))
    text = (
        f"{cache.folder}: {facts['images']:,} images{classes}, {short}, "
        f"{facts['bytes'] / 1e6:,.1f} MB in {len(facts['shards'])} shards, mean {mean}, std {std}"
    )
    if cache.broken:
        text += f"; {len(cache.broken)} unreadable, listed in {cache.folder / 'broken.txt'}"
    return text
