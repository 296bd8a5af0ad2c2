"""What importing costs in seconds, and what a call of an op costs in microseconds before any work.

    python benchmarks/overhead.py [--rounds 15] [--json FILE]

Imports: a fresh interpreter each, with warm file caches, the median of `rounds`; the
interpreter's own start is measured beside them and is contained in each. Calls: inputs so small
that the kernel's work is nothing (4 rows of 4 values, 2 centroids), one thread; all cases take
turns in each round, and the median over the rounds of the mean of `CALLS` calls is printed. The
ATen calls beside them are what torch itself charges; the composites are what a user would write.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CALLS = 1000
IMPORTS = (
    "pass",
    "import numpy",
    "import clustermim_fast",
    "import clustermim_fast._core",
    "import torch",
    "import clustermim_fast.ops",
    "import clustermim_fast.nn",
)


def import_seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def calls() -> dict[str, Callable[[], object]]:
    """The calls to time: ATen's own, a composite, the raw compiled function, the ops."""
    import torch

    from clustermim_fast import ops
    from clustermim_fast.ops import _backend

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, c = torch.randn(4, 4), torch.randn(2, 4)
    logits, target = torch.randn(2, 4, 2), torch.randint(0, 2, (2, 4))
    mask = torch.tensor([[True, False, True, False]] * 2)
    graded = logits.clone().requires_grad_()
    images = torch.randint(0, 256, (1, 3, 2, 2), dtype=torch.uint8)
    pixel_centroids = torch.randn(2, 12)
    ids, core = torch.empty(4, dtype=torch.int64), _backend.core()

    def raw_core() -> object:
        return core.nearest_centroid(
            x=x.data_ptr(),
            x_dtype=0,
            x_row_stride=4,
            num_rows=4,
            dim=4,
            centroids=c.data_ptr(),
            centroids_dtype=0,
            centroids_row_stride=4,
            num_centroids=2,
            metric="euclidean",
            ids=ids.data_ptr(),
            distance=0,
            threads=1,
        )

    def backward(loss: torch.Tensor) -> None:
        graded.grad = None
        loss.backward()

    cross_entropy = torch.nn.functional.cross_entropy
    return {
        "ATen add": lambda: torch.add(x, x),
        "ATen mm": lambda: torch.mm(x, c.T),
        "ATen cdist + argmin": lambda: torch.cdist(x, c).argmin(1),
        "_core.nearest_centroid, raw": raw_core,
        "ops.nearest_centroid": lambda: ops.nearest_centroid(x, c),
        "ops.nearest_centroid, reference": lambda: ops.nearest_centroid(x, c, backend="reference"),
        "ops.patch_tokens": lambda: ops.patch_tokens(images, pixel_centroids, 2),
        "ATen cross_entropy": lambda: cross_entropy(logits[0], target[0]),
        "ATen cross_entropy of logits[mask]": lambda: cross_entropy(logits[mask], target[mask]),
        "ops.masked_cross_entropy": lambda: ops.masked_cross_entropy(logits, target, mask),
        "ATen cross_entropy of logits[mask], fwd + bwd": lambda: backward(
            cross_entropy(graded[mask], target[mask])
        ),
        "ops.masked_cross_entropy, fwd + bwd": lambda: backward(
            ops.masked_cross_entropy(graded, target, mask)
        ),
    }


def microseconds_a_call(rounds: int) -> dict[str, float]:
    cases = calls()
    seen: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            for _ in range(20):
                call()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            seen[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    for statement in IMPORTS:
        import_seconds(statement)
    seen: dict[str, list[float]] = {statement: [] for statement in IMPORTS}
    for _ in range(arguments.rounds):
        for statement in IMPORTS:
            seen[statement].append(import_seconds(statement))
    imports = {statement: statistics.median(values) for statement, values in seen.items()}
    called = microseconds_a_call(arguments.rounds)
    for statement, value in imports.items():
        print(f"{value:8.3f} s   {statement}")
    for name, value in called.items():
        print(f"{value:8.2f} us  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": imports, "us": called}, indent=1) + "\n")


if __name__ == "__main__":
    main()
