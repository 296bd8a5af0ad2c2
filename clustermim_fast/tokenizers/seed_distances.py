"""Squared distances of all rows to the nearest of a growing set of seeds, for k-means++."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from clustermim_fast.tokenizers.rows import Float64, Index, Rows

Nearer = tuple[Index, Float64]
SMALL_VALUES = 1 << 23  # rows that are made anew for each pass are kept when they are this few


class SeedDistances:
    """``closest`` [n] float64: squared distance of each local row to its nearest seed.

    Seeds are numbers among all rows, wherever they are.

    Every distance that enters it is summed from differences, row by row by one thread: equal rows
    are at distance exactly 0 and nothing depends on the thread count. A product of matrices, whose
    bits may depend on it, only tells which rows cannot be nearer to a new seed than to their old
    one, by a bound on its rounding.
    """

    def __init__(self, rows: Rows, first: Index) -> None:
        self._rows, local = rows, rows.local
        self._dtype = rows.dtype
        self._blocks = list(local.blocks()) if local.num_rows * rows.dim <= SMALL_VALUES else None
        self.closest = self._all(first)
        largest = rows.group.each(np.array([self.closest.max(initial=0.0)])).max()
        if rows.dtype != torch.float64 and not 1e-30 < largest < 1e30:
            self._dtype = torch.float64  # the squares leave float32's range
            self.closest = self._all(first)
        self._squared_norms: list[npt.NDArray[np.floating]] | None = None

    def _passes(self) -> Iterable[tuple[int, torch.Tensor]]:
        blocks = self._rows.blocks() if self._blocks is None else self._blocks
        return ((start, block.to(self._dtype)) for start, block in blocks)

    def _all(self, seed: Index) -> Float64:
        point = self._rows.take(seed).to(self._dtype).cpu().numpy()[0]
        parts = [_direct(block.cpu().numpy(), point) for _, block in self._passes()]
        return np.concatenate([np.empty(0), *parts])

    def nearer(self, seeds: Index) -> list[Nearer]:
        """For each seed the rows it is nearer to than their seed so far, and their new distance."""
        points = self._rows.take(seeds).to(self._dtype)
        if self._rows.device.type != "cpu":
            return self._nearer_on_device(points)
        c = points.numpy()
        c_norms = np.einsum("ij,ij->i", c, c)
        if self._squared_norms is None:
            self._squared_norms = [
                np.einsum("ij,ij->i", x, x) for x in (b.numpy() for _, b in self._passes())
            ]
        # With u = eps / 2 and g = D u, in any order of summation: x.c errs by at most g |x||c|,
        # each squared norm by g of itself, the direct form by g |x - c|^2 <= 2 g (|x|^2 + |c|^2).
        # Together 4 g = 2 D eps times the sum of the squared norms; 16 covers the few roundings
        # left. A row stays with its seed where (1 - slack) (|x|^2 + |c|^2) - 2 x.c >= closest.
        kept = 0.5 - (self._rows.dim + 16) * float(np.finfo(c.dtype).eps)
        found: list[list[Nearer]] = [[] for _ in seeds]
        for (start, block), x_norms in zip(self._passes(), self._squared_norms, strict=True):
            x = block.numpy()
            closest = self.closest[start : start + len(x)]
            reach = (kept * x_norms - 0.5 * closest).astype(c.dtype)
            for number, products in enumerate(c @ x.T):
                index = np.flatnonzero(~(products <= reach + kept * c_norms[number]))
                distance = _direct(x, c[number], index)
                better = distance < closest[index]
                found[number].append((start + index[better], distance[better]))
        return [_join(parts) for parts in found]

    def _nearer_on_device(self, points: torch.Tensor) -> list[Nearer]:
        found: list[list[Nearer]] = [[] for _ in points]
        for start, block in self._passes():
            # This mode subtracts before it squares, pair by pair.
            mode = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(points, block, compute_mode=mode).double().square_()
            for number, distance in enumerate(distances.cpu().numpy()):
                index = np.flatnonzero(distance < self.closest[start : start + len(block)])
                found[number].append((start + index, distance[index]))
        return [_join(parts) for parts in found]


def _direct(
    x: npt.NDArray[np.floating], point: npt.NDArray[np.floating], index: Index | None = None
) -> Float64:
    """Squared distances, float64, of the rows of x (at ``index``) from the differences."""
    out = np.empty(len(x) if index is None else len(index))
    size = max(1, (1 << 18) // max(1, x.shape[1]))  # differences of a block stay in the cache
    for start in range(0, len(out), size):
        part = slice(start, start + size)
        difference = (x[part] if index is None else x[index[part]]) - point
        out[part] = np.einsum("ij,ij->i", difference, difference)
    return out


def _join(parts: list[Nearer]) -> Nearer:
    none = np.empty(0, dtype=np.int64)
    index = np.concatenate([none, *(p[0] for p in parts)])
    return index, np.concatenate([np.empty(0), *(p[1] for p in parts)])
