"""Peak memory of the assignment of images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.assignment.sections import tokens
from benchmarks.harness import say
from benchmarks.resident import peak_bytes
from benchmarks.workloads import IMAGENET, WORKLOADS, Rows, Store


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
