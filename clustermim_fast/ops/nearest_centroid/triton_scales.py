"""The frame and the powers of two that bring rows and centroids into float16's range.

Any would be right: docs/certificate.md's bounds measure what is lost. These lose little on usual
data, and one far centroid or row does not change them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_lists import FAR, NUM_FACTS
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
def sample_step(N):
    return (N + SAMPLE - 1) // SAMPLE


@triton.jit
def _sample(N):
    """SAMPLE row numbers spread over N rows (int64), and which of them exist."""
    places = tl.arange(0, SAMPLE).to(tl.int64) * sample_step(N)
    return places, places < N


@triton.jit
def scales_kernel(
    c, x, size, hashes, scale, facts, counters, K, D, N, num_counters,
    KIND: tl.constexpr, X_KIND: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sizes and hashes of centroids; the last program, unless it is for euclidean, scales rows."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(K, BLOCK_K)
    if pid == 0:
        i = tl.arange(0, 8)
        infinity = tl.full([8], float("inf"), tl.float32).to(tl.int32, bitcast=True)
        tl.store(facts + i, tl.where(i == FAR, infinity, 0), mask=i < NUM_FACTS)
        lanes = tl.arange(0, 128)
        for begin in range(0, num_counters, 128):
            zeros = tl.zeros([128], tl.int32)
            tl.store(counters + begin + lanes, zeros, mask=begin + lanes < num_counters)
    if pid < blocks:
        _measure(
            c, size, hashes, pid * BLOCK_K + tl.arange(0, BLOCK_K), K, D, KIND, BLOCK_K, BLOCK_D
        )
    else:
        _scale_rows(x, scale, N, D, X_KIND, WIDE, BLOCK_D)


@triton.jit
def _measure(
    c, size, hashes, ks, K, D, KIND: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Largest |c| of each centroid (-1 if it is not finite), and a hash of it."""
    starts = row_starts(c, ks, KIND)
    finite = tl.full([BLOCK_K], 1, tl.int32)
    largest = tl.zeros([BLOCK_K], tl.float64)
    mixed = tl.zeros([BLOCK_K], tl.int64)
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        mask = (ks < K)[:, None] & (ds < D)[None, :]
        values = load_values(
            c, starts[:, None] + column_places(c, ds, KIND)[None, :], ds[None, :], mask, KIND, True
        )
        finite = tl.minimum(finite, tl.min(_is_finite(values).to(tl.int32), 1))
        largest = tl.maximum(largest, tl.max(tl.abs(values), 1))
        bits = (values + 0.0).to(tl.int64, bitcast=True)  # 0 for -0
        bits = (bits ^ (bits >> 29)) * (2 * ds + 1).to(tl.int64)[None, :]
        mixed += tl.sum(tl.where(mask, bits ^ (bits >> 32), 0), 1)
    tl.store(size + ks, tl.where(finite != 0, largest, -1.0), mask=ks < K)
    tl.store(hashes + ks, mixed, mask=ks < K)


@triton.jit
def middle_kernel(c, frame, apart, K, D, KIND: tl.constexpr, BLOCK_D: tl.constexpr):
    """The frame in a block of columns: the median of the sample's finite values, or 0;
    and how far the sample is from it at most."""
    block = tl.program_id(0)
    ds = block * BLOCK_D + tl.arange(0, BLOCK_D)
    places = column_places(c, ds, KIND)
    i = tl.arange(0, SAMPLE)
    sample, exist = _sample(K)
    mask = exist[:, None] & (ds < D)[None, :]
    at = row_starts(c, sample, KIND)[:, None] + places[None, :]
    values = load_values(c, at, ds[None, :], mask, KIND, True)
    counts = mask & _is_finite(values)
    rank = (tl.sum(counts.to(tl.int32), 0) - 1) // 2
    middle = tl.zeros([BLOCK_D], tl.float64)
    for j in range(SAMPLE):
        row = tl.arange(0, 1) + j * sample_step(K)
        mine = (row < K) & (ds < D)
        own = load_values(c, row_starts(c, row, KIND) + places, ds, mine, KIND, True)
        before = (values < own[None, :]) | ((values == own[None, :]) & (i < j)[:, None])
        chosen = mine & _is_finite(own) & (tl.sum((counts & before).to(tl.int32), 0) == rank)
        middle = tl.where(chosen, own, middle)
    tl.store(frame + ds, middle, mask=ds < D)
    away = tl.max(tl.where(counts, tl.abs(values - middle[None, :]), 0.0), 1)
    tl.store(apart + block * SAMPLE + i, away)


@triton.jit
def _scale_rows(x, scale, N, D, KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK_D: tl.constexpr):
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
    size, apart, column_blocks, K,
    METRIC: tl.constexpr, EXACT16: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The exponent of the centroids' scale; whether the frame is used."""
    target: tl.constexpr = 2 if METRIC == "euclidean" else 10
    framed = 0
    if METRIC == "euclidean":
        sample, exist = _sample(K)
        sizes = tl.load(size + sample, mask=exist, other=-1.0)
        moved = tl.zeros([SAMPLE], tl.float64)
        for block in range(column_blocks):
            away = tl.load(apart + block * SAMPLE + tl.arange(0, SAMPLE))
            moved = tl.maximum(moved, away)
        plain, usual = _median(sizes), _median(tl.where(sizes >= 0, moved, -1.0))
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
