"""The frame and the powers of two that bring rows and centroids into float16's range.

Any would be right: docs/certificate.md's bounds measure what is lost. These lose little on usual
data, and one far centroid or row does not change them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_lists import FAR
from clustermim_fast.ops.nearest_centroid.triton_rows import (
    column_places,
    load_values,
    row_starts,
)

SAMPLE = tl.constexpr(64)  # centroids (or rows) from which frame and scale are taken


@triton.jit
def _is_finite(values):
    return tl.abs(values) < float("inf")  # false for NaN


@triton.jit
def exponent_of(size):
    """Of float64 > 0; -1023 for 0 and subnormal ones, 1024 for inf and NaN."""
    return ((size.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023


@triton.jit
def power_of_two(exponent):
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _median(values):
    """Of the values > 0 among float64 [SAMPLE]; 0 if there is none."""
    i = tl.arange(0, SAMPLE)
    counts = values > 0
    before = (values[None, :] < values[:, None]) | (
        (values[None, :] == values[:, None]) & (i[None, :] < i[:, None])
    )
    rank = tl.sum((before & counts[None, :]).to(tl.int32), 1)
    middle = (tl.sum(counts.to(tl.int32), 0) - 1) // 2
    return tl.sum(tl.where(counts & (rank == middle), values, 0.0), 0)


@triton.jit
def _sample(N):
    """SAMPLE row numbers spread over N rows (int64), and which of them exist."""
    i = tl.arange(0, SAMPLE).to(tl.int64)
    step = tl.maximum((N + SAMPLE - 1) // SAMPLE, 1)
    return i * step, i * step < N


@triton.jit
def sizes_kernel(
    c, frame, size, moved, hashes, facts, K, D,
    KIND: tl.constexpr, METRIC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Largest |c| and |c - frame| of each centroid (-1 if it is not finite), and a hash of it."""
    if tl.program_id(0) == 0:
        i = tl.arange(0, 8)
        infinity = tl.full([8], float("inf"), tl.float32).to(tl.int32, bitcast=True)
        tl.store(facts + i, tl.where(i == FAR, infinity, 0), mask=i < 5)
    ks = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    starts = row_starts(c, ks, KIND)
    finite = tl.full([BLOCK_K], 1, tl.int32)
    largest = tl.zeros([BLOCK_K], tl.float64)
    apart = tl.zeros([BLOCK_K], tl.float64)
    mixed = tl.zeros([BLOCK_K], tl.int64)
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        mask = (ks < K)[:, None] & (ds < D)[None, :]
        values = load_values(
            c, starts[:, None] + column_places(c, ds, KIND)[None, :], ds[None, :], mask, KIND, True
        )
        finite = tl.minimum(finite, tl.min(_is_finite(values).to(tl.int32), 1))
        largest = tl.maximum(largest, tl.max(tl.abs(values), 1))
        if METRIC == "euclidean":
            middle = tl.load(frame + ds, mask=ds < D, other=0.0)
            apart = tl.maximum(
                apart, tl.max(tl.where(mask, tl.abs(values - middle[None, :]), 0.0), 1)
            )
        bits = (values + 0.0).to(tl.int64, bitcast=True)  # 0 for -0
        bits = (bits ^ (bits >> 29)) * (2 * ds + 1).to(tl.int64)[None, :]
        mixed += tl.sum(tl.where(mask, bits ^ (bits >> 32), 0), 1)
    tl.store(size + ks, tl.where(finite != 0, largest, -1.0), mask=ks < K)
    tl.store(moved + ks, tl.where(finite != 0, apart, -1.0), mask=ks < K)
    tl.store(hashes + ks, mixed, mask=ks < K)


@triton.jit
def row_scale_kernel(
    x, scale, N, D,
    KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The power of two that brings a usual row's largest value to [4, 8)."""
    rows, exist = _sample(N)
    starts = row_starts(x, rows, KIND)
    largest = tl.zeros([SAMPLE], tl.float64)
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        mask = exist[:, None] & (ds < D)[None, :]
        values = load_values(
            x, starts[:, None] + column_places(x, ds, KIND)[None, :], ds[None, :], mask, KIND, WIDE
        )
        values = tl.where(_is_finite(values), tl.abs(values), 0.0)
        largest = tl.maximum(largest, tl.max(values, 1).to(tl.float64))
    usual = _median(largest)
    limit: tl.constexpr = 1000 if WIDE else 126
    exponent = tl.minimum(tl.maximum(2 - exponent_of(usual), -limit), limit)
    tl.store(scale, tl.where(usual > 0, power_of_two(exponent), 1.0))


@triton.jit
def scale_of_centroids(
    size, moved, K,
    METRIC: tl.constexpr, EXACT16: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The exponent of the centroids' scale; whether the frame is used."""
    target: tl.constexpr = 2 if METRIC == "euclidean" else 10
    framed = 0
    if METRIC == "euclidean":
        sample, exist = _sample(K)
        plain = _median(tl.load(size + sample, mask=exist, other=-1.0))
        usual = _median(tl.load(moved + sample, mask=exist, other=-1.0))
        # Rows of 16 bits need no rounding without a frame: only a large offset is worth more.
        framed = (usual * (4.0 if EXACT16 else 2.0) < plain).to(tl.int32)
        usual = tl.where(framed != 0, usual, plain)
    else:
        usual = tl.zeros([], tl.float64)
        for begin in range(0, K, BLOCK):
            ks = begin + tl.arange(0, BLOCK)
            usual = tl.maximum(usual, tl.max(tl.load(size + ks, mask=ks < K, other=-1.0), 0))
    exponent = tl.minimum(tl.maximum(target - exponent_of(usual), -LIMIT), LIMIT)
    return tl.where(usual > 0, exponent, 0), framed


def frame_of(c: torch.Tensor) -> torch.Tensor:
    """float64 [D]: the median of a sample of the centroids, without what is not finite."""
    sample = c[:: max(1, c.shape[0] // SAMPLE.value)].double()
    return torch.where(sample.isfinite(), sample, float("nan")).nanmedian(0).values.nan_to_num(0.0)
