"""The rows that k-means clusters: what a fit may ask of them, and those of a matrix.

The fits in ``kmeans_lloyd.py`` and ``kmeans_minibatch.py`` see only this interface
(``image_rows.py`` has those of images). Under ``metric="cosine"`` the rows are the unit vectors of
the given ones (spherical k-means).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from clustermim_fast import ops

# Values of a block of rows: 16 MiB as float32.
ROW_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True)
class Step:
    """One pass over rows: ids (None where they are not kept), sums, counts, inertia."""

    ids: torch.Tensor | None
    sums: torch.Tensor
    counts: torch.Tensor
    inertia: float


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows divided by their length; a zero row stays zero."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    # So that the squares neither over- nor underflow.
    scaled = torch.where(largest > 0, rows / largest, rows)
    length = scaled.square().sum(dim=1, keepdim=True).sqrt()
    return torch.where(length > 0, scaled / length, scaled)


class Rows(ABC):
    """N rows of D values, read block by block."""

    num_rows: int
    dim: int
    metric: str
    dtype: torch.dtype  # in which centroids are compared with the rows
    device: torch.device
    weights: torch.Tensor | None = None

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(index of the first row, rows [n, D] in ``dtype``), in order, at fixed places."""

    @abstractmethod
    def take(self, index: npt.NDArray[np.int64]) -> torch.Tensor:
        """The rows [len(index), D] in ``dtype``."""

    def lloyd_step(self, centers: torch.Tensor) -> Step:
        """Assign all rows to ``centers`` [K, D] (rounded to ``dtype``) and add them up.

        ValueError names the first row with NaN or Inf.
        """
        centers = centers.to(self.dtype)
        sums = torch.zeros(centers.shape, dtype=torch.float64, device=self.device)
        counts = torch.zeros(centers.shape[0], dtype=torch.float64, device=self.device)
        ids, inertia = [], 0.0
        for start, rows in self.blocks():
            weights = None if self.weights is None else self.weights[start : start + len(rows)]
            part = ops.lloyd_step(rows, centers, weights=weights, metric=self.metric)
            ids.append(part[0])
            sums += part[1]
            counts += part[2]
            inertia += float(part[3])
        return Step(require_finite(torch.cat(ids)), sums, counts, inertia)

    def mean_variance(self) -> float:
        """Mean over features of their variances, weights ignored; ValueError on NaN or Inf.

        Two assignments to a single centroid give the sums and the squared distances, in the ops'
        order, so that the result does not depend on the thread count.
        """
        origin = torch.zeros(1, self.dim, dtype=torch.float64, device=self.device)
        step = self.lloyd_step(origin)
        mean = step.sums / self.num_rows
        if self.metric == "cosine":  # unit rows: the mean of |x|^2 is 1
            return max(0.0, 1.0 - float(mean.square().sum())) / self.dim
        return self.lloyd_step(mean).inertia / (self.num_rows * self.dim)

    def farthest(
        self, centers: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        """Up to ``count`` different rows, farthest from their centroid first, and their index.

        Equal distances go to the lower index; rows at distance 0 or of weight 0 are left out.
        """
        centers = centers.to(self.dtype)
        best_distance = np.empty(0)
        best_index = np.empty(0, dtype=np.int64)
        for start, rows in self.blocks():
            _, cost = ops.nearest_centroid(rows, centers, return_distance=True)
            distance = cost.double().cpu().numpy()
            if self.weights is not None:
                weights = self.weights[start : start + len(rows)].cpu().numpy()
                distance = np.where(weights > 0, distance, 0.0)
            distance = np.concatenate([best_distance, distance])
            index = np.concatenate([best_index, np.arange(start, start + len(rows))])
            keep = np.flatnonzero(distance > 0)
            order = keep[np.lexsort((index[keep], -distance[keep]))]
            order = order[self.distinct(index[order], count)]
            best_distance, best_index = distance[order], index[order]
        return self.take(best_index), best_index

    def distinct(self, index: npt.NDArray[np.int64], count: int) -> list[int]:
        """Positions in ``index`` of its first ``count`` rows that differ from one another."""
        seen: set[bytes] = set()
        positions: list[int] = []
        for begin in range(0, len(index), max(count, 256)):
            part = self.take(index[begin : begin + max(count, 256)]).cpu().numpy()
            for offset, row in enumerate(part):
                if len(positions) == count:
                    return positions
                key = (row + 0.0).tobytes()  # -0.0 and 0.0 are one value
                if key not in seen:
                    seen.add(key)
                    positions.append(begin + offset)
        return positions


class MatrixRows(Rows):
    """The rows of a tensor [N, D], float64, float32, float16 or bfloat16, any strides."""

    def __init__(
        self, x: torch.Tensor, weights: torch.Tensor | None = None, metric: str = "euclidean"
    ) -> None:
        self.x, self.weights, self.metric = x, weights, metric
        self.num_rows, self.dim = x.shape
        self.device = x.device
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32

    def _values(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.dtype)
        return unit_rows(x) if self.metric == "cosine" else x

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of about 4 million values."""
        size = max(1, ROW_BLOCK_VALUES // max(1, self.dim))
        for start in range(0, self.num_rows, size):
            yield start, self._values(self.x[start : start + size])

    def take(self, index: npt.NDArray[np.int64]) -> torch.Tensor:
        """The rows at ``index``."""
        return self._values(self.x[torch.from_numpy(index).to(self.device)])

    def mean_variance(self) -> float:
        """As scikit-learn's tolerance: weights do not count."""
        plain = self if self.weights is None else MatrixRows(self.x, None, self.metric)
        return super(MatrixRows, plain).mean_variance()

    def lloyd_step(self, centers: torch.Tensor) -> Step:
        """One pass; euclidean rows go to the op as they are."""
        if self.metric == "cosine":
            return super().lloyd_step(centers)
        ids, sums, counts, inertia = ops.lloyd_step(
            self.x, centers.to(self.dtype), weights=self.weights, metric=self.metric
        )
        return Step(require_finite(ids), sums, counts.double(), float(inertia))


def require_finite(ids: torch.Tensor) -> torch.Tensor:
    """``ids``, unless one is -1: the op's mark for a row with NaN or Inf."""
    if ids.numel() and int(ids.min()) < 0:
        row = int(torch.nonzero(ids < 0)[0])
        raise ValueError(f"X contains NaN or infinity in row {row}; remove or impute such rows")
    return ids
