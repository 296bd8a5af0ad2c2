"""Fits of k-means from given centroids, ours and the peers', each as ``fit(x, c, iterations)``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clustermim_fast.bench.assigners import import_faiss

Array = npt.NDArray[np.float32]
Fit = Callable[[Array, Array, int], Any]

BATCHES = 8  # mini-batches in a timed call


@contextmanager
def _quiet() -> Iterator[None]:
    """No word about convergence: a fixed number of iterations is the point."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        yield


def fit_ours(x: Array, c: Array, iterations: int) -> Any:
    """Our estimator."""
    from clustermim_fast.tokenizers import KMeans

    return KMeans(len(c), init=c, n_init=1, max_iter=iterations, tol=0).fit(x)


def fit_sklearn(x: Array, c: Array, iterations: int) -> Any:
    """scikit-learn's Lloyd."""
    from sklearn.cluster import KMeans

    with _quiet():
        return KMeans(len(c), init=c, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(
            x
        )


def fit_sklearnex(x: Array, c: Array, iterations: int) -> Any:
    """Intel's build of it."""
    from sklearnex.cluster import KMeans

    with _quiet():
        return KMeans(len(c), init=c, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(
            x
        )


def fit_faiss(x: Array, c: Array, iterations: int) -> Any:
    """faiss's k-means on all rows."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    limits = dict(min_points_per_centroid=1, max_points_per_centroid=len(x))
    kmeans = faiss.Kmeans(x.shape[1], len(c), niter=iterations, nredo=1, **limits)
    kmeans.train(x, init_centroids=c)
    return kmeans


@dataclass(frozen=True)
class LloydPeer:
    """name: in tables; key: on a command line; modules: what it needs; fit: runs it."""

    name: str
    key: str
    modules: tuple[str, ...]
    fit: Fit

    def missing(self) -> str | None:
        """The first module that is not installed, or None."""
        return next((m for m in self.modules if util.find_spec(m) is None), None)


LLOYD_PEERS: tuple[LloydPeer, ...] = (
    LloydPeer("sklearnex KMeans", "sklearnex", ("sklearnex", "sklearn"), fit_sklearnex),
    LloydPeer("sklearn KMeans, lloyd", "sklearn", ("sklearn",), fit_sklearn),
    LloydPeer("faiss.Kmeans", "faiss", ("faiss",), fit_faiss),
)


def batches(x: Array, size: int) -> list[Array]:
    """At most :data:`BATCHES` whole mini-batches of ``x`` (one of all rows if it has fewer)."""
    size = min(size, len(x))
    return [x[i * size : (i + 1) * size] for i in range(min(BATCHES, len(x) // size))]


def minibatch_sklearn(x: Array, c: Array, size: int) -> Callable[[], None]:
    """``MiniBatchKMeans.partial_fit`` over some batches, its first call already done."""
    from sklearn.cluster import MiniBatchKMeans

    parts = batches(x, size)
    estimator = MiniBatchKMeans(len(c), init=c, n_init=1, batch_size=size)

    def run() -> None:
        for part in parts:
            estimator.partial_fit(part)

    estimator.partial_fit(x[: max(size, len(c))])
    return run


def minibatch_ours(x: Array, c: Array, size: int) -> Callable[[], None]:
    """Our ``KMeans(algorithm="minibatch").partial_fit`` in the same way."""
    from clustermim_fast.tokenizers import KMeans

    parts = batches(x, size)
    estimator = KMeans(len(c), init=c, n_init=1, algorithm="minibatch", batch_size=size)

    def run() -> None:
        for part in parts:
            estimator.partial_fit(part)

    estimator.partial_fit(x[: max(size, len(c))])
    return run
