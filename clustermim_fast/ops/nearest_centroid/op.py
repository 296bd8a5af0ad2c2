"""``nearest_centroid``: rows to the ids of their nearest centroids, certified exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch

from clustermim_fast.ops import _backend, _checks, _stats
from clustermim_fast.ops._library import define_op
from clustermim_fast.ops.nearest_centroid.reference import nearest_centroid_reference

OP = "nearest_centroid"
METRICS = ("euclidean", "cosine", "dot")
IMPLEMENTED = ("reference", "cpu", "triton", "cuda")
# Of a row: more could overflow the integers of the exact tier (triton_integers.py).
MOST_TRITON_VALUES = 2**19
MOST_CUDA_VALUES = 768  # of 128 rows at a time, which stay in shared memory


def require_centroids(op: str, centroids: torch.Tensor) -> torch.Tensor:
    """The checks that every op makes of its ``centroids`` [K, D]."""
    _checks.require_tensor(
        op, "centroids", centroids, dtypes=_checks.FLOATING, ndim=2, shape="[K, D]"
    )
    if centroids.shape[0] == 0:
        raise _checks.bad_value(op, "centroids", "[K, D] with K >= 1", tuple(centroids.shape))
    return centroids


def refused_by_cuda(x: torch.Tensor, centroids: torch.Tensor) -> _backend.Refusal | None:
    """What CUDA C++ does not take of a call with rows ``x``."""
    if x.dtype == torch.float64:
        return "x", 'float32, float16 or bfloat16 for backend "cuda"', _checks.describe(x)
    return too_wide("cuda", centroids, MOST_CUDA_VALUES)


def too_wide(backend: str, centroids: torch.Tensor, most: int) -> _backend.Refusal | None:
    """That rows have more than ``most`` values."""
    if centroids.shape[1] <= most:
        return None
    expected = f'[K, D] with D <= {most} for backend "{backend}"'
    return "centroids", expected, _checks.describe(centroids)


def choose_backend(
    op: str,
    backend: str | None,
    device: torch.device,
    centroids: torch.Tensor,
    implemented: tuple[str, ...],
    refused: Callable[[], _backend.Refusal | None] = lambda: None,
) -> str:
    """The back-end of an op that assigns. A call that the fastest does not take (CUDA C++ where
    ``refused`` says so, Triton if rows are too wide) is left to the next, unless it was named."""
    name = _backend.resolve_call(op, backend, device, implemented, refused)
    problem = too_wide(name, centroids, MOST_TRITON_VALUES) if name == "triton" else None
    if problem is None:
        return name
    if _backend.named(backend) is None:
        return "reference"
    raise _checks.bad_value(op, *problem, 'pass backend="reference"')


def _assign(
    x: torch.Tensor, centroids: torch.Tensor, metric: str, backend: str, want_distance: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 and distances float64 (empty when not wanted), both of ``x.shape[:-1]``."""
    rows = x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.new_empty(x.shape[:-1].numel(), 0)
    if backend == "reference":
        ids, distance, counts = nearest_centroid_reference(rows, centroids, metric)
    elif backend in ("triton", "cuda"):
        from clustermim_fast.ops.nearest_centroid import triton_kernel

        ids, distance, tiers = triton_kernel.nearest_centroid(
            rows, centroids, metric, want_distance, hopper=backend == "cuda"
        )
        counts = triton_kernel.counts_of(tiers) if _stats.recording() else (0, 0, 0, 0)
    else:
        rows, centroids = _unit_stride(rows), _unit_stride(centroids)
        ids = torch.empty(rows.shape[0], dtype=torch.int64)
        distance = torch.empty(rows.shape[0] if want_distance else 0, dtype=torch.float64)
        counts = _backend.core().nearest_centroid(
            x=rows.data_ptr(),
            x_dtype=_backend.DTYPE_CODES[rows.dtype],
            x_row_stride=rows.stride(0),
            num_rows=rows.shape[0],
            dim=rows.shape[1],
            centroids=centroids.data_ptr(),
            centroids_dtype=_backend.DTYPE_CODES[centroids.dtype],
            centroids_row_stride=centroids.stride(0),
            num_centroids=centroids.shape[0],
            metric=metric,
            ids=ids.data_ptr(),
            distance=distance.data_ptr() if want_distance else 0,
            threads=torch.get_num_threads(),
        )
    _stats.note(rows.shape[0], *counts)
    shape = x.shape[:-1]
    return ids.reshape(shape), distance.reshape(shape) if want_distance else distance


