"""Section 3 of docs/certificate.md in numpy: scores of coordinates in a subspace, and their rule.

``basis`` [n, D] holds the vectors v_i; only its span matters: the true coordinates are those in the
orthonormal basis nearest to it.
"""

from __future__ import annotations

import numpy as np

from tests.ops.certificate_model import BFLOAT16, FLOAT32, UNIT, Format, lengths
from tests.ops.low_precision import add, bfloat16, chained_dot, float32, tile_dot


class Projected:
    """Rows and centroids [., D] through the filter in a subspace; ``without`` leaves terms out."""

    def __init__(
        self,
        x: np.ndarray,
        c: np.ndarray,
        basis: np.ndarray,
        fmt: Format,
        without: tuple[str, ...] = (),
    ) -> None:
        self.without, self.fmt = without, fmt
        n, d = basis.shape
        root = np.sqrt(n)
        self.orthonormal = _nearest_orthonormal(basis)
        skew = self.term("skew") * np.linalg.norm(basis @ basis.T - np.eye(n))

        # Rows: (1), their coordinates, and (1) again.
        xr = fmt.round(x)
        self.x_norm, self.x_residual = lengths(xr), self.residual(x, xr, "rows")
        parts = [bfloat16(basis)] if fmt is BFLOAT16 else [basis]
        if fmt is BFLOAT16:
            parts.append(bfloat16(basis - parts[0]))
        self.packed_basis = sum(parts)
        rounding = self.term("rounding") * np.linalg.norm(self.packed_basis - basis)
        zero = np.zeros((len(x), n))
        if fmt is BFLOAT16:
            self.y = add(*(tile_dot(xr, part, zero) for part in parts))
        else:
            self.y = chained_dot(xr, basis, 64)
        self.xr = xr
        computing = self.term("coordinates") * 1.05 * (fmt.dot(d) * root + 2 * UNIT)
        self.computing = computing
        self.basis_error = (rounding + skew + computing) * self.x_norm
        self.yr = fmt.round(self.y)
        self.y_norm, y_residual = lengths(self.yr), self.residual(self.y, self.yr, "coordinates'")
        self.rho = self.x_residual + y_residual + self.basis_error
        inside = np.maximum(0.0, self.y_norm - y_residual - self.basis_error)
        self.w = np.sqrt(np.maximum(0.0, self.x_norm**2 - inside**2)) + self.x_residual

        # Centroids: coordinates in float32, with an error of kappa |c'|.
        single = float32(c)
        self.p = chained_dot(single, basis, 64)
        self.kappa = self.term("kappa") * (skew + 1.05 * (FLOAT32.dot(d) * root + 2 * UNIT))
        self.pr = fmt.round(self.p)
        size = lengths(c)
        self.r = self.residual(self.p, self.pr, "centroids") + self.kappa * size
        outside2 = np.maximum(0.0, np.square(single).sum(1) - np.square(self.p).sum(1))
        self.moved = 2.02 * self.kappa * size**2
        self.q = np.sqrt(outside2 + self.moved)

        # (8), (6) and what |q|^2 may be off by.
        self.bias = float32(-0.5 * (np.square(self.pr).sum(1) + outside2))
        if fmt is BFLOAT16:
            start = np.broadcast_to(self.bias, (len(x), len(c)))
            self.computed = tile_dot(self.yr, self.pr, start)
        else:
            self.computed = add(chained_dot(self.yr, self.pr, 64), self.bias)
        self.error = (
            fmt.dot(n) * self.y_norm[:, None] * lengths(self.pr)
            + fmt.bias(n) * np.abs(self.bias)
            + 0.5 * self.moved
        )

    def term(self, name: str) -> float:
        return 0.0 if name in self.without else 1.0

    def residual(self, values: np.ndarray, rounded: np.ndarray, which: str) -> np.ndarray:
        return self.term(which) * lengths(float32(values) - rounded)

    def margins(self) -> np.ndarray:
        """(9)"""
        rows, best = np.arange(len(self.y)), self.computed.argmax(1)
        scores = self.error + self.error[rows, best][:, None]
        g = self.y_norm**2 - 2 * self.computed[rows, best]
        g = np.maximum(g[:, None] + 2 * scores, 0.0)
        of_best, own = self.rho[:, None] + self.r[best][:, None], self.rho[:, None] + self.r
        extra = of_best * (2 * np.sqrt(g) + of_best) + self.term("outside") * 2 * self.w[
            :, None
        ] * (self.q[best][:, None] + self.q)
        return scores + extra / 2 + own * np.sqrt(g + extra) + own**2 / 2

    def needed(self) -> np.ndarray:
        return self.computed.max(1)[:, None] - self.computed

    def candidates(self) -> np.ndarray:
        return self.needed() <= self.margins()


def _nearest_orthonormal(basis: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(basis, full_matrices=False)
    return left @ right
