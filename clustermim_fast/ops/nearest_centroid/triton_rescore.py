"""The float64 tier: the candidates of a row by the direct formula, and the value that is returned.

Scores are those of ``docs/certificate.md``, section 6: smaller is better, each with a bound on its
error. A row that they do not decide goes to the exact tier with the candidates that are left.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_lists import (
    EXACT,
    MANY,
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
    underflow = (D + 1.0) * 2.0**-1022
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
def _add_terms(total, absolute, xs, cs, METRIC: tl.constexpr):
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
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr,
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
            xs = load_values(x, places, ds[None, :], inside & exist[:, None], KIND, WIDE)
            places = centroid_starts[:, :, None] + column_places(c, ds, C_KIND)[None, None, :]
            cs = load_values(
                c,
                places,
                ds[None, None, :],
                used[:, :, None] & (ds < D)[None, None, :],
                C_KIND,
                True,
            )
            total, absolute = _add_terms(total, absolute, xs.to(tl.float64)[:, None, :], cs, METRIC)
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


@triton.jit
def pair_sums(
    x, c, starts, exist, ks, K, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr,
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
        xs = load_values(x, places, ds[None, :], inside & exist[:, None], KIND, WIDE)
        places = centroid_starts[:, None] + column_places(c, ds, C_KIND)[None, :]
        cs = load_values(c, places, ds[None, :], inside & (ks < K)[:, None], C_KIND, True)
        total, absolute = _add_terms(
            total, absolute, xs.to(tl.float64)[:, None, :], cs[None, :, :], METRIC
        )
    return total, absolute


@triton.jit
def _sweep_kernel(
    x, c, norm, alive, many, slots, ids, counters, exact_rows, exact_upper, exact_slots, K, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr,
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
            lives = tl.load(alive + ks, mask=ks < K, other=0) != 0
            total, absolute = pair_sums(
                x, c, starts, exist, ks, K, D, KIND, C_KIND, METRIC, WIDE, BLOCK_N, BLOCK_K, BLOCK_D
            )
            length = total
            if METRIC == "cosine":
                length = tl.zeros_like(total) + tl.load(norm + ks, mask=ks < K, other=1.0)[None, :]
            lower, upper = score_bounds(total, absolute, length, D, METRIC)
            least = tl.minimum(least, tl.min(tl.where(lives[None, :], upper, float("inf")), 1))
        count = tl.zeros([BLOCK_N], tl.int32)
        lowest_id = tl.full([BLOCK_N], NO_CENTROID, tl.int32)
        for first in range(0, K, BLOCK_K):
            ks = first + columns
            lives = tl.load(alive + ks, mask=ks < K, other=0) != 0
            total, absolute = pair_sums(
                x, c, starts, exist, ks, K, D, KIND, C_KIND, METRIC, WIDE, BLOCK_N, BLOCK_K, BLOCK_D
            )
            length = total
            if METRIC == "cosine":
                length = tl.zeros_like(total) + tl.load(norm + ks, mask=ks < K, other=1.0)[None, :]
            lower, upper = score_bounds(total, absolute, length, D, METRIC)
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


@triton.jit
def _power_to_one(size):
    """The power of two that brings float64 ``size`` near one, within 2^1000."""
    exponent = ((size.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023
    exponent = tl.minimum(tl.maximum(exponent, -1000), 1000)
    return ((1023 - exponent) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _value_kernel(
    x, c, ids, values, N, D,
    KIND: tl.constexpr, C_KIND: tl.constexpr, METRIC: tl.constexpr, WIDE: tl.constexpr,
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
            places = starts[:, None] + column_places(x, ds, KIND)[None, :]
            xs = load_values(x, places, ds[None, :], inside, KIND, WIDE).to(tl.float64)
            places = centroid_starts[:, None] + column_places(c, ds, C_KIND)[None, :]
            cs = load_values(c, places, ds[None, :], inside, C_KIND, True)
            x_largest = tl.maximum(x_largest, tl.max(tl.abs(xs), 1))
            c_largest = tl.maximum(c_largest, tl.max(tl.abs(cs), 1))
        x_power, c_power = _power_to_one(x_largest), _power_to_one(c_largest)
    total = tl.zeros([BLOCK_N], tl.float64)
    x_square = tl.zeros([BLOCK_N], tl.float64)
    c_square = tl.zeros([BLOCK_N], tl.float64)
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        inside = (ds < D)[None, :] & exist[:, None]
        places = starts[:, None] + column_places(x, ds, KIND)[None, :]
        xs = load_values(x, places, ds[None, :], inside, KIND, WIDE).to(tl.float64)
        places = centroid_starts[:, None] + column_places(c, ds, C_KIND)[None, :]
        cs = load_values(c, places, ds[None, :], inside, C_KIND, True)
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
