"""Assigning real patches to centroids: ours beside torch, faiss, scikit-learn and its Intel build.

    python -m benchmarks.ops.bench_nearest_centroid --data ../shared/data

prints one table: ns a row (minimum of the rounds, all methods interleaved), the ratio to the
fastest peer, and the rows whose id is not the nearest centroid's, counted on ALL rows against the
truth of ``tests/ops/truth.py`` (float64 with an error bound, exact arithmetic for what it leaves).

    pytest benchmarks/ops/bench_nearest_centroid.py --benchmark-enable

times ours on small made-up rows, for quick before-and-after checks.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin

from benchmarks.harness import interleave, machine, markdown_table, write_json
from benchmarks.workloads import DEFAULT, WORKLOADS, Workload, load_images, patch_rows, short_kmeans
from clustermim_fast import ops
from tests.ops.truth import nearest_ids

OURS = ("nearest_centroid", "patch_tokens")
CHUNK_SCORES = 2**24  # float32 scores that a peer without a fused argmin holds at a time


@dataclass
class Result:
    workload: str
    rows: int
    dim: int
    num_centroids: int
    method: str
    threads: int
    ns_per_row_min: float
    ns_per_row_median: float
    rounds: int
    wrong_ids: int
    ratio_to_best_peer: float = 0.0


def torch_formula(x: torch.Tensor, c: torch.Tensor) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        c2 = c.square().sum(1)
        step = max(1, CHUNK_SCORES // len(c))
        return torch.cat(
            [
                (part.square().sum(1, keepdim=True) + c2 - 2 * part @ c.T).argmin(1)
                for part in x.split(step)
            ]
        )

    return run


def torch_cdist(x: torch.Tensor, c: torch.Tensor) -> Callable[[], torch.Tensor]:
    step = max(1, CHUNK_SCORES // len(c))
    return lambda: torch.cat([torch.cdist(part, c).argmin(1) for part in x.split(step)])


def faiss_flat(x: torch.Tensor, c: torch.Tensor) -> Callable[[], np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(c.shape[1])
    index.add(c.numpy())
    rows = x.numpy()
    return lambda: index.search(rows, 1)[1][:, 0]


def sklearn_argmin(x: torch.Tensor, c: torch.Tensor) -> Callable[[], np.ndarray]:
    rows, centroids = x.numpy(), c.numpy()
    return lambda: pairwise_distances_argmin(rows, centroids)


def _predictor(estimator_class: type, x: torch.Tensor, c: torch.Tensor) -> Callable[[], np.ndarray]:
    rows, centroids = x.numpy(), c.numpy()
    estimator = estimator_class(len(centroids), init=centroids, n_init=1, max_iter=1, tol=0)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        # Two copies: the Intel build hands a fit with no more rows than clusters to scikit-learn.
        # Each cluster's mean is then its centroid, in the Intel build exactly.
        estimator.fit(np.concatenate([centroids, centroids]))
    if not np.array_equal(estimator.cluster_centers_, centroids):
        estimator.cluster_centers_ = centroids.copy()  # scikit-learn centres data first: rounds
    expected = pairwise_distances_argmin(centroids, centroids)
    if not np.array_equal(estimator.predict(centroids), expected):
        raise RuntimeError(f"{estimator_class} does not predict with the centroids given")
    return lambda: estimator.predict(rows)


def sklearn_predict(x: torch.Tensor, c: torch.Tensor) -> Callable[[], np.ndarray]:
    from sklearn.cluster import KMeans

    return _predictor(KMeans, x, c)


def sklearnex_predict(x: torch.Tensor, c: torch.Tensor) -> Callable[[], np.ndarray]:
    from sklearnex.cluster import KMeans

    return _predictor(KMeans, x, c)


PEERS: dict[str, Callable[[torch.Tensor, torch.Tensor], Callable]] = {
    "torch eager formula": torch_formula,
    "torch.cdist + argmin": torch_cdist,
    "faiss IndexFlatL2": faiss_flat,
    "sklearn pairwise_distances_argmin": sklearn_argmin,
    "sklearn KMeans.predict": sklearn_predict,
    "sklearnex KMeans.predict": sklearnex_predict,
}


def our_methods(images: torch.Tensor, x: torch.Tensor, c: torch.Tensor, workload: Workload) -> dict:
    return {
        "nearest_centroid": lambda: ops.nearest_centroid(x, c),
        "patch_tokens": lambda: ops.patch_tokens(
            images, c, workload.patch_size, mean=workload.mean, std=workload.std
        ).flatten(),
    }


def counting(call: Callable, name: str, truth: np.ndarray, wrong: dict[str, int]) -> Callable:
    """``call``, the wrong ids of whose first result (the warm-up, not timed) are counted."""

    def run() -> None:
        ids = call()
        if name not in wrong:
            wrong[name] = int((np.asarray(ids) != truth).sum())

    return run


@functools.lru_cache(maxsize=1)
def _rows_of_archive(data: Path, like: Workload, limit: int | None) -> tuple:
    images = load_images(data, like, limit)
    return images, patch_rows(images, like)


def rows_of(data: Path, workload: Workload, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images and their float32 patch rows; kept for the next workload of the same archive."""
    return _rows_of_archive(data, replace(workload, name="", num_centroids=0), limit)


