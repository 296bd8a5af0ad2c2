"""``nearest_centroid`` on Triton: a filter, then ever more exact tiers for the rows it leaves open.

Nothing waits for the device: how many rows a tier gets is known there alone, so that each runs a
fixed number of programs, which share out the rows of a list.
"""

from __future__ import annotations

import torch
import triton

from clustermim_fast.ops import _triton
from clustermim_fast.ops.nearest_centroid import cuda_filter, triton_filter, triton_sizes
from clustermim_fast.ops.nearest_centroid.triton_candidates import list_candidates
from clustermim_fast.ops.nearest_centroid.triton_exact import decide_exactly
from clustermim_fast.ops.nearest_centroid.triton_lists import EXACT, NUM_COUNTERS, Lists
from clustermim_fast.ops.nearest_centroid.triton_prepare import Codebook, prepare
from clustermim_fast.ops.nearest_centroid.triton_rescore import _rescore_kernel
from clustermim_fast.ops.nearest_centroid.triton_rows import RowSource, matrix_rows
from clustermim_fast.ops.nearest_centroid.triton_sweep import _sweep_kernel
from clustermim_fast.ops.nearest_centroid.triton_value import _value_kernel


def nearest_centroid(
    x: torch.Tensor,
    centroids: torch.Tensor,
    metric: str,
    want_distance: bool,
    hopper: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of rows [N, D]: ids int64, distances float64 (empty if not wanted), and the tiers' counts.

    hopper: the filter is the one in CUDA C++. counts: int32 [4] on the device, in the order of
    ``triton_lists.OPEN`` and the names after it.
    """
    rows = matrix_rows(x)
    ids = x.new_empty(rows.num_rows, dtype=torch.int64)
    distance = x.new_empty(rows.num_rows if want_distance else 0, dtype=torch.float64)
    with _triton.launching_on(x):
        counts = assign(rows, centroids, metric, ids, hopper)
        if want_distance:
            store_values(rows, centroids, metric, ids, distance)
    return ids, distance, counts


def assign(
    rows: RowSource,
    centroids: torch.Tensor,
    metric: str,
    ids: torch.Tensor,
    hopper: bool = False,
) -> torch.Tensor:
    """Stores the ids of all rows; returns the tiers' counts."""
    if rows.num_rows == 0 or rows.dim == 0:
        ids.zero_()
        return ids.new_zeros(NUM_COUNTERS, dtype=torch.int32)
    device = _triton.properties(ids.device)
    sizes = triton_sizes.choose(device, rows, centroids.shape[0])
    if hopper:
        sizes = cuda_filter.sizes_for(sizes, rows.dim)
    parts = list(rows.chunks())
    counters = ids.new_empty(len(parts), NUM_COUNTERS, dtype=torch.int32)
    book = prepare(centroids, rows, metric, sizes, counters)
    for own, (first, part) in zip(counters, parts, strict=True):
        lists = Lists.of(own, part.num_rows)
        (cuda_filter if hopper else triton_filter).filter_rows(
            part, book, sizes, lists, ids[first:]
        )
        _decide_open_rows(part, book, sizes, lists, ids[first:])
    return counters[0] if len(parts) == 1 else counters.sum(0)


def _decide_open_rows(
    rows: RowSource,
    book: Codebook,
    sizes: triton_sizes.Sizes,
    lists: Lists,
    ids: torch.Tensor,
) -> None:
    list_candidates(rows, book, sizes, lists)
    x, c, K, D = rows.arguments, book.centroids.arguments, book.centroids.num_rows, rows.dim
    kinds = dict(KIND=rows.kind, C_KIND=book.centroids.kind, METRIC=book.metric)
    programs = sizes.programs
    exact = (lists.counters, lists.exact_rows, lists.exact_upper, lists.exact_slots)
    _rescore_kernel[(programs,)](
        x, c, book.norm, lists.open_rows, lists.found, lists.slots, ids, *exact, D,
        **kinds, BLOCK_N=sizes.rescore.rows, BLOCK_D=sizes.rescore.values,
        num_warps=sizes.rescore.warps, enable_fp_fusion=True, **_triton.all_registers(ids.device),
    )  # fmt: skip
    _sweep_kernel[(programs,)](
        x, c, book.norm, book.alive, lists.many, lists.slots, ids, *exact, K, D,
        **kinds, BLOCK_N=sizes.sweep.rows, BLOCK_K=sizes.sweep.columns, BLOCK_D=sizes.sweep.values,
        num_warps=sizes.sweep.warps, enable_fp_fusion=True, **_triton.all_registers(ids.device),
    )  # fmt: skip
    decide_exactly(
        rows, book.centroids, book.metric, book.norm, book.alive,
        lists.exact_rows, lists.counters[EXACT.value :], lists.exact_slots, lists.exact_upper,
        ids, 4 * programs,  # of one warp each
    )  # fmt: skip


def store_values(
    rows: RowSource,
    centroids: torch.Tensor,
    metric: str,
    ids: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Stores the squared distance (or similarity) of each row and the centroid of its id."""
    c = matrix_rows(centroids)
    if rows.dim == 0:
        values.zero_()
        return
    tile = triton_sizes.VALUE
    for first, part in rows.chunks():
        _value_kernel[(triton.cdiv(part.num_rows, tile.rows),)](
            part.arguments, c.arguments, ids[first:], values[first:], part.num_rows, rows.dim,
            KIND=rows.kind, C_KIND=c.kind, METRIC=metric,
            BLOCK_N=tile.rows, BLOCK_D=tile.values, num_warps=tile.warps,
            enable_fp_fusion=True,
        )  # fmt: skip


def counts_of(tiers: torch.Tensor) -> tuple[int, int, int, int]:
    """The counts of ``_stats.note``; waits for the device."""
    listed, _, exact, invalid = tiers.tolist()
    return 0, listed - exact - invalid, exact, invalid
