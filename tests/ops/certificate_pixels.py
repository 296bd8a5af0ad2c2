"""The filter of uint8 pixels in numpy: fixed-point centroids, exact integer sums, and its bounds.

Per column a table of the 256 values is approached by the line a (p - 128) + o through its ends.
With x' = value - o, c' = c - o and x^ = a (p - 128) a centroid is rounded to cr = sigma v / a, v
integer, so that x^.cr = sigma sum (p - 128) v. The score is T = x^.cr - |cr|^2 / 2, and the rule of
section 1 of docs/certificate.md holds with rho >= |x' - x^| and r >= |c' - cr|.
"""

from __future__ import annotations

import numpy as np

from tests.ops.certificate_model import UNIT, lengths
from tests.ops.low_precision import add, float32

COARSE, FINE = 127, 127 * 256 + 127  # largest |v| of 8 bits, and of two signed bytes


class Pixels:
    """Pixels [N, D] against centroids [K, D] (real values); ``table`` [256] for every column.

    ``sigma`` [K] is the largest |c' a| of each centroid over ``largest``, unless given.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        c: np.ndarray,
        table: np.ndarray,
        largest: int = COARSE,
        without: tuple[str, ...] = (),
        sigma: np.ndarray | None = None,
    ) -> None:
        self.without = without
        table = np.asarray(table, np.float64)
        a = (table[255] - table[0]) / 255
        o = table[0] + 128 * a
        d = pixels.shape[1]
        line = a * (np.arange(256) - 128.0)
        self.x, self.c = table[pixels] - o, c - o
        whole = pixels.astype(np.int64) - 128
        self.x_line = a * whole
        self.rho = self.term("pixels") * np.full(
            len(pixels), np.sqrt(d) * np.abs(table - o - line).max()
        )
        if sigma is None:
            most = np.abs(self.c * a).max(1) / largest
            sigma = np.where(most > 0, np.maximum(float32(most * (1 + 2.0**-23)), most), 1.0)
            sigma = float32(sigma)
        v = np.rint(self.c * a / sigma[:, None]).astype(np.int64)
        self.rounded = sigma[:, None] * v / a
        self.r = self.term("centroids") * lengths(self.c - self.rounded)
        self.sums = whole @ v.T  # exact
        exact_bias = -0.5 * np.square(self.rounded).sum(1)
        self.bias = float32(exact_bias)
        self.exact = sigma * self.sums + exact_bias
        self.computed = add(float32(float32(self.sums) * sigma), self.bias)
        self.error = self.term("dot") * 3 * UNIT * lengths(self.x_line)[:, None] * np.maximum(
            lengths(self.rounded), 2.0**-14
        ) + self.term("bias") * 2 * UNIT * np.abs(self.bias)

    def term(self, name: str) -> float:
        return 0.0 if name in self.without else 1.0

    def margins(self) -> np.ndarray:
        rows, best = np.arange(len(self.x)), self.computed.argmax(1)
        scores = self.error + self.error[rows, best][:, None]
        square = np.square(lengths(self.x_line)) - 2 * self.computed[rows, best]
        distance = np.sqrt(np.maximum(square[:, None] + 2 * scores, 0.0))
        of_best, own = self.rho[:, None] + self.r[best][:, None], self.rho[:, None] + self.r
        return (
            scores
            + self.term("best") * of_best * distance
            + self.term("square of the best") * of_best**2 / 2
            + own * (distance + self.term("both") * of_best)
            + self.term("own square") * own**2 / 2
        )

    def needed(self) -> np.ndarray:
        return self.computed.max(1)[:, None] - self.computed

    def candidates(self) -> np.ndarray:
        return self.needed() <= self.margins()
