"""The float64 tier of rows with more candidates than slots: scores of every centroid."""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_lists import (
    EXACT,
    MANY,
    NO_CENTROID,
    SLOTS,
    append,
)
from clustermim_fast.ops.nearest_centroid.triton_rescore import add_terms, score_bounds
from clustermim_fast.ops.nearest_centroid.triton_rows import (
    column_places,
    load_values,
    row_starts,
)


@triton.jit
def pair_sums(
    x, c, starts, exist, ks, K, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The sums of a block of rows and one of centroids."""
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float64)
    absolute = tl.zeros([BLOCK_N, BLOCK_K], tl.float64)
    centroid_starts = row_starts(c, ks, C_KIND)
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        inside = (ds < D)[None, :]
        places = starts[:, None] + column_places(x, ds, KIND)[None, :]
        xs = load_values(x, places, ds[None, :], inside & exist[:, None], KIND, True)
        places = centroid_starts[:, None] + column_places(c, ds, C_KIND)[None, :]
        cs = load_values(c, places, ds[None, :], inside & (ks < K)[:, None], C_KIND, True)
        total, absolute = add_terms(total, absolute, xs[:, None, :], cs[None, :, :], METRIC)
    return total, absolute


@triton.jit
def pair_bounds(
    x, c, norm, alive, starts, exist, ks, K, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Which centroids of a block may win, and the bounds of their scores."""
    lives = tl.load(alive + ks, mask=ks < K, other=0) != 0
    total, absolute = pair_sums(
        x, c, starts, exist, ks, K, D, KIND, C_KIND, METRIC, BLOCK_N, BLOCK_K, BLOCK_D
    )
    length = total
    if METRIC == "cosine":
        length = tl.zeros_like(total) + tl.load(norm + ks, mask=ks < K, other=1.0)[None, :]
    lower, upper = score_bounds(total, absolute, length, D, METRIC)
    return lives, lower, upper


@triton.jit
def _sweep_kernel(
    x, c, norm, alive, many, slots, ids, counters, exact_rows, exact_upper, exact_slots, K, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows with more candidates than slots: all centroids, for the least upper bound, and again."""
    slot = tl.arange(0, SLOTS)
    columns = tl.arange(0, BLOCK_K)
    number = tl.load(counters + MANY)
    for at in range(tl.program_id(0) * BLOCK_N, number, tl.num_programs(0) * BLOCK_N):
        entries = at + tl.arange(0, BLOCK_N)
        exist = entries < number
        rows = tl.load(many + entries, mask=exist, other=0)
        starts = row_starts(x, rows, KIND)
        least = tl.full([BLOCK_N], float("inf"), tl.float64)
        for first in range(0, K, BLOCK_K):
            ks = first + columns
            lives, _, upper = pair_bounds(
                x, c, norm, alive, starts, exist, ks, K, D,
                KIND, C_KIND, METRIC, BLOCK_N, BLOCK_K, BLOCK_D,
            )  # fmt: skip
            least = tl.minimum(least, tl.min(tl.where(lives[None, :], upper, float("inf")), 1))
        count = tl.zeros([BLOCK_N], tl.int32)
        lowest_id = tl.full([BLOCK_N], NO_CENTROID, tl.int32)
        for first in range(0, K, BLOCK_K):
            ks = first + columns
            lives, lower, upper = pair_bounds(
                x, c, norm, alive, starts, exist, ks, K, D,
                KIND, C_KIND, METRIC, BLOCK_N, BLOCK_K, BLOCK_D,
            )  # fmt: skip
            left = (lives[None, :] & exist[:, None]) & ((lower > least[:, None]) == 0)
            lowest = tl.min(tl.where(left, ks[None, :], NO_CENTROID), 1)
            lowest_id = tl.minimum(lowest_id, lowest)
            while tl.min(lowest, 0) < NO_CENTROID:
                hit = lowest < NO_CENTROID
                tl.store(
                    slots + entries.to(tl.int64) * SLOTS + count, lowest, mask=hit & (count < SLOTS)
                )
                count += hit.to(tl.int32)
                left = left & (ks[None, :] > lowest[:, None]) & (count <= SLOTS)[:, None]
                lowest = tl.min(tl.where(left, ks[None, :], NO_CENTROID), 1)
        tl.debug_barrier()  # the slots that other threads stored are read
        used = exist[:, None] & (slot[None, :] < count[:, None])
        candidates = tl.load(
            slots + entries.to(tl.int64)[:, None] * SLOTS + slot[None, :],
            mask=used,
            other=NO_CENTROID,
        )
        candidates = tl.where((count > SLOTS)[:, None], -1, candidates)
        tl.store(ids + rows, tl.where(count == 1, lowest_id, -1).to(tl.int64), mask=exist)
        is_open = exist & (count > 1)
        to = append(counters + EXACT, is_open)
        tl.store(exact_rows + to, rows, mask=is_open)
        tl.store(exact_upper + to, least, mask=is_open)
        tl.store(
            exact_slots + to.to(tl.int64)[:, None] * SLOTS + slot[None, :],
            candidates,
            mask=is_open[:, None],
        )
