"""The filter: 16-bit scores of every centroid, which decide most rows by a bound on their error.

Bounds: ``docs/certificate.md``, section 8.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clustermim_fast.ops import _triton
from clustermim_fast.ops.nearest_centroid.triton_lists import (
    C_ALL,
    C_NEAR,
    FAR,
    OPEN,
    R_ALL,
    R_NEAR,
    Lists,
    append,
)
from clustermim_fast.ops.nearest_centroid.triton_pixels import pixel_operands
from clustermim_fast.ops.nearest_centroid.triton_prepare import Codebook
from clustermim_fast.ops.nearest_centroid.triton_rows import (
    RowSource,
    column_places,
    load_values,
    row_starts,
)
from clustermim_fast.ops.nearest_centroid.triton_sizes import Sizes

SAME = tl.constexpr(16)  # columns of the product that sums squares of pixels
ROOM = tl.constexpr(1 + 2.0**-12)  # rounds up sums of a few positive float32 terms


@triton.jit
def load_rows(
    x, starts, exist, begin, D,
    KIND: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    ds = begin + tl.arange(0, BLOCK_D)
    mask = exist[:, None] if EVEN else exist[:, None] & (ds < D)[None, :]
    places = starts[:, None] + column_places(x, ds, KIND)[None, :]
    return load_values(x, places, ds[None, :], mask, KIND, WIDE)


@triton.jit
def load_operands(x, starts, exist, begin, D, EVEN: tl.constexpr, BLOCK_D: tl.constexpr):
    """Of images whose values lie on a line: pixels as float16."""
    ds = begin + tl.arange(0, BLOCK_D)
    mask = exist[:, None] if EVEN else exist[:, None] & (ds < D)[None, :]
    return pixel_operands(x[0], starts[:, None] + column_places(x, ds, "images")[None, :], mask)


@triton.jit
def to_frame(
    values, frame, scale, begin, METRIC: tl.constexpr, WIDE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """x' = x s - m, in the values' own type."""
    values = values * (scale if WIDE else scale.to(tl.float32))
    if METRIC == "euclidean":
        middle = tl.load(frame + begin + tl.arange(0, BLOCK_D))
        values -= middle.to(values.dtype)[None, :]
    return values


@triton.jit
def load_columns(packed, ks, begin, Dp, BLOCK_D: tl.constexpr):
    """[BLOCK_D, columns] of the packed centroids."""
    ds = begin + tl.arange(0, BLOCK_D)
    return tl.trans(tl.load(packed + ks.to(tl.int64)[:, None] * Dp + ds[None, :]))


@triton.jit
def limit_of(best, length, moved, factor, accumulation, R, C, METRIC: tl.constexpr):
    """The lowest score that a row's nearest centroid can have, by (15), and an upper bound on the
    row's distance from the centroid of its best score."""
    eps = accumulation * (length * C)
    if METRIC == "euclidean":
        eps += 2.0**-22 * C * C
        square = length * length * factor - 2 * best + 4 * eps
        distance = tl.sqrt(tl.maximum(square, 0.0))
        S = moved + R
        margin = 2 * (eps + S * (distance + S))
        nearest = (distance + S) * ROOM
    else:
        margin = 2 * (eps + length * R + moved * (C + R))
        nearest = margin
    return best - margin * ROOM, nearest


@triton.jit
def lengths(squares, rests, factor, tiny):
    """Upper bounds of |xr| and of |x' - xr| from sums of squares: (12)."""
    length = tl.sqrt(squares * factor)
    return length, tl.sqrt(rests * factor) + 2.0**-23 * length + tiny


