"""What people use on a GPU to find nearest centroids; each ``make(x, c)`` gives a call."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite.cases import Call, Method

CHUNK_SCORES = 2**30  # scores that a peer without a fused argmin holds at a time


def _formula(x: torch.Tensor, c: torch.Tensor, c2: torch.Tensor) -> torch.Tensor:
    return (x.square().sum(1, keepdim=True) + c2 - 2 * x @ c.T).argmin(1)


def _parts(x: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    return x.split(max(1, CHUNK_SCORES // k))


def torch_eager(x: torch.Tensor, c: torch.Tensor) -> Call:
    return lambda: torch.cat([_formula(p, c, c.square().sum(1)) for p in _parts(x, len(c))])


def torch_compiled(x: torch.Tensor, c: torch.Tensor) -> Call:
    torch._dynamo.reset()
    formula = torch.compile(_formula, dynamic=False)
    return lambda: torch.cat([formula(p, c, c.square().sum(1)) for p in _parts(x, len(c))])


def torch_cdist(x: torch.Tensor, c: torch.Tensor) -> Call:
    """In float32: it takes no 16-bit rows."""
    rows, points = x.float(), c.float()
    return lambda: torch.cat([torch.cdist(p, points).argmin(1) for p in _parts(rows, len(c))])


def flash_kmeans(x: torch.Tensor, c: torch.Tensor) -> Call:
    """Its assignment kernel, with its own choice of tiles; norms of the rows are made outside."""
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    x_sq = torch.cat([p.float().square().sum(1) for p in x.split(2**20)])[None]
    return lambda: euclid_assign_triton(x[None], c[None], x_sq)[0]


def fastkmeans(x: torch.Tensor, c: torch.Tensor) -> Call:
    from fastkmeans.triton_kernels import triton_kmeans

    x_sq, ids = x.float().square().sum(1), torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def call() -> torch.Tensor:
        triton_kmeans(x, x_sq, c, c.float().square().sum(1), ids)
        return ids

    return call


def keops(x: torch.Tensor, c: torch.Tensor) -> Call:
    from pykeops.torch import LazyTensor

    rows, points = LazyTensor(x.float()[:, None]), LazyTensor(c.float()[None])
    return lambda: ((rows - points) ** 2).sum(-1).argmin(1)[:, 0]


def cuvs(x: torch.Tensor, c: torch.Tensor) -> Call:
    import cupy
    from cuvs.distance import pairwise_distance

    points = cupy.asarray(c.float())

    def part(rows: torch.Tensor) -> torch.Tensor:
        found = pairwise_distance(cupy.asarray(rows), points, metric="sqeuclidean")
        return torch.as_tensor(found).argmin(1)

    rows = x.float()
    return lambda: torch.cat([part(p) for p in _parts(rows, len(c))])


def faiss(x: torch.Tensor, c: torch.Tensor) -> Call:
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlatL2(resources, x.shape[1])
    index.add(c.float())
    rows = x.float()
    return lambda: index.search(rows, 1)[1][:, 0]


# name, module, factory, why it is not carried
PEERS: tuple[tuple[str, str, Callable[..., Call], str], ...] = (
    ("torch, eager", "", torch_eager, ""),
    ("torch.compile", "", torch_compiled, ""),
    ("torch.cdist", "", torch_cdist, ""),
    ("flash-kmeans", "flash_kmeans", flash_kmeans, ""),
    ("fastkmeans", "fastkmeans", fastkmeans, ""),
    ("KeOps", "pykeops", keops, ""),
    ("cuVS", "cuvs", cuvs, "its libraries are 240 MB and more, over the 64 MiB that travel"),
    ("faiss-gpu", "faiss", faiss, "48 MB, and CUDA 12's cuBLAS (400 MB) beside it"),
)


def peers(x: torch.Tensor, c: torch.Tensor, only: Any = None) -> list[Method]:
    """Every peer, runnable or with the reason why not. ``c`` has the dtype of ``x``."""
    found = []
    for name, module, make, reason in PEERS:
        if only is not None and name not in only:
            continue
        missing = ""
        if module and importlib.util.find_spec(module) is None:
            missing = f"not installed{': ' if reason else ''}{reason}"
        found.append(Method(name, partial(make, x, c), missing))
    return found
