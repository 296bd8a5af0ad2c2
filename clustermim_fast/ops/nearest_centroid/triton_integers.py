"""Comparisons in real arithmetic, by integers: which of two centroids is nearer to a row.

Values are integers times powers of two, and so are their products. A sum of products is formed from
its low end to its high end, some bits at a time: of each product the bits of that window are added
as an int64, which rounds nothing, and what passes the window is carried to the next. The last carry
has the sum's sign; the sum is zero if that and every window are. Integers alone are computed with:
no contraction or reordering of floating-point operations matters.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_rows import (
    column_places,
    load_values,
    row_starts,
)

# Windows of sums: D terms, each at most 12 pieces (four products of three parts) below 2^40, and a
# carry are below 2^63 for D <= 2^19.
SUM_BITS = tl.constexpr(40)
SUM_MASK = tl.constexpr(2**40 - 1)
# Windows that are limbs of a number: up to 256 products of two are summed. What passes a sum's last
# window is at most D.
LIMB_BITS = tl.constexpr(24)
LIMB_MASK = tl.constexpr(2**24 - 1)


@triton.jit
def _integers(value, NARROW: tl.constexpr):
    """Finite values as m 2^e: m below 2^53 (2^24 where all are float32's), e from 1."""
    bits = value.to(tl.int64, bitcast=True)
    field = ((bits >> 52) & 0x7FF).to(tl.int32)
    fraction = bits & 0xFFFFFFFFFFFFF
    m = tl.where(field == 0, fraction, fraction | 0x10000000000000)
    if NARROW:
        m = m >> 29  # zeros: float32's subnormals are normal here
    return tl.where(bits < 0, -m, m), tl.maximum(field, 1)


@triton.jit
def _window(integer, shift, MASK: tl.constexpr):
    """The bits of integer 2^shift that are in MASK; integer >= 0."""
    up = integer << tl.minimum(tl.maximum(shift, 0), 63).to(tl.int64)
    down = integer >> tl.minimum(tl.maximum(-shift, 0), 63).to(tl.int64)
    return tl.where(shift > 0, up, down) & MASK


@triton.jit
def _product(a, a_exponent, b, b_exponent, start, MASK: tl.constexpr, NARROW: tl.constexpr):
    """What a b has in the window from 2^start up, with the sign of a b."""
    shift = a_exponent + b_exponent - start
    x, y = tl.abs(a), tl.abs(b)
    if NARROW:
        piece = _window(x * y, shift, MASK)
    else:
        x_high, x_low, y_high, y_low = x >> 27, x & 0x7FFFFFF, y >> 27, y & 0x7FFFFFF
        piece = _window(x_low * y_low, shift, MASK)
        piece += _window(x_low * y_high + x_high * y_low, shift + 27, MASK)
        piece += _window(x_high * y_high, shift + 54, MASK)
    return tl.where((a ^ b) < 0, -piece, piece)


@triton.jit
def _load(source, row, ds, D, KIND: tl.constexpr, NARROW: tl.constexpr):
    places = row_starts(source, row, KIND) + column_places(source, ds, KIND)
    return _integers(load_values(source, places, ds, ds < D, KIND, True), NARROW)


@triton.jit
def _windows(
    x, c, row, j, b, D, BITS: tl.constexpr,
    KIND: tl.constexpr, C_KIND: tl.constexpr, WIDE: tl.constexpr, C_WIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The exponent where the first window of the sums begins; how many hold every product."""
    NARROW: tl.constexpr = not (WIDE or C_WIDE)
    lowest = tl.full([BLOCK_D], 4096, tl.int32)
    highest = tl.zeros([BLOCK_D], tl.int32)
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        value, exponent = _load(x, row, ds, D, KIND, NARROW)
        lowest = tl.minimum(lowest, tl.where(value == 0, 4096, exponent))
        highest = tl.maximum(highest, tl.where(value == 0, 0, exponent))
        value, exponent = _load(c, j, ds, D, C_KIND, NARROW)
        lowest = tl.minimum(lowest, tl.where(value == 0, 4096, exponent))
        highest = tl.maximum(highest, tl.where(value == 0, 0, exponent))
        value, exponent = _load(c, b, ds, D, C_KIND, NARROW)
        lowest = tl.minimum(lowest, tl.where(value == 0, 4096, exponent))
        highest = tl.maximum(highest, tl.where(value == 0, 0, exponent))
    start = 2 * tl.min(lowest, 0)
    length: tl.constexpr = 49 if NARROW else 107  # bits of a doubled product
    end = 2 * tl.max(highest, 0) + length
    return start, (tl.maximum(end - start, 0) + BITS - 1) // BITS


@triton.jit
def _sign(carry, rest):
    """The sign of a sum from what passes its last window and the bits of all windows together."""
    return tl.where(carry < 0, -1, tl.where((carry | rest) == 0, 0, 1))


@triton.jit
def _compare_sums(
    x, c, row, j, b, D, EUCLIDEAN: tl.constexpr,
    KIND: tl.constexpr, C_KIND: tl.constexpr, WIDE: tl.constexpr, C_WIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The sign of c_b^2 - c_j^2 + 2 x c_j - 2 x c_b, which is |x - c_b|^2 - |x - c_j|^2, or of
    x c_j - x c_b."""
    NARROW: tl.constexpr = not (WIDE or C_WIDE)
    start, count = _windows(x, c, row, j, b, D, SUM_BITS, KIND, C_KIND, WIDE, C_WIDE, BLOCK_D)
    carry = tl.zeros([], tl.int64)
    rest = tl.zeros([], tl.int64)
    for _ in range(count):
        total = tl.zeros([BLOCK_D], tl.int64)
        for begin in range(0, D, BLOCK_D):
            ds = begin + tl.arange(0, BLOCK_D)
            xi, xe = _load(x, row, ds, D, KIND, NARROW)
            ji, je = _load(c, j, ds, D, C_KIND, NARROW)
            bi, be = _load(c, b, ds, D, C_KIND, NARROW)
            at = start
            if EUCLIDEAN:
                total += _product(bi, be, bi, be, start, SUM_MASK, NARROW)
                total -= _product(ji, je, ji, je, start, SUM_MASK, NARROW)
                at = start - 1  # twice the product
            total += _product(xi, xe, ji, je, at, SUM_MASK, NARROW)
            total -= _product(xi, xe, bi, be, at, SUM_MASK, NARROW)
        carry += tl.sum(total, 0)
        rest |= carry & SUM_MASK
        carry >>= SUM_BITS
        start += SUM_BITS
    return _sign(carry, rest)


@triton.jit
def _convolution(a, a_limbs, b, b_limbs, i, LIMBS: tl.constexpr):
    """The products of limbs of a and b that belong to limb i of a b, summed; a_limbs <= LIMBS."""
    lanes = tl.arange(0, LIMBS)
    inside = (lanes < a_limbs) & (i - lanes >= 0) & (i - lanes < b_limbs)
    left = tl.load(a + lanes, mask=inside, other=0)
    right = tl.load(b + (i - lanes), mask=inside, other=0)
    return tl.sum(left * right, 0)


@triton.jit
def _store_numbers(
    x, c, row, j, D, start, count, norm, square, dot, LIMBS: tl.constexpr,
    KIND: tl.constexpr, C_KIND: tl.constexpr, WIDE: tl.constexpr, C_WIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Stores |c_j|^2 in count + 1 limbs, x c_j likewise (for its own use), and its square in
    2 count + 2; all limbs but the last are in [0, 2^LIMB_BITS). Returns the sign of x c_j.
    """
    NARROW: tl.constexpr = not (WIDE or C_WIDE)
    norm_carry = tl.zeros([], tl.int64)
    carry = tl.zeros([], tl.int64)
    rest = tl.zeros([], tl.int64)
    for i in range(count):
        norm_total = tl.zeros([BLOCK_D], tl.int64)
        total = tl.zeros([BLOCK_D], tl.int64)
        for begin in range(0, D, BLOCK_D):
            ds = begin + tl.arange(0, BLOCK_D)
            xi, xe = _load(x, row, ds, D, KIND, NARROW)
            ji, je = _load(c, j, ds, D, C_KIND, NARROW)
            norm_total += _product(ji, je, ji, je, start, LIMB_MASK, NARROW)
            total += _product(xi, xe, ji, je, start, LIMB_MASK, NARROW)
        norm_carry += tl.sum(norm_total, 0)
        carry += tl.sum(total, 0)
        rest |= carry & LIMB_MASK
        tl.store(norm + i, norm_carry & LIMB_MASK)
        tl.store(dot + i, carry & LIMB_MASK)
        norm_carry >>= LIMB_BITS
        carry >>= LIMB_BITS
        start += LIMB_BITS
    tl.store(norm + count, norm_carry)
    tl.store(dot + count, carry)
    sign = _sign(carry, rest)
    tl.debug_barrier()  # other threads read what one stored
    carry = tl.zeros([], tl.int64)
    for i in range(2 * count + 1):
        carry += _convolution(dot, count + 1, dot, count + 1, i, LIMBS)
        tl.store(square + i, carry & LIMB_MASK)
        carry >>= LIMB_BITS
    tl.store(square + 2 * count + 1, carry)
    tl.debug_barrier()  # dot may be overwritten, the others be read
    return sign


@triton.jit
def _compare_cosines(
    x, c, row, j, b, D, scratch, LIMBS: tl.constexpr,
    KIND: tl.constexpr, C_KIND: tl.constexpr, WIDE: tl.constexpr, C_WIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The sign of cos(x, c_j) - cos(x, c_b), a zero vector's being 0: of the signs of both,
    then of (x c_j)^2 |c_b|^2 - (x c_b)^2 |c_j|^2. scratch: 7 LIMBS numbers of this program.
    """
    start, count = _windows(x, c, row, j, b, D, LIMB_BITS, KIND, C_KIND, WIDE, C_WIDE, BLOCK_D)
    j_norm, j_square = scratch, scratch + LIMBS
    b_norm, b_square, dot = scratch + 3 * LIMBS, scratch + 4 * LIMBS, scratch + 6 * LIMBS
    j_sign = _store_numbers(
        x, c, row, j, D, start, count, j_norm, j_square, dot,
        LIMBS, KIND, C_KIND, WIDE, C_WIDE, BLOCK_D,
    )  # fmt: skip
    b_sign = _store_numbers(
        x, c, row, b, D, start, count, b_norm, b_square, dot,
        LIMBS, KIND, C_KIND, WIDE, C_WIDE, BLOCK_D,
    )  # fmt: skip
    sign = j_sign - b_sign
    if (sign == 0) & (j_sign != 0):
        carry = tl.zeros([], tl.int64)
        rest = tl.zeros([], tl.int64)
        for i in range(3 * count + 2):
            carry += _convolution(b_norm, count + 1, j_square, 2 * count + 2, i, LIMBS)
            carry -= _convolution(j_norm, count + 1, b_square, 2 * count + 2, i, LIMBS)
            rest |= carry & LIMB_MASK
            carry >>= LIMB_BITS
        sign = j_sign * _sign(carry, rest)
    tl.debug_barrier()  # scratch may be overwritten
    return sign


@triton.jit
def compare_exactly(
    x, c, row, j, b, D, scratch, METRIC: tl.constexpr, LIMBS: tl.constexpr,
    KIND: tl.constexpr, C_KIND: tl.constexpr, WIDE: tl.constexpr, C_WIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """> 0 where centroid j is nearer to the row than b, 0 where both are equally near."""
    if METRIC == "cosine":
        return _compare_cosines(
            x, c, row, j, b, D, scratch, LIMBS, KIND, C_KIND, WIDE, C_WIDE, BLOCK_D
        )
    else:
        return _compare_sums(
            x, c, row, j, b, D, METRIC == "euclidean", KIND, C_KIND, WIDE, C_WIDE, BLOCK_D
        )