@triton.jit
def round_rows(
    x, starts, exist, begin, D, frame, power, squares, rests,
    KIND: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    LINE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows' operands as float16; |xr|^2 and what rounding moved are added up."""
    if LINE:
        half = load_operands(x, starts, exist, begin, D, EVEN, BLOCK_D)
        ds = begin + tl.arange(0, BLOCK_D)
        weights = tl.load(frame + ds[:, None] + tl.zeros([1, SAME], tl.int32))
        squares = tl.dot(half * half, weights, squares)
    else:
        values = load_rows(x, starts, exist, begin, D, KIND, WIDE, EVEN, BLOCK_D)
        values = to_frame(values, frame, power, begin, METRIC, WIDE, BLOCK_D)
        half = values.to(tl.float16)
        kept = half.to(tl.float32)
        rest = (values - half.to(values.dtype)).to(tl.float32)
        squares += tl.sum(kept * kept, 1)
        rests += tl.sum(rest * rest, 1)
    return half, squares, rests


@triton.jit
def _decide(
    best, second, winner, squares, rests, near, facts, ids, counters, open_rows, open_limits,
    rows, exist, accumulation, factor, tiny, METRIC: tl.constexpr,
):  # fmt: skip
    """Stores the ids of the rows whose second best score the bound excludes, lists the others."""
    length, moved = lengths(squares, rests, factor, tiny)
    R = tl.load(facts + R_ALL).to(tl.float32, bitcast=True)
    C = tl.load(facts + C_ALL).to(tl.float32, bitcast=True)
    limit, nearest = limit_of(best, length, moved, factor, accumulation, R, C, METRIC)
    if METRIC == "euclidean":
        R = tl.load(facts + R_NEAR).to(tl.float32, bitcast=True)
        C = tl.load(facts + C_NEAR).to(tl.float32, bitcast=True)
        far = tl.load(facts + FAR).to(tl.float32, bitcast=True)
        tight, nearest = limit_of(best, length, moved, factor, accumulation, R, C, METRIC)
        none_far = (tl.load(near + winner) != 0) & ((length + moved + nearest) * ROOM < far)
        limit = tl.where(none_far & (tight > limit), tight, limit)
    decided = second < limit  # false for NaN
    tl.store(ids + rows, tl.where(decided, winner, -1).to(tl.int64), mask=exist)
    is_open = exist & (decided == 0)
    at = append(counters + OPEN, is_open)
    tl.store(open_rows + at, rows, mask=is_open)
    tl.store(open_limits + at, limit, mask=is_open)


@triton.jit
def _two_best(best, second, block, places, BLOCK_K: tl.constexpr):
    """Of rows the second best score, and the best column.

    best: the largest score, in block `block`; second: the largest of the other blocks; places: of
    each column of a block the largest score in any. A second best column is in another block, or
    at another place.
    """
    columns = tl.arange(0, BLOCK_K)
    place = tl.min(tl.where(places == best[:, None], columns[None, :], BLOCK_K - 1), 1)
    others = tl.where(columns[None, :] == place[:, None], float("-inf"), places)
    return tl.maximum(second, tl.max(others, 1)), block + place


@triton.jit
def _filter_kernel(
    x, scratch, packed, bias, near, frame, scale, facts, ids, counters, open_rows, open_limits,
    N, Kp, D, Dp, accumulation, factor, tiny, rho_square,
    KIND: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    LINE: tl.constexpr, ROUNDED: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Each row is read and rounded once. ROUNDED says where it then is for further blocks of
    columns: "registers" (STEPS tiles), "scratch" (which stays in L2), or "" (there are none)."""
    power = tl.load(scale)
    columns = tl.arange(0, BLOCK_K)
    lanes = tl.arange(0, BLOCK_N)
    scratch += tl.program_id(0).to(tl.int64) * BLOCK_N * Dp
    for tile in range(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        rows = tile * BLOCK_N + lanes
        exist = rows < N
        starts = row_starts(x, rows, KIND)
        squares = tl.zeros([BLOCK_N, SAME] if LINE else [BLOCK_N], tl.float32)
        rests = tl.zeros([BLOCK_N], tl.float32) + rho_square
        best = tl.full([BLOCK_N], float("-inf"), tl.float32)
        second = best
        block = tl.zeros([BLOCK_N], tl.int32)
        places = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        halves = ()
        if ROUNDED == "registers":
            for step in tl.static_range(STEPS):
                half, squares, rests = round_rows(
                    x, starts, exist, step * BLOCK_D, D, frame, power, squares, rests,
                    KIND, METRIC, WIDE, EVEN, LINE, BLOCK_D,
                )  # fmt: skip
                halves = halves + (half,)  # type: ignore[assignment]
        else:
            for begin in range(0, Dp, BLOCK_D):
                half, squares, rests = round_rows(
                    x, starts, exist, begin, D, frame, power, squares, rests,
                    KIND, METRIC, WIDE, EVEN, LINE, BLOCK_D,
                )  # fmt: skip
                if ROUNDED == "scratch":
                    ds = begin + tl.arange(0, BLOCK_D)
                    tl.store(scratch + lanes[:, None] * Dp + ds[None, :], half)
                else:
                    part = load_columns(packed, columns, begin, Dp, BLOCK_D)
                    places = tl.dot(half, part, places)
        if LINE:
            squares = tl.max(squares, 1)  # a row's are equal
        if ROUNDED == "":
            places += tl.load(bias + columns)[None, :]
            best = tl.max(places, 1)
        else:
            tl.debug_barrier()  # other threads' values are read from here on
            places += float("-inf")
            for first in range(0, Kp, BLOCK_K):
                scores = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
                if ROUNDED == "registers":
                    for step in tl.static_range(STEPS):
                        part = load_columns(packed, first + columns, step * BLOCK_D, Dp, BLOCK_D)
                        scores = tl.dot(halves[step], part, scores)
                else:
                    for begin in range(0, Dp, BLOCK_D):
                        ds = begin + tl.arange(0, BLOCK_D)
                        half = tl.load(scratch + lanes[:, None] * Dp + ds[None, :])
                        part = load_columns(packed, first + columns, begin, Dp, BLOCK_D)
                        scores = tl.dot(half, part, scores)
                scores += tl.load(bias + first + columns)[None, :]
                largest = tl.max(scores, 1)
                block = tl.where(largest > best, first, block)
                second = tl.maximum(second, tl.minimum(best, largest))
                best = tl.maximum(best, largest)
                places = tl.maximum(places, scores)
            tl.debug_barrier()  # before the next rows overwrite scratch
        second, winner = _two_best(best, second, block, places, BLOCK_K)
        _decide(
            best, second, winner, squares, rests, near, facts, ids, counters, open_rows,
            open_limits, rows, exist, accumulation, factor, tiny, METRIC,
        )  # fmt: skip


def filter_rows(
    rows: RowSource, book: Codebook, sizes: Sizes, lists: Lists, ids: torch.Tensor
) -> None:
    """Stores the ids that the filter decides, lists the other rows."""
    tile = sizes.filter
    Kp, Dp = book.packed.shape
    steps = Dp // tile.values
    num_tiles = triton.cdiv(rows.num_rows, tile.rows)
    rounded = "" if Kp == tile.columns else "registers" if sizes.narrow else "scratch"
    programs, scratch = num_tiles, book.packed
    if rounded == "scratch":
        programs = min(num_tiles, sizes.filter_programs)
        scratch = book.packed.new_empty(programs * tile.rows * Dp)
    unit = 2.0**-24
    product = sizes.accumulation * (Dp + 16) * unit
    summed = 2.0**-10 + 1.2 * product if book.line else 2.02 * (tile.values + steps + 16) * unit
    _filter_kernel[(programs,)](
        rows.arguments, scratch, book.packed, book.bias, book.near, book.frame, book.scale,
        book.facts, ids, lists.counters, lists.open_rows, lists.open_limits,
        rows.num_rows, Kp, rows.dim, Dp, product + 2 * unit, 1 + summed, rows.dim**0.5 * 2.0**-60,
        book.line.rho_square if book.line else 0.0,
        KIND=rows.kind, METRIC=book.metric, WIDE=rows.wide, EVEN=rows.dim == Dp,
        LINE=book.line is not None,
        ROUNDED=rounded, STEPS=steps if rounded == "registers" else 0,
        BLOCK_N=tile.rows, BLOCK_K=tile.columns, BLOCK_D=tile.values,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        **_triton.all_registers(ids.device),
    )  # fmt: skip