def _unit_stride(rows: torch.Tensor) -> torch.Tensor:
    """The kernel reads any row stride; the last dimension must be dense (one copy if it is not)."""
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def _ids_impl(x: torch.Tensor, centroids: torch.Tensor, metric: str, backend: str) -> torch.Tensor:
    return _assign(x, centroids, metric, backend, want_distance=False)[0]


def _distance_impl(
    x: torch.Tensor, centroids: torch.Tensor, metric: str, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, distance = _assign(x, centroids, metric, backend, want_distance=True)
    return ids, distance.to(_distance_dtype(x, centroids))


def _distance_dtype(x: torch.Tensor, centroids: torch.Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (x.dtype, centroids.dtype) else torch.float32


def _ids_fake(x: torch.Tensor, centroids: torch.Tensor, metric: str, backend: str) -> torch.Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


def _distance_fake(
    x: torch.Tensor, centroids: torch.Tensor, metric: str, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    distance = x.new_empty(x.shape[:-1], dtype=_distance_dtype(x, centroids))
    return _ids_fake(x, centroids, metric, backend), distance


_ids_op = define_op(
    "nearest_centroid(Tensor x, Tensor centroids, str metric, str backend) -> Tensor",
    impl=_ids_impl,
    fake=_ids_fake,
)
_distance_op = define_op(
    "nearest_centroid_distance(Tensor x, Tensor centroids, str metric, str backend)"
    " -> (Tensor, Tensor)",
    impl=_distance_impl,
    fake=_distance_fake,
)


@overload
def nearest_centroid(
    x: torch.Tensor,
    centroids: torch.Tensor,
    *,
    metric: str = ...,
    return_distance: Literal[False] = ...,
    backend: str | None = ...,
) -> torch.Tensor: ...
@overload
def nearest_centroid(
    x: torch.Tensor,
    centroids: torch.Tensor,
    *,
    metric: str = ...,
    return_distance: Literal[True],
    backend: str | None = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def nearest_centroid(
    x: torch.Tensor,
    centroids: torch.Tensor,
    *,
    metric: str = "euclidean",
    return_distance: bool = False,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Id of the nearest centroid of each row, exact in real arithmetic, lowest id among equals.

    The given values are taken as they are (no autocast, no rounding to a common dtype); the answer
    does not depend on device, dtype path, thread count or batch split.

    Args:
        x: [..., D] float64, float32, float16 or bfloat16, any strides.
        centroids: [K, D] of any of these dtypes, K >= 1, on the same device.
        metric: "euclidean" (smallest ``|x - c|``), "cosine" (largest ``x.c / |x||c|``; a zero
            vector has cosine 0 with everything) or "dot" (largest ``x.c``).
        return_distance: also return the squared distance (or the similarity), computed from the row
            and its winner directly, not from the expanded formula. Not differentiable.
        backend: "reference", "cpu", "triton", "cuda" (Hopper; not float64, D <= 768) or None
            (chosen by device).

    Returns:
        int64 ids of shape [...]; with ``return_distance`` also float32 [...] (float64 if an input
        is float64). A row with NaN or Inf gets id -1 and distance NaN; a centroid with NaN or Inf
        never wins; if no centroid is finite every id is -1.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: a back-end was named that cannot run here.
    """
    _checks.require_tensor(
        OP,
        "x",
        x,
        dtypes=_checks.FLOATING,
        remedy="convert it, e.g. x.float(); see patch_tokens for uint8",
    )
    require_centroids(OP, centroids)
    if x.dim() < 1 or x.shape[-1] != centroids.shape[1]:
        expected = f"[..., D] with D = centroids.shape[1] = {centroids.shape[1]}"
        raise _checks.bad_value(OP, "x", expected, _checks.describe(x))
    _checks.require_choice(OP, "metric", metric, METRICS)
    device = _checks.require_same_device(OP, x=x, centroids=centroids)
    name = choose_backend(
        OP, backend, device, centroids, IMPLEMENTED, lambda: refused_by_cuda(x, centroids)
    )
    op = _distance_op if return_distance else _ids_op
    result: torch.Tensor | tuple[torch.Tensor, torch.Tensor] = op(
        x.detach(), centroids.detach(), metric, name
    )
    return result
