"""The k-means fit of a large set at a share of its size: predicted first, then measured.

    python -m benchmarks.scale --data FOLDER [--share 64] [--clusters 8192] [--iterations 5]

Stands for 1,281,167 images of 224 x 224: a share of as many random crops of FOLDER's photographs,
made anew in each pass, as a cache would give them. The prediction comes from one Lloyd step and one
reading of two batches, and is printed before the fit begins. CPU seconds are of all threads: on a
machine with other jobs they are what holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import limited_threads, machine, markdown_table, write_json
from benchmarks.resident import peak_bytes
from clustermim_fast import ops
from clustermim_fast.data import DataConfig, ImageSet, open_images
from clustermim_fast.patch_grid import patchify
from clustermim_fast.tokenizers import PixelTokenizer

IMAGENET_IMAGES = 1_281_167
SIDE, PATCH, BATCH = 224, 16, 256


class Crops:
    """`count` crops in batches; sample n is crop n // len(images) of image n % len(images)."""

    def __init__(self, images: ImageSet, count: int) -> None:
        self.images, self.count = images, count

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, self.count, BATCH):
            samples = np.arange(start, min(start + BATCH, self.count))
            epochs, ids = np.divmod(samples, len(self.images))
            parts = [
                self.images.crops(0, int(epoch), ids[epochs == epoch], DataConfig())
                for epoch in np.unique(epochs)
            ]
            yield torch.cat(parts)


def seconds_of(call: Any) -> tuple[float, float, Any]:
    """(wall, CPU of all threads, what the call returns)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def predict(crops: Crops, clusters: int, iterations: int) -> dict[str, float]:
    """Seconds of the fit, wall and CPU, and MiB above what is held, from two batches.

    Every iteration reads all images once and assigns and adds all patches once, and so does a pass
    at the end; one before the first draws the sample that the first centroids come from. An
    iteration that leaves clusters empty takes another pass, which is not predicted.
    """
    two = Crops(crops.images, 2 * BATCH)
    list(two)
    *read, batches = seconds_of(lambda: list(two))
    patches = patchify(batches[0].float() / 255, PATCH).flatten(0, 1)
    centroids = patches[torch.randint(len(patches), (clusters,))].clone()
    ops.lloyd_step_images(batches[0], centroids, PATCH)
    *step, _ = seconds_of(
        lambda: [ops.lloyd_step_images(batch, centroids, PATCH) for batch in batches]
    )
    share = crops.count / (2 * BATCH)
    wall, cpu = (
        share * ((iterations + 2) * r + (iterations + 1) * s)
        for r, s in zip(read, step, strict=True)
    )
    # Two batches, 64 MiB of workspace, centroids and sums in float64 (old, new, a step's, a copy),
    # and the sample of three rows a cluster in float32.
    codebook = clusters * 3 * PATCH**2
    memory = 2 * BATCH * 3 * SIDE**2 + (64 << 20) + 4 * 8 * codebook + 3 * 4 * codebook
    return {"seconds": wall, "CPU seconds": cpu, "MiB": memory / 2**20}


def main() -> None:
    """Print the prediction, fit, print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, or cache")
    parser.add_argument("--share", type=int, default=64, help="of 1,281,167 images: one in so many")
    parser.add_argument("--clusters", type=int, default=8192)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    images = open_images(options.data, size=SIDE, in_memory="yes", split="all")
    crops = Crops(images, IMAGENET_IMAGES // options.share)
    rows = crops.count * (SIDE // PATCH) ** 2
    print(f"{crops.count:,} images, {rows:,} rows, D = {3 * PATCH**2}, K = {options.clusters}, "
          f"{options.iterations} iterations, {options.threads} threads")  # fmt: skip
    with limited_threads(options.threads):
        predicted = predict(crops, options.clusters, options.iterations)
        rounded = {name: round(value, 1) for name, value in predicted.items()}
        print("predicted:", rounded, flush=True)
        settings = {"patch_order": "chw", "algorithm": "lloyd", "init": "random", "tol": 0}
        settings["max_iter"] = options.iterations
        found: dict[str, float] = {}

        def fit() -> None:
            wall, cpu, tokenizer = seconds_of(
                lambda: PixelTokenizer.fit(crops, options.clusters, PATCH, **settings)
            )
            found.update({"seconds": wall, "CPU seconds": cpu})
            found["iterations"] = len(tokenizer.report.iterations)

        found["MiB"] = peak_bytes(fit) / 2**20
    lines = [
        [name, f"{value:,.0f}", f"{found[name]:,.0f}", f"{found[name] / value:.2f}"]
        for name, value in predicted.items()
    ]
    print(f"{found['iterations']} iterations")
    print(markdown_table(["", "predicted", "measured", "ratio"], lines))
    print(machine())
    if options.json:
        given = {"images": crops.count, "rows": rows, "clusters": options.clusters}
        write_json(options.json, [given | {"predicted": predicted, "measured": found}])


if __name__ == "__main__":
    main()
