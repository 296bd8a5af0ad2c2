"""The float64 tier: the candidates of a row by the direct formula.

Scores are those of ``docs/certificate.md``, section 6: smaller is better, each with a bound on its
error. A row that they do not decide goes to the exact tier with the candidates that are left.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_lists import (
    EXACT,
    NO_CENTROID,
    OPEN,
    SLOTS,
    append,
)
from clustermim_fast.ops.nearest_centroid.triton_rows import (
    column_places,
    load_values,
    row_starts,
)

UNIT64 = tl.constexpr(2.0**-53)
# Between these |c| neither its square nor a quotient by it loses accuracy.
SAFE_LOW = tl.constexpr(2.0**-400)
SAFE_HIGH = tl.constexpr(2.0**400)


@triton.jit
def score_bounds(total, absolute, norm, D, METRIC: tl.constexpr):
    """Lower and upper bound of scores from sums over D terms; unusable ones are infinite."""
    relative = 1.01 * (D + 8.0) * UNIT64
    underflow = (D + 1.0) * tl.full([], 2.0**-1022, tl.float64)  # float32 would make it zero
    if METRIC == "euclidean":
        score = total
        bound = relative * total + underflow
    else:
        score = -total
        bound = relative * absolute + underflow
    if METRIC == "cosine":
        safe = (norm > SAFE_LOW) & (norm < SAFE_HIGH)
        inverse = 1.0 / tl.where(safe, norm, 1.0)
        score = tl.where(safe, score * inverse, 0.0)
        # `relative` has room for the roundings of |c|, of its inverse and of this product.
        bound = 1.01 * (bound * inverse + relative * tl.abs(score)) + 2.0**-1022
        bound = tl.where(safe, bound, tl.where(norm == 0, 0.0, float("inf")))
    lower, upper = score - bound, score + bound
    infinity = float("inf")
    return tl.where(lower == lower, lower, -infinity), tl.where(upper == upper, upper, infinity)


@triton.jit
def add_terms(total, absolute, xs, cs, METRIC: tl.constexpr):
    """Adds the sums over the last axis of what values of rows and centroids contribute."""
    if METRIC == "euclidean":
        apart = xs - cs
        total += tl.sum(apart * apart, 2)
    else:
        terms = xs * cs
        total += tl.sum(terms, 2)
        absolute += tl.sum(tl.abs(terms), 2)
    return total, absolute


@triton.jit
def _settle(
    rows, exist, lower, upper, candidates, ids, counters, exact_rows, exact_upper, exact_slots, slot
):  # fmt: skip
    """Stores the ids of rows with one candidate left; the others go to the exact tier.

    lower, upper [rows, SLOTS]; candidates NO_CENTROID where there is none.
    """
    is_real = candidates < NO_CENTROID
    least = tl.min(tl.where(is_real, upper, float("inf")), 1)
    left = is_real & ((lower > least[:, None]) == 0)
    number = tl.sum(left.to(tl.int32), 1)
    candidates = tl.where(left, candidates, NO_CENTROID)
    winner = tl.min(candidates, 1)
    tl.store(ids + rows, tl.where(number == 1, winner, -1).to(tl.int64), mask=exist)
    is_open = exist & (number > 1)
    at = append(counters + EXACT, is_open)
    tl.store(exact_rows + at, rows, mask=is_open)
    tl.store(exact_upper + at, least, mask=is_open)
    tl.store(
        exact_slots + at.to(tl.int64)[:, None] * SLOTS + slot[None, :],
        candidates,
        mask=is_open[:, None],
    )


@triton.jit
def _rescore_kernel(
    x, c, norm, open_rows, found, slots, ids, counters, exact_rows, exact_upper, exact_slots, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Listed rows whose candidates are written down."""
    slot = tl.arange(0, SLOTS)
    number = tl.load(counters + OPEN)
    for at in range(tl.program_id(0) * BLOCK_N, number, tl.num_programs(0) * BLOCK_N):
        entries = at + tl.arange(0, BLOCK_N)
        count = tl.load(found + entries, mask=entries < number, other=-1)
        exist = (count >= 0) & (count <= SLOTS)
        rows = tl.load(open_rows + entries, mask=exist, other=0)
        used = exist[:, None] & (slot[None, :] < count[:, None])
        candidates = tl.load(
            slots + entries.to(tl.int64)[:, None] * SLOTS + slot[None, :],
            mask=used,
            other=NO_CENTROID,
        )
        starts = row_starts(x, rows, KIND)
        centroid_starts = row_starts(c, tl.where(used, candidates, 0), C_KIND)
        total = tl.zeros([BLOCK_N, SLOTS], tl.float64)
        absolute = tl.zeros([BLOCK_N, SLOTS], tl.float64)
        for begin in range(0, D, BLOCK_D):
            ds = begin + tl.arange(0, BLOCK_D)
            inside = (ds < D)[None, :]
            places = starts[:, None] + column_places(x, ds, KIND)[None, :]
            xs = load_values(x, places, ds[None, :], inside & exist[:, None], KIND, True)
            places = centroid_starts[:, :, None] + column_places(c, ds, C_KIND)[None, None, :]
            cs = load_values(
                c,
                places,
                ds[None, None, :],
                used[:, :, None] & (ds < D)[None, None, :],
                C_KIND,
                True,
            )
            total, absolute = add_terms(total, absolute, xs[:, None, :], cs, METRIC)
        length = total
        if METRIC == "cosine":
            length = tl.load(norm + candidates, mask=used, other=1.0)
        lower, upper = score_bounds(total, absolute, length, D, METRIC)
        _settle(
            rows,
            exist,
            lower,
            upper,
            candidates,
            ids,
            counters,
            exact_rows,
            exact_upper,
            exact_slots,
            slot,
        )
