"""Sums of the rows of each centroid, in an order that the sizes alone decide.

Rows are taken ``BIN_ROWS`` (about) at a time, sorted by centroid, so that images' lines, which
neighbouring patches share, are still in the cache when the next of them is needed. A program adds
up to ``PART_ROWS`` rows of one centroid; a second kernel adds these parts in their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from clustermim_fast.ops import _triton
from clustermim_fast.ops.nearest_centroid.triton_rows import (
    RowSource,
    column_places,
    load_values,
    matrix_rows,
    row_starts,
)

PART_ROWS = 256
_BLOCK_ROWS = 8

# In [2^24, 2^25) neighbouring float64 are 2^-28 apart, so that adding this rounds to that.
QUANTUM = tl.constexpr(2.0**-28)
OFFSET = tl.constexpr(1.5 * 2.0**24)
ZERO = tl.constexpr(0x4178000000000000)  # the bits of OFFSET


@triton.jit
def added(total, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of [ROWS, COLUMNS] over the rows, by halves: the same on every GPU."""
    LEVELS: tl.constexpr = ROWS.bit_length() - 1
    for level in tl.static_range(LEVELS):
        total = tl.sum(tl.reshape(total, [2, ROWS >> (level + 1), COLUMNS]), 0)
    return tl.reshape(total, [COLUMNS])


