"""The exact tier: rows that float64 leaves open, decided in integers (``triton_integers.py``)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_integers import compare_exactly
from clustermim_fast.ops.nearest_centroid.triton_lists import NO_CENTROID, SLOTS
from clustermim_fast.ops.nearest_centroid.triton_rescore import score_bounds
from clustermim_fast.ops.nearest_centroid.triton_rows import RowSource, row_starts
from clustermim_fast.ops.nearest_centroid.triton_sweep import pair_sums

# Limbs that hold a sum of products: 24 bits each, of float32's 601 and float64's 4197, and a carry.
NARROW_LIMBS = 32
WIDE_LIMBS = 256


@triton.jit
def _decide_kernel(
    x, c, norm, alive, exact_rows, number, exact_slots, exact_upper, ids, scratch, K, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr,
    C_WIDE: tl.constexpr, LIMBS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program takes one row at a time. Slots of -1: every centroid is a candidate."""
    scratch += tl.program_id(0).to(tl.int64) * (7 * LIMBS)
    lanes = tl.arange(0, SLOTS)
    one = tl.arange(0, 1)
    for at in range(tl.program_id(0), tl.load(number), tl.num_programs(0)):
        row = tl.load(exact_rows + at)
        listed = tl.load(exact_slots + at * SLOTS + lanes)
        every = tl.min(listed, 0) < 0
        best = tl.full([], NO_CENTROID, tl.int32)
        for first in range(0, tl.where(every, K, SLOTS), SLOTS):
            left = listed
            if every:
                ks = first + lanes
                total, absolute = pair_sums(
                    x, c, row_starts(x, row + one, KIND), one == 0, ks, K, D,
                    KIND, C_KIND, METRIC, 1, SLOTS, 32,
                )  # fmt: skip
                length = total
                if METRIC == "cosine":
                    length = tl.load(norm + ks, mask=ks < K, other=1.0)[None, :]
                lower, _ = score_bounds(total, absolute, length, D, METRIC)
                excluded = tl.max((lower > tl.load(exact_upper + at)).to(tl.int32), 0)
                lives = tl.load(alive + ks, mask=ks < K, other=0) != 0
                left = tl.where(lives & (excluded == 0), ks, NO_CENTROID)
            j = tl.min(left, 0)
            while j < NO_CENTROID:
                nearer = 1
                if best < NO_CENTROID:
                    nearer = compare_exactly(
                        x, c, row, j, best, D, scratch,
                        METRIC, LIMBS, KIND, C_KIND, WIDE, C_WIDE, BLOCK_D,
                    )  # fmt: skip
                if nearer > 0:  # of equal ones the first stays, which has the lowest id
                    best = j
                left = tl.where(left == j, NO_CENTROID, left)
                j = tl.min(left, 0)
        tl.store(ids + row, tl.where(best < NO_CENTROID, best, -1).to(tl.int64))


def decide_exactly(
    rows: RowSource,
    centroids: RowSource,
    metric: str,
    norm: torch.Tensor,
    alive: torch.Tensor,
    exact_rows: torch.Tensor,
    number: torch.Tensor,
    exact_slots: torch.Tensor,
    exact_upper: torch.Tensor,
    ids: torch.Tensor,
    programs: int,
) -> None:
    """Stores the ids of the first ``number[0]`` of ``exact_rows``.

    exact_slots: int32 [.., SLOTS], their candidates (NO_CENTROID: none), or all -1 for every
    centroid that is ``alive`` and has no float64 score above ``exact_upper``.
    """
    limbs = WIDE_LIMBS if rows.wide or centroids.wide else NARROW_LIMBS
    block = min(64 if limbs == WIDE_LIMBS else 128, max(32, triton.next_power_of_2(rows.dim)))
    _decide_kernel[(programs,)](
        rows.arguments, centroids.arguments, norm, alive, exact_rows, number, exact_slots,
        exact_upper, ids, ids.new_empty(programs * 7 * limbs if metric == "cosine" else 0),
        centroids.num_rows, rows.dim,
        KIND=rows.kind, C_KIND=centroids.kind, METRIC=metric, WIDE=rows.wide, C_WIDE=centroids.wide,
        LIMBS=limbs, BLOCK_D=block, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip
