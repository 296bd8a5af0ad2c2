"""Narrow rows as 16-bit integers in numpy, and the rule of section 4 of docs/certificate.md.

Rows and centroids are given in units of the integers, around the centre: their points are rounded
to integers, scores are exact, and the last bits of a score say its column.
"""

from __future__ import annotations

import numpy as np

from tests.ops.certificate_model import UNIT, lengths
from tests.ops.low_precision import float32

MOST_ROW, MOST_CENTROID = 32000.0, 24000.0  # norms
ZERO = 2**30


class Integers:
    """Rows x [N, D] against centroids c [K, D], real values; ``without`` leaves terms out."""

    def __init__(self, x: np.ndarray, c: np.ndarray, without: tuple[str, ...] = ()) -> None:
        self.without = without
        d, k = x.shape[1], len(c)
        self.x_int = np.rint(float32(x)).astype(np.int64)
        self.c_int = np.rint(c).astype(np.int64)
        assert (lengths(self.x_int) <= MOST_ROW).all()
        assert (lengths(self.c_int) <= MOST_CENTROID).all()
        self.rho = (
            self.term("rows") * np.sqrt(d) / 2 + self.term("float32") * 2.03 * UNIT * MOST_ROW
        )
        self.r = self.term("centroids") * lengths(c - self.c_int).max()
        norm2 = np.square(self.c_int).sum(1)
        products = self.x_int @ self.c_int.T
        self.exact2 = 2 * products - norm2  # 2 T
        self.scores = products - norm2 // 2 + ZERO
        self.marks = (1 << (k - 1).bit_length()) - 1
        self.marked = (self.scores & ~self.marks) | np.arange(k)

    def term(self, name: str) -> float:
        return 0.0 if name in self.without else 1.0

    def margins(self) -> np.ndarray:
        """[N]: a centroid whose marked score is further than this below the best cannot win."""
        marks = self.term("marks") * 2 * self.marks + 1
        best = self.marked.max(1) - ZERO
        square = np.square(self.x_int).sum(1) - 2 * best + marks
        distance = np.sqrt(np.maximum(square, 0))
        s = self.rho + self.r
        return 2 * s * (distance + s) + marks

    def needed(self) -> np.ndarray:
        return self.marked.max(1)[:, None] - self.marked

    def candidates(self) -> np.ndarray:
        return self.needed() <= self.margins()[:, None]
