"""Which id is right, found without the package: float64 with its own error bound, then integers.

Written from the definition of the ops and sharing no code with them. Three steps, each for the rows
that the one before leaves open:

1. a blocked float64 matrix product of centred values, with a bound on its rounding error that holds
   for any order of summation;
2. the direct float64 formula for the centroids that step 1 cannot exclude, with its own bound;
3. exact arithmetic: values cut into pieces of 22 bits, whose products int64 sums hold exactly;
   where the exponents are too far apart for that, ratios of integers (``exact_score``).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

UNIT = 2.0**-53  # unit roundoff of float64
TINY = 2.0**-1022  # below it float64 loses relative accuracy
BLOCK_VALUES = 2**22  # scores held at a time
PIECE = 22  # bits: a difference has 23, a product 46, which leaves int64 room for 2^16 terms


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor in float64, exact for all four dtypes."""
    return tensor.detach().cpu().double().numpy()


def nearest_ids(x: torch.Tensor, centroids: torch.Tensor, metric: str) -> np.ndarray:
    """int64 ids of shape ``x.shape[:-1]``: the contract's answer for ``nearest_centroid``."""
    rows, c = to_numpy(x.reshape(-1, x.shape[-1])), to_numpy(centroids)
    ids = np.full(len(rows), -1, dtype=np.int64)
    candidates = np.flatnonzero(np.isfinite(c).all(1))
    if len(candidates) == 0:
        return ids.reshape(tuple(x.shape[:-1]))
    c = c[candidates]
    table = _Table(c, metric)
    step = max(1, BLOCK_VALUES // len(c))
    for begin in range(0, len(rows), step):
        block = rows[begin : begin + step]
        finite = np.flatnonzero(np.isfinite(block).all(1))
        ids[begin + finite] = candidates[table.winners(block[finite])]
    return ids.reshape(tuple(x.shape[:-1]))


class _Table:
    """Centroids prepared for step 1: ``score = |c'|^2 - 2 x'.c'`` (euclidean) or ``-x'.c'``."""

    def __init__(self, c: np.ndarray, metric: str) -> None:
        self.c, self.metric = c, metric
        self.first_equal = _first_equal(c)
        self.centre, self.exponent = np.zeros(c.shape[1]), 0
        if metric == "cosine":
            packed = _with_largest_near_one(c)
            norms = np.sqrt(np.square(packed).sum(1))
            packed = packed / np.where(norms == 0.0, 1.0, norms)[:, None]
        else:
            _, self.exponent = np.frexp(np.abs(c).max(initial=0.0))
            packed = np.ldexp(c, -self.exponent)
        if metric == "euclidean":
            sample = packed[:: max(1, len(c) // 99)]
            self.centre = np.median(sample, axis=0)  # one far centroid does not move a median
            packed = packed - self.centre
        self.bias = np.square(packed).sum(1) if metric == "euclidean" else np.zeros(len(c))
        self.widest = 1.01 * np.sqrt(np.square(packed).sum(1)).max()
        self.packed = np.ascontiguousarray(packed.T)

    def winners(self, x: np.ndarray) -> np.ndarray:
        """Positions in ``c`` of the nearest centroid of each (finite) row, lowest among equals."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            if self.metric == "euclidean":
                y = np.ldexp(x, -self.exponent) - self.centre
            else:
                y = _with_largest_near_one(x)
            length = 1.01 * np.sqrt(np.square(y).sum(1))
            score = y @ self.packed
            score *= -2.0 if self.metric == "euclidean" else -1.0
            score += self.bias
            # D products and sums in any order and the roundings of both operands (a norm's is D / 2
            # more); Cauchy-Schwarz bounds the sum of absolute products. Underflow: absolute.
            relative, widest = 1.1 * (2 * x.shape[1] + 12) * UNIT, self.widest
            bound = relative * widest * (2.0 * length + widest) + 1e-290 * (1.0 + length + widest)
            best = score.argmin(1)
            limit = score[np.arange(len(x)), best] + 2.0 * bound
            is_open = (~(score > limit[:, None])).sum(1) != 1  # NaN stays open
            for i in np.flatnonzero(is_open):
                best[i] = self._decide(x[i], np.flatnonzero(~(score[i] > limit[i])))
        return best

    def _decide(self, row: np.ndarray, candidates: np.ndarray) -> int:
        """Steps 2 and 3 for one row; ``candidates`` ascend."""
        candidates = np.unique(self.first_equal[candidates])
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            score, bound = _direct(row, self.c[candidates], self.metric)
            limit = np.nanmin(np.append(score + bound, np.inf))
            candidates = candidates[~(score - bound > limit)]
        if len(candidates) == 1:
            return int(candidates[0])
        exact = exact_scores(row, self.c[candidates], self.metric)
        return int(candidates[exact.index(min(exact))])


def _direct(row: np.ndarray, c: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Step 2: scores (smaller is better) and a bound on their error; Inf and NaN stay open."""
    relative = 1.1 * (len(row) + 12) * UNIT
    underflow = 4.0 * (len(row) + 1) * TINY
    if metric == "euclidean":
        score = np.square(row - c).sum(1)
        return score, relative * score + underflow
    products = row * c
    score, bound = -products.sum(1), relative * np.abs(products).sum(1) + underflow
    if metric == "cosine":
        norm = np.sqrt(np.square(c).sum(1))
        zero = ~c.any(1)
        safe = (norm > 1e-140) & (norm < 1e140)
        norm = np.where(safe, norm, 1.0)
        bound = np.where(safe, bound / norm + 2.0 * relative * np.abs(score / norm), np.inf)
        score, bound = np.where(zero, 0.0, score / norm), np.where(zero, 0.0, bound + underflow)
    return score, bound


def exact_scores(row: np.ndarray, c: np.ndarray, metric: str) -> list[Fraction] | list[int]:
    """Step 3 for several centroids: rational numbers that order them; smaller is better."""
    low, bits = _span(row, c)
    if bits > 40 * PIECE or len(row) >= 2**16:
        return [exact_score(row, one, metric) for one in c]
    x_pieces, c_pieces = _pieces(row[None], low, bits), _pieces(c, low, bits)
    if metric == "euclidean":
        apart = [a - b for a, b in zip(x_pieces, c_pieces, strict=True)]
        return _sum_of_products(apart, apart)
    dots = _sum_of_products(x_pieces, c_pieces)
    if metric == "dot":
        return [-dot for dot in dots]
    norms2 = _sum_of_products(c_pieces, c_pieces)
    return [
        Fraction(-dot * abs(dot), norm2) if norm2 else Fraction(0)
        for dot, norm2 in zip(dots, norms2, strict=True)
    ]


def _span(*arrays: np.ndarray) -> tuple[int, int]:
    """The exponent of the lowest bit that any value has, and the bits from there to the highest."""
    low, high = 10_000, -10_000
    for values in arrays:
        fraction, exponent = np.frexp(values[values != 0.0])
        if len(exponent):
            digits = np.ldexp(fraction, 53).astype(np.int64)
            lowest = np.frexp((digits & -digits).astype(np.float64))[1] - 1
            low = min(low, int((lowest + exponent).min()) - 53)
            high = max(high, int(exponent.max()))
    return (low, high - low) if high >= low else (0, 1)


def _pieces(values: np.ndarray, low: int, bits: int) -> list[np.ndarray]:
    """int64 p with ``values = sum(p[i] 2^(low + PIECE i))``, exactly, each ``|p[i]| < 2^PIECE``."""
    with np.errstate(under="raise", over="raise"):
        rest = np.ldexp(np.ldexp(values, -(low // 2)), -(low - low // 2))
    pieces = []
    for i in reversed(range(-(-bits // PIECE))):
        piece = np.trunc(np.ldexp(rest, -PIECE * i))
        rest = rest - np.ldexp(piece, PIECE * i)
        pieces.append(piece.astype(np.int64))
    assert not rest.any()
    return pieces[::-1]


def _sum_of_products(a: list[np.ndarray], b: list[np.ndarray]) -> list[int]:
    """For each row of values given in pieces the exact sum of products, in units of 2^(2 low)."""
    totals = [0] * max(len(a[0]), len(b[0]))
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            sums = (p * q).sum(1).tolist()
            totals = [t + (s << PIECE * (i + j)) for t, s in zip(totals, sums, strict=True)]
    return totals


def exact_score(row: np.ndarray, c: np.ndarray, metric: str) -> Fraction:
    """Step 3: a rational number that orders centroids for this row; smaller is better."""
    (xs, x_unit), (cs, c_unit) = _integers(row), _integers(c)
    if metric == "euclidean":
        total = sum((a * c_unit - b * x_unit) ** 2 for a, b in zip(xs, cs, strict=True))
        return Fraction(total, (x_unit * c_unit) ** 2)
    dot = sum(a * b for a, b in zip(xs, cs, strict=True))
    if metric == "dot":
        return Fraction(-dot, x_unit * c_unit)
    norm2 = sum(b * b for b in cs)  # cos = dot / (|x| |c|): its sign times its square orders alike
    return Fraction(-dot * abs(dot), norm2) if norm2 else Fraction(0)


def _integers(values: np.ndarray) -> tuple[list[int], int]:
    """``values`` as integers over one power of two."""
    ratios = [float(v).as_integer_ratio() for v in values]
    unit = max((d for _, d in ratios), default=1)
    return [n * (unit // d) for n, d in ratios], unit


def _exponents(rows: np.ndarray) -> np.ndarray:
    return np.frexp(np.abs(rows).max(1, initial=0.0))[1]


def _with_largest_near_one(rows: np.ndarray) -> np.ndarray:
    """Each row times the power of two that brings its largest entry to [0.5, 1)."""
    return np.ldexp(rows, -_exponents(rows)[:, None])


def _first_equal(c: np.ndarray) -> np.ndarray:
    """For each centroid the position of the first one with the same values (0 equals -0)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault((row + 0.0).tobytes(), k) for k, row in enumerate(c)])
