"""The filter and its rule of exclusion as docs/certificate.md states them, in numpy.

Rows x' and centroids c' are given centred and scaled, as float64 arrays that hold the real values
exactly. Every bound is computed here from the document's equations, whose numbers are in brackets;
no constant is the package's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.ops.low_precision import add, bfloat16, chained_dot, float32, tile_dot

UNIT = 2.0**-24  # unit roundoff of float32
RUN = 64  # columns of a run of the float32 filter


@dataclass(frozen=True)
class Format:
    """A number format of the filter: its rounding, its scores, and the coefficients of their error
    |computed T - exact T| <= dot |xr| |cr| + bias |bias|, (6) and its table; `dot` also counts the
    rounding of x' itself."""

    name: str
    bits: int
    round: Callable[[np.ndarray], np.ndarray]
    scores: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    dot: Callable[[int], float]
    bias: Callable[[int], float]


def _tile_scores(xr: np.ndarray, cr: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return tile_dot(xr, cr, np.broadcast_to(bias, (len(xr), len(cr))))


def _chained_scores(xr: np.ndarray, cr: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return add(chained_dot(xr, cr, RUN), bias)


BFLOAT16 = Format(
    "bfloat16", 8, lambda v: bfloat16(float32(v)), _tile_scores,
    dot=lambda d: UNIT * (17 + -(-d // 32)),
    bias=lambda d: UNIT * (-(-d // 32) + 1),
)  # fmt: skip
FLOAT32 = Format(
    "float32", 24, float32, _chained_scores,
    dot=lambda d: UNIT * (min(d, RUN) + -(-d // RUN) + 1),
    bias=lambda d: UNIT * 2,
)  # fmt: skip
FORMATS = (BFLOAT16, FLOAT32)


def lengths(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(values).sum(-1))


def measured_lengths(values: np.ndarray, lost: bool = True) -> np.ndarray:
    """From float32 squares, of which those that underflow lose up to 2^-150: (1)."""
    return np.sqrt(float32(np.square(values)).sum(-1) + lost * values.shape[-1] * 2.0**-150)


class Filtered:
    """Rows against centroids through one format's filter. ``without`` leaves terms out."""

    def __init__(
        self, x: np.ndarray, c: np.ndarray, metric: str, fmt: Format, without: tuple[str, ...] = ()
    ) -> None:
        self.x, self.c, self.metric, self.fmt, self.without = x, c, metric, fmt, without
        d = x.shape[1]
        self.xr, self.cr = fmt.round(x), fmt.round(c)
        exact_bias = -0.5 * np.square(self.cr).sum(1) if metric == "euclidean" else 0 * c[:, 0]
        self.bias = float32(exact_bias)
        self.computed = fmt.scores(self.xr, self.cr, self.bias)
        self.exact = self.xr @ self.cr.T + exact_bias
        lost = "squares" not in without
        self.x_norm, self.c_norm = (measured_lengths(v, lost) for v in (self.xr, self.cr))
        self.x_residual = self.term("rows") * self.residual(x, self.xr)
        # A row's float32 value is in `dot`.
        of_float32 = self.term("float32") * UNIT * self.c_norm
        self.c_residual = self.term("centroids") * (self.residual(c, self.cr) + of_float32)
        self.error = self.term("dot") * fmt.dot(d) * self.x_norm[:, None] * np.maximum(
            self.c_norm, 2.0**-14
        ) + self.term("bias") * fmt.bias(d) * np.abs(self.bias)  # [N, K]

    def term(self, name: str) -> float:
        return 0.0 if name in self.without else 1.0

    def residual(self, values: np.ndarray, rounded: np.ndarray) -> np.ndarray:
        """(1): measured from the float32 values."""
        lost = "squares" not in self.without
        return self.term("measured") * measured_lengths(float32(values) - rounded, lost)

    def margins(self) -> np.ndarray:
        """[N, K]: a centroid whose score is further than this below the best cannot be nearest."""
        best = self.computed.argmax(1)
        rows = np.arange(len(self.x))
        scores = self.error + self.error[rows, best][:, None]
        c_res, c_norm = self.c_residual, self.c_norm
        if self.metric != "euclidean":
            return (  # (5)
                scores
                + self.x_norm[:, None] * (c_res + c_res[best][:, None])
                + self.x_residual[:, None]
                * ((c_norm + c_res) + (c_norm[best] + c_res[best])[:, None])
            )
        square = np.square(self.x_norm) - 2 * self.computed[rows, best]
        distance = np.sqrt(
            np.maximum(square[:, None] + 2 * scores, 0.0)
        )  # delta_b of (2), from t_b
        of_best, own = (
            c_res[best][:, None] + self.x_residual[:, None],
            c_res + self.x_residual[:, None],
        )
        return scores + self.term("triangle") * (  # (4)
            of_best * distance
            + self.term("square") * of_best**2 / 2
            + own * (distance + self.term("square") * of_best)
            + self.term("square") * own**2 / 2
        )

    def needed(self) -> np.ndarray:
        """[N, K]: how far below the best computed score each one lies."""
        return self.computed.max(1)[:, None] - self.computed

    def candidates(self) -> np.ndarray:
        return self.needed() <= self.margins()
