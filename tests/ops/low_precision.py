"""bfloat16, float32 and integer tile arithmetic in numpy, one rounding at a time.

Written from the formats' and instructions' published definitions, sharing no code with the package.
Values are float64 arrays that hold numbers of the narrower format.
"""

from __future__ import annotations

import numpy as np

SMALLEST_NORMAL = 2.0**-126  # of float32 and of bfloat16


def bfloat16(values: np.ndarray) -> np.ndarray:
    """To 8 significant bits, half to even; below 2^-126 to multiples of 2^-133."""
    unit = np.maximum(np.frexp(values)[1] - 8, -133)
    return np.ldexp(np.rint(np.ldexp(values, -unit)), unit)


def float32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64).astype(np.float32).astype(np.float64)


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The float32 sum of two float32 values: float64 holds enough bits that rounding it twice is
    rounding it once."""
    return float32(np.asarray(a) + b)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c rounded once to float32; the product of two float32 values is exact in float64.

    The float64 sum is rounded to odd first (its last bit set where it is not exact): then rounding
    it to 24 bits gives what one rounding of the exact sum gives.
    """
    product, c = np.asarray(a * b, np.float64), np.asarray(c, np.float64)
    total = np.asarray(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    total = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return float32(total)


def flush(values: np.ndarray) -> np.ndarray:
    """Subnormal numbers to zero, as the tile instructions take and give them."""
    return np.where(np.abs(values) < SMALLEST_NORMAL, 0.0, values)


def tile_dot(x: np.ndarray, c: np.ndarray, start: np.ndarray) -> np.ndarray:
    """``start`` [N, K] plus x [N, D] times c [K, D] transposed, as TDPBF16PS adds it up.

    Of each 32 columns the even ones and the odd ones are two chains of fused multiply-adds that
    start at 0; their sum is added to the accumulator. Each step rounds to float32, half to even,
    and flushes what is subnormal. D is padded with zeros, which change nothing.
    """
    x, c = flush(x), flush(c)
    padding = ((0, 0), (0, -x.shape[1] % 32))
    x, c = np.pad(x, padding), np.pad(c, padding)
    total = flush(start)
    for begin in range(0, x.shape[1], 32):
        chains = [np.zeros_like(total), np.zeros_like(total)]
        for column in range(begin, begin + 32):
            own = column % 2
            chains[own] = flush(fused(x[:, column, None], c[None, :, column], chains[own]))
        total = flush(add(total, flush(add(chains[0], chains[1]))))
    return total


def chained_dot(x: np.ndarray, c: np.ndarray, run: int) -> np.ndarray:
    """x [N, D] times c [K, D] transposed in float32: fused multiply-adds in runs of ``run``
    columns, each from 0, the runs' sums added one after the other."""
    total = np.zeros((len(x), len(c)))
    for begin in range(0, x.shape[1], run):
        chain = np.zeros_like(total)
        for column in range(begin, min(begin + run, x.shape[1])):
            chain = fused(x[:, column, None], c[None, :, column], chain)
        total = add(total, chain)
    return total


def sum_in_runs(values: np.ndarray, run: int) -> np.ndarray:
    """Sums of squares of ``run`` columns at a time, those added up in float64."""
    parts = [sum_of_squares(values[:, d : d + run]) for d in range(0, values.shape[1], run)]
    return float32(np.sum(parts, axis=0))


def sum_of_squares(values: np.ndarray) -> np.ndarray:
    """Float32 sum of the squares of each row [., D] in 16 chains of fused multiply-adds, column by
    column; then the chains pairwise."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % 16)))
    chains = np.zeros((len(values), 16))
    for begin in range(0, padded.shape[1], 16):
        part = padded[:, begin : begin + 16]
        chains = fused(part, part, chains)
    while chains.shape[1] > 1:
        half = chains.shape[1] // 2
        chains = add(chains[:, :half], chains[:, half:])
    return chains[:, 0]
