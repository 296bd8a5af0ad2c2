"""Which centroids the filter's bound leaves to the rows it could not decide: a second product."""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops import _triton
from clustermim_fast.ops.nearest_centroid.triton_filter import (
    load_columns,
    load_operands,
    load_rows,
    to_frame,
)
from clustermim_fast.ops.nearest_centroid.triton_lists import (
    INVALID,
    MANY,
    OPEN,
    SLOTS,
    Lists,
    append,
)
from clustermim_fast.ops.nearest_centroid.triton_prepare import Codebook
from clustermim_fast.ops.nearest_centroid.triton_rows import RowSource, row_starts
from clustermim_fast.ops.nearest_centroid.triton_sizes import Sizes


@triton.jit
def _candidates_kernel(
    x, packed, bias, frame, scale, counters, open_rows, open_limits, found, slots, many,
    Kp, D, Dp,
    KIND: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    LINE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """found: how many candidates a listed row has; -1 for a row with NaN or Inf."""
    power = tl.load(scale)
    columns = tl.arange(0, BLOCK_K)
    number = tl.load(counters + OPEN)
    for at in range(tl.program_id(0) * BLOCK_N, number, tl.num_programs(0) * BLOCK_N):
        entries = at + tl.arange(0, BLOCK_N)
        exist = entries < number
        rows = tl.load(open_rows + entries, mask=exist, other=0)
        limits = tl.load(open_limits + entries, mask=exist, other=0.0)
        starts = row_starts(x, rows, KIND)
        count = tl.zeros([BLOCK_N], tl.int32)
        finite = tl.full([BLOCK_N], 1, tl.int32)
        for first in range(0, Kp, BLOCK_K):
            scores = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            for begin in range(0, Dp, BLOCK_D):
                if LINE:
                    half = load_operands(x, starts, exist, begin, D, EVEN, BLOCK_D)
                else:
                    values = load_rows(x, starts, exist, begin, D, KIND, WIDE, EVEN, BLOCK_D)
                    if first == 0:
                        finite = tl.minimum(
                            finite, tl.min((tl.abs(values) < float("inf")).to(tl.int32), 1)
                        )
                    values = to_frame(values, frame, power, begin, METRIC, WIDE, BLOCK_D)
                    half = values.to(tl.float16)
                part = load_columns(packed, first + columns, begin, Dp, BLOCK_D)
                scores = tl.dot(half, part, scores)
            addend = tl.load(bias + first + columns)
            scores += addend[None, :]
            possible = (addend > float("-inf"))[None, :] & (exist & (finite != 0))[:, None]
            left = possible & ((scores < limits[:, None]) == 0)  # NaN stays
            lowest = tl.min(tl.where(left, columns[None, :], BLOCK_K), 1)
            while tl.min(lowest, 0) < BLOCK_K:
                hit = lowest < BLOCK_K
                tl.store(
                    slots + entries.to(tl.int64) * SLOTS + count,
                    first + lowest,
                    mask=hit & (count < SLOTS),
                )
                count += hit.to(tl.int32)
                left = left & (columns[None, :] > lowest[:, None]) & (count <= SLOTS)[:, None]
                lowest = tl.min(tl.where(left, columns[None, :], BLOCK_K), 1)
        count = tl.where(finite != 0, count, -1)
        tl.store(found + entries, count, mask=exist)
        overflows = exist & (count > SLOTS)
        tl.store(many + append(counters + MANY, overflows), rows, mask=overflows)
        invalid = tl.sum((exist & (finite == 0)).to(tl.int32), 0)
        if invalid > 0:
            tl.atomic_add(counters + INVALID, invalid, sem="relaxed")


def list_candidates(rows: RowSource, book: Codebook, sizes: Sizes, lists: Lists) -> None:
    """Writes down the candidates of the rows that the filter left open."""
    tile = sizes.candidates
    Kp, Dp = book.packed.shape
    _candidates_kernel[(sizes.programs,)](
        rows.arguments, book.packed, book.bias, book.frame, book.scale, lists.counters,
        lists.open_rows, lists.open_limits, lists.found, lists.slots, lists.many,
        Kp, rows.dim, Dp,
        KIND=rows.kind, METRIC=book.metric, WIDE=rows.wide, EVEN=rows.dim == Dp,
        LINE=book.line is not None,
        BLOCK_N=tile.rows, BLOCK_K=tile.columns, BLOCK_D=tile.values,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        **_triton.all_registers(lists.counters.device),
    )  # fmt: skip
