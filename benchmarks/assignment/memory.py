"""Peak memory of a call above what is held before it (Linux: VmHWM, which can be reset)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assignment.sections import tokens
from benchmarks.harness import say
from benchmarks.workloads import IMAGENET, WORKLOADS, Rows, Store


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most resident memory during ``call`` beyond what was resident before."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed must not serve this one
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line for line in lines if line.startswith(f"{name}:")).split()[1]
    return int(kib) * 1024


def memory_rows(store: Store) -> list[dict[str, Any]]:
    """``patch_tokens`` on all images of 224 x 224; the first line has the threads' start in it."""
    table = []
    images = store.images(IMAGENET)
    for k in (100, 1000, 8192):
        centroids = store.load(WORKLOADS[f"inet{k}"]).centroids
        data = Rows(images, centroids, np.empty(0), images, 196)
        ids = 8 * 196 * len(images)
        mib = (peak_bytes(partial(tokens, data, IMAGENET)) - ids) / 2**20
        say(f"  patch_tokens, {len(images)} images, K = {k}: {mib:.1f} MiB above inputs and ids")
        table.append({"section": "memory", "num_centroids": k, "images": len(images), "mib": mib})
    return table
