"""What people use today to find nearest centroids, each as ``make(centroids) -> assign(rows)``.

Nothing here is imported before its peer is asked for; a peer that is not installed is named with
the way to install it.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from typing import Any

import numpy as np
import torch

from clustermim_fast.bench.paths import isa_paths

Assign = Callable[[torch.Tensor], Any]
Make = Callable[[torch.Tensor], Assign]

CHUNK_SCORES = 2**24  # scores that a peer without a fused argmin holds at a time


def _formula(x: torch.Tensor, c: torch.Tensor, c2: torch.Tensor) -> torch.Tensor:
    """|x|^2 + |c|^2 - 2 x.c, as tokenizers and k-means codes write it."""
    return (x.square().sum(1, keepdim=True) + c2 - 2 * x @ c.T).argmin(1)


def _chunks(x: torch.Tensor, num_centroids: int) -> tuple[torch.Tensor, ...]:
    return x.split(max(1, CHUNK_SCORES // num_centroids))


def torch_formula(c: torch.Tensor) -> Assign:
    """The expanded formula in eager torch, with centroid norms made in each call."""

    def assign(x: torch.Tensor) -> torch.Tensor:
        c2 = c.square().sum(1)
        return torch.cat([_formula(part, c, c2) for part in _chunks(x, len(c))])

    return assign


def _not_about_cuda_home(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("No CUDA runtime is found")


def torch_compiled(c: torch.Tensor) -> Assign:
    """The same through ``torch.compile``; all its chunks have one size, so it compiles once."""
    # Where nvcc is but no GPU, the compiler's import warns about CUDA_HOME, of no use on a CPU.
    logging.getLogger("torch.utils.cpp_extension").addFilter(_not_about_cuda_home)
    torch._dynamo.reset()
    compiled = torch.compile(_formula, dynamic=False)

    def assign(x: torch.Tensor) -> torch.Tensor:
        c2 = c.square().sum(1)
        size = min(len(x), max(1, CHUNK_SCORES // len(c)))
        ids = [compiled(x[i : i + size], c, c2) for i in range(0, len(x) - size + 1, size)]
        if rest := len(x) % size:
            ids.append(compiled(x[-size:], c, c2)[-rest:])
        return torch.cat(ids)

    return assign


def torch_cdist(c: torch.Tensor) -> Assign:
    """``torch.cdist`` and ``argmin``."""
    return lambda x: torch.cat([torch.cdist(part, c).argmin(1) for part in _chunks(x, len(c))])


def import_faiss() -> Any:
    """faiss, its OpenBLAS told what processor this is.

    The OpenBLAS inside its wheel (0.3.15) knows no processor of the last years by its number, takes
    it for one with SSE3 and is four times slower than it can be.
    """
    if "faiss" in sys.modules or "OPENBLAS_CORETYPE" in os.environ:
        return importlib.import_module("faiss")
    paths = isa_paths()
    usable = [name for name in ("avx512", "avx2") if paths.get(name) == "usable"]
    if usable:  # x86
        os.environ["OPENBLAS_CORETYPE"] = {"avx512": "SkylakeX", "avx2": "Haswell"}[usable[0]]
    try:
        return importlib.import_module("faiss")
    finally:
        os.environ.pop("OPENBLAS_CORETYPE", None)


def faiss_flat(c: torch.Tensor) -> Assign:
    """faiss's exact index, one neighbour. It takes float32."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(c.shape[1])
    index.add(c.float().numpy())
    return lambda x: index.search(x.float().numpy(), 1)[1][:, 0]


def sklearn_argmin(c: torch.Tensor) -> Assign:
    """scikit-learn's pairwise function, norms and argmin in blocks."""
    from sklearn.metrics import pairwise_distances_argmin

    centroids = c.numpy()
    return lambda x: pairwise_distances_argmin(x.numpy(), centroids)


def _predictor(estimator_class: type, c: torch.Tensor) -> Assign:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import pairwise_distances_argmin

    centroids = c.numpy()
    estimator: Any = estimator_class(len(centroids), init=centroids, n_init=1, max_iter=1, tol=0)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        # Two copies: the Intel build hands a fit with no more rows than clusters to scikit-learn.
        # Each cluster's mean is then its centroid, in the Intel build exactly.
        estimator.fit(np.concatenate([centroids, centroids]))
    if not np.array_equal(estimator.cluster_centers_, centroids):
        estimator.cluster_centers_ = centroids.copy()  # scikit-learn centres data first: rounds
    expected = pairwise_distances_argmin(centroids, centroids)
    if not np.array_equal(estimator.predict(centroids), expected):
        raise RuntimeError(f"{estimator_class} does not predict with the centroids given")
    return lambda x: estimator.predict(x.numpy())


def sklearn_predict(c: torch.Tensor) -> Assign:
    """scikit-learn's estimator, handed the centroids."""
    from sklearn.cluster import KMeans

    return _predictor(KMeans, c)


def sklearnex_predict(c: torch.Tensor) -> Assign:
    """Intel's build of it (oneDAL): the fastest peer on a CPU."""
    from sklearnex.cluster import KMeans

    return _predictor(KMeans, c)


def scipy_vq(c: torch.Tensor) -> Assign:
    """scipy's vector quantisation; one thread, but for its matrix product."""
    from scipy.cluster.vq import vq

    centroids = c.numpy()
    return lambda x: vq(x.numpy(), centroids, check_finite=False)[0]


@dataclass(frozen=True)
class Peer:
    """A method to compare with.

    name: in tables; key: on a command line; modules: what it needs beside torch; make: its
    factory; slow: it may be given fewer rows of a large problem.
    """

    name: str
    key: str
    modules: tuple[str, ...]
    make: Make
    slow: bool = False

    def missing(self) -> str | None:
        """The first module that is not installed, or None."""
        absent = (m for m in self.modules if util.find_spec(m.partition(".")[0]) is None)
        return next(absent, None)


PEERS: tuple[Peer, ...] = (
    Peer("sklearnex KMeans.predict", "sklearnex", ("sklearnex", "sklearn"), sklearnex_predict),
    Peer("faiss IndexFlatL2", "faiss", ("faiss",), faiss_flat),
    Peer("sklearn KMeans.predict", "sklearn", ("sklearn",), sklearn_predict),
    Peer("torch.compile of the formula", "compile", (), torch_compiled),
    Peer("torch.cdist + argmin", "cdist", (), torch_cdist, slow=True),
    Peer("torch eager formula", "torch", (), torch_formula, slow=True),
    Peer("sklearn pairwise_distances_argmin", "pairwise", ("sklearn",), sklearn_argmin, slow=True),
    Peer("scipy.cluster.vq.vq", "scipy", ("scipy",), scipy_vq, slow=True),
)