def run_workload(workload: Workload, options: argparse.Namespace) -> list[Result]:
    images, x = rows_of(options.data, workload, options.images)
    c = short_kmeans(x, workload.num_centroids)
    start = time.perf_counter()
    truth = nearest_ids(x, c, "euclidean")
    say(f"{workload.name}: {len(x)} rows, truth took {time.perf_counter() - start:.0f} s")

    methods = our_methods(images, x, c, workload)
    if not options.check_only:
        methods |= {name: make(x, c) for name, make in PEERS.items()}
    wrong: dict[str, int] = {}
    counted = {name: counting(call, name, truth, wrong) for name, call in methods.items()}
    rounds = 1 if options.check_only else options.rounds
    clock = time.process_time if options.cpu_time else time.perf_counter
    timings = interleave(counted, rounds=rounds, clock=clock)
    with ops.record_stats():
        methods["nearest_centroid"]()
    say(f"{workload.name}: wrong ids {wrong}; {ops.assignment_stats()}")
    results = [
        Result(
            workload.name, len(x), x.shape[1], len(c), name, torch.get_num_threads(),
            timing.minimum / len(x) * 1e9, timing.median / len(x) * 1e9, rounds, wrong[name],
        )
        for name, timing in timings.items()
    ]  # fmt: skip
    peers = [r.ns_per_row_min for r in results if r.method not in OURS]
    for result in results:
        result.ratio_to_best_peer = min(peers) / result.ns_per_row_min if peers else float("nan")
    return results


def set_threads(threads: int) -> None:
    """The same number for torch (and with it ours and faiss), OpenMP, OpenBLAS and oneDAL."""
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)
    import daal4py

    daal4py.daalinit(threads)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(results: list[Result]) -> str:
    header = ("workload", "method", "ns/row min", "median", "x best peer", "wrong ids", "of rows")
    return markdown_table(
        header,
        [
            (
                f"{r.workload} (D={r.dim}, K={r.num_centroids})",
                f"**ours {r.method}**" if r.method in OURS else r.method,
                f"{r.ns_per_row_min:.1f}",
                f"{r.ns_per_row_median:.1f}",
                f"{r.ratio_to_best_peer:.2f}",
                r.wrong_ids,
                r.rows,
            )
            for r in results
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the image archives")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(DEFAULT))
    parser.add_argument("--images", type=int, help="use only this many images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, for a busy machine")
    parser.add_argument("--check-only", action="store_true", help="ours only: count wrong ids")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    set_threads(options.threads)
    results = [r for name in options.workloads for r in run_workload(WORKLOADS[name], options)]
    print(machine())
    print(table(results))
    if options.json:
        write_json(options.json, results)


@pytest.mark.parametrize(
    ("n", "d", "k"), [(100_000, 48, 50), (20_000, 48, 512), (10_000, 768, 100), (2_000, 768, 1000)]
)
def test_nearest_centroid_speed(benchmark, n, d, k):
    x, c = torch.randn(n, d), torch.randn(k, d)
    benchmark(ops.nearest_centroid, x, c)


@pytest.mark.parametrize(("size", "p", "k"), [(32, 4, 50), (224, 16, 100)])
def test_patch_tokens_speed(benchmark, size, p, k):
    images = torch.randint(0, 256, (50, 3, size, size), dtype=torch.uint8)
    benchmark(ops.patch_tokens, images, torch.randn(k, p * p * 3), p)


if __name__ == "__main__":
    main()
