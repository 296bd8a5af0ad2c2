"""The value that is returned with an id: from the row and its winner, directly, in float64."""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_rows import (
    column_places,
    load_values,
    row_starts,
)


@triton.jit
def _power_to_one(size):
    """The power of two that brings float64 ``size`` near one, within 2^1000."""
    exponent = ((size.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023
    exponent = tl.minimum(tl.maximum(exponent, -1000), 1000)
    return ((1023 - exponent) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _columns(rows, starts, ds, inside, KIND: tl.constexpr):
    """Values ``ds`` of the rows that start there, as float64."""
    places = starts[:, None] + column_places(rows, ds, KIND)[None, :]
    return load_values(rows, places, ds[None, :], inside, KIND, True)


@triton.jit
def _value_kernel(
    x, c, ids, values, N, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Squared distance or similarity of rows and their winners; NaN where there is none."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    winner = tl.load(ids + rows, mask=rows < N, other=-1)
    exist = winner >= 0
    starts = row_starts(x, rows, KIND)
    centroid_starts = row_starts(c, tl.maximum(winner, 0), C_KIND)
    x_power = tl.full([BLOCK_N], 1.0, tl.float64)
    c_power = tl.full([BLOCK_N], 1.0, tl.float64)
    if METRIC == "cosine":
        x_largest = tl.zeros([BLOCK_N], tl.float64)
        c_largest = tl.zeros([BLOCK_N], tl.float64)
        for begin in range(0, D, BLOCK_D):
            ds = begin + tl.arange(0, BLOCK_D)
            inside = (ds < D)[None, :] & exist[:, None]
            xs = _columns(x, starts, ds, inside, KIND)
            cs = _columns(c, centroid_starts, ds, inside, C_KIND)
            x_largest = tl.maximum(x_largest, tl.max(tl.abs(xs), 1))
            c_largest = tl.maximum(c_largest, tl.max(tl.abs(cs), 1))
        x_power, c_power = _power_to_one(x_largest), _power_to_one(c_largest)
    total = tl.zeros([BLOCK_N], tl.float64)
    x_square = tl.zeros([BLOCK_N], tl.float64)
    c_square = tl.zeros([BLOCK_N], tl.float64)
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        inside = (ds < D)[None, :] & exist[:, None]
        xs = _columns(x, starts, ds, inside, KIND)
        cs = _columns(c, centroid_starts, ds, inside, C_KIND)
        if METRIC == "euclidean":
            total += tl.sum((xs - cs) * (xs - cs), 1)
        else:
            xs, cs = xs * x_power[:, None], cs * c_power[:, None]
            total += tl.sum(xs * cs, 1)
            if METRIC == "cosine":
                x_square += tl.sum(xs * xs, 1)
                c_square += tl.sum(cs * cs, 1)
    if METRIC == "cosine":
        lengths = tl.sqrt(x_square) * tl.sqrt(c_square)
        total = tl.where(lengths > 0, total / tl.where(lengths > 0, lengths, 1.0), 0.0)
    tl.store(values + rows, tl.where(exist, total, float("nan")), mask=rows < N)