@triton.jit
def _parts_kernel(
    x, cs, order, starts, first_parts, owners, weights, parts, weight_parts, costs, N, D, bins, K,
    KIND: tl.constexpr, C_WIDE: tl.constexpr, SUM: tl.constexpr,
    COSTS: tl.constexpr, PART: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """SUM: "plain", "weighted" or "quantised". COSTS: store the squared distances, too."""
    part = tl.program_id(0)
    piece = tl.program_id(1)
    own_bin = tl.load(owners + part)
    if own_bin < bins:
        begin = tl.load(starts + own_bin) + (part - tl.load(first_parts + own_bin)) * PART
        end = tl.minimum(begin + PART, tl.load(starts + own_bin + 1))
        ds = piece * BLOCK_D + tl.arange(0, BLOCK_D)
        real = (ds < D)[None, :]
        columns = column_places(x, ds, KIND)[None, :]
        if COSTS:
            k = own_bin % K
            at = row_starts(cs, k, "matrix") + column_places(cs, ds, "matrix")
            centre = load_values(cs, at, ds, ds < D, "matrix", C_WIDE).to(tl.float64)[None, :]
        total = tl.zeros([BLOCK_N, BLOCK_D], tl.int64 if SUM == "quantised" else tl.float64)
        total_weight = tl.zeros([BLOCK_N, 1], tl.float64)
        for at in range(begin, end, BLOCK_N):
            entries = at + tl.arange(0, BLOCK_N)
            exist = entries < end
            rows = tl.load(order + entries, mask=exist, other=0)
            mask = exist[:, None] & real
            places = row_starts(x, rows, KIND)[:, None] + columns
            values = load_values(x, places, ds[None, :], mask, KIND, True)
            if SUM == "plain":
                total += values
            elif SUM == "weighted":
                weight = tl.load(weights + rows, mask=exist, other=0.0)[:, None]
                total += weight * values
                total_weight += weight
            else:
                total += (values + OFFSET).to(tl.int64, bitcast=True) - ZERO
            if COSTS:
                apart = tl.where(mask, values - centre, 0.0)
                cost = tl.sum(apart * apart, 1)
                tl.store(costs + piece.to(tl.int64) * N + rows, cost, mask=exist)
        sums = added(total, BLOCK_N, BLOCK_D)
        tl.store(parts + part.to(tl.int64) * D + ds, sums, mask=ds < D)
        if SUM == "weighted":
            one = tl.arange(0, 1)
            weight_sum = added(total_weight, BLOCK_N, 1)
            tl.store(weight_parts + part + one, weight_sum, mask=(one + piece) == 0)


@triton.jit
def _add_parts_kernel(
    parts, weight_parts, first_parts, sums, counts, bins, K, D,
    SUM: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds the parts of each centroid to its sum, bin after bin."""
    ks = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    ds = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    real = (ks < K)[:, None] & (ds < D)[None, :]
    places = ks.to(tl.int64)[:, None] * D + ds[None, :]
    total = tl.load(sums + places, mask=real, other=0)
    own_counts = (ks < K) & (ks * 0 + tl.program_id(1) == 0)
    if SUM == "weighted":
        total_weight = tl.load(counts + ks, mask=own_counts, other=0.0)
    for first in range(0, bins, K):
        begin = tl.load(first_parts + first + ks, mask=ks < K, other=0)
        end = tl.load(first_parts + first + ks + 1, mask=ks < K, other=0)
        for step in range(tl.max(end - begin, 0)):
            part = begin + step
            exist = part < end
            at = part.to(tl.int64)[:, None] * D + ds[None, :]
            total += tl.load(parts + at, mask=exist[:, None] & real, other=0)
            if SUM == "weighted":
                total_weight += tl.load(weight_parts + part, mask=exist, other=0.0)
    tl.store(sums + places, total, mask=real)
    if SUM == "weighted":
        tl.store(counts + ks, total_weight, mask=own_counts)


@triton.jit
def _keys_kernel(ids, keys, N, K, bins, BIN: tl.constexpr, BLOCK: tl.constexpr):
    """The bin of each row: its centroid within its BIN rows; ``bins`` for rows without one."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(ids + rows, mask=rows < N, other=-1).to(tl.int32)
    tl.store(keys + rows, tl.where(found < 0, bins, rows // BIN * K + found), mask=rows < N)


@dataclass(frozen=True)
class Totals:
    """What the kernels add to. sums: float64 [K, D], quantised int64. counts: int64 [K], weighted
    float64."""

    sums: torch.Tensor
    counts: torch.Tensor


def add_rows(
    totals: Totals,
    source: RowSource,
    ids: torch.Tensor,
    centroids: torch.Tensor,
    weights: torch.Tensor | None,
    quantised: bool,
    want_costs: bool,
) -> torch.Tensor:
    """Adds the rows to the totals; returns their squared distances, float64 [pieces, N] that add up
    (empty if not wanted; not written for rows of id -1). At most 2^21 rows."""
    n, (k, d) = source.num_rows, centroids.shape
    bin_rows = min(max(triton.next_power_of_2(k * PART_ROWS), 2**14), 2**21)
    bins = triton.cdiv(n, bin_rows) * k
    keys = ids.new_empty(n, dtype=torch.int32)
    _keys_kernel[(triton.cdiv(n, 1024),)](
        ids, keys, n, k, bins, BIN=bin_rows, BLOCK=1024, enable_fp_fusion=False
    )
    keys, order = keys.sort(stable=True)
    most = min(n, n // PART_ROWS + bins)  # parts there can be
    numbers = torch.arange(max(bins + 1, most), dtype=torch.int32, device=ids.device)
    starts = torch.searchsorted(keys, numbers[: bins + 1], out_int32=True)
    sizes = starts.diff()
    first_parts = torch.nn.functional.pad(
        ((sizes + (PART_ROWS - 1)) // PART_ROWS).cumsum(0, dtype=torch.int32), (1, 0)
    )
    owners = torch.searchsorted(first_parts[1:], numbers[:most], right=True, out_int32=True)
    if weights is None:
        totals.counts.add_(sizes.unflatten(0, (-1, k)).sum(0))
    if d == 0:
        return ids.new_zeros((1, n), dtype=torch.float64)
    kind = "quantised" if quantised else "plain" if weights is None else "weighted"
    block_d, pieces = _column_blocks(d)
    block_n = max(_BLOCK_ROWS, (1024 if source.wide else 2048) // block_d)
    cs = matrix_rows(centroids)
    parts = totals.sums.new_empty(most, d)
    weight_parts = ids.new_empty(most if kind == "weighted" else 0, dtype=torch.float64)
    costs = ids.new_empty((pieces, n) if want_costs else 0, dtype=torch.float64)
    _parts_kernel[(most, pieces)](
        source.arguments, cs.arguments, order, starts, first_parts, owners, weights, parts,
        weight_parts, costs, n, d, bins, k,
        KIND=source.kind, C_WIDE=cs.wide, SUM=kind, COSTS=want_costs,
        PART=PART_ROWS, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    _add_parts_kernel[(triton.cdiv(k, 8), triton.cdiv(d, 128))](
        parts, weight_parts, first_parts, totals.sums, totals.counts, bins, k, d,
        SUM=kind, BLOCK_K=8, BLOCK_D=128, num_warps=4, enable_fp_fusion=False,
        **_triton.all_registers(ids.device),
    )  # fmt: skip
    return costs


def _column_blocks(d: int) -> tuple[int, int]:
    """Width and number of the pieces of a row."""
    block = min(triton.next_power_of_2(d), 256 if d % 256 == 0 or d > 1024 else 128)
    return block, triton.cdiv(d, block)
