"""The rows that k-means clusters: what a fit may ask of them, and those of a matrix.

The fits in ``kmeans_lloyd.py`` and ``kmeans_minibatch.py`` see only this interface
(``image_rows.py`` has those of images, ``sharded_rows.py`` those that are spread over ranks). Under
``metric="cosine"`` the rows are the unit vectors of the given ones (spherical k-means).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from clustermim_fast import ops
from clustermim_fast.ranks import ALONE, Alone
from clustermim_fast.tokenizers.serial import rounded, serially
from clustermim_fast.tokenizers.totals import Step, Totals

# Values of a block of rows: 16 MiB as float32.
ROW_BLOCK_VALUES = 1 << 22

Index = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class NotFinite(ValueError):
    """The first row with NaN or infinity."""

    def __init__(self, row: int, where: str = "") -> None:
        super().__init__(
            f"X contains NaN or infinity in row {row}{where}; remove or impute such rows"
        )
        self.row = row


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows divided by their length; a zero row stays zero."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    # So that the squares neither over- nor underflow.
    scaled = torch.where(largest > 0, rows / largest, rows)
    length = scaled.square().sum(dim=1, keepdim=True).sqrt()
    return torch.where(length > 0, scaled / length, scaled)


class Rows(ABC):
    """N rows of D values, read block by block.

    Where rows are spread over ranks, N and every result are those of all of them together; ids and
    ``blocks`` are of the ``local`` ones.
    """

    num_rows: int
    dim: int
    metric: str
    dtype: torch.dtype  # in which centroids are compared with the rows
    device: torch.device
    weights: torch.Tensor | None = None  # of the local rows
    exact = False  # all sums are integers of one unit: see Totals
    group: Alone = ALONE

    @property
    def local(self) -> Rows:
        """The rows that this process holds."""
        return self

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(index of the first row, rows [n, D] in ``dtype``), in order, at fixed places."""

    @abstractmethod
    def take(self, index: Index) -> torch.Tensor:
        """The rows [len(index), D] in ``dtype``."""

    def weights_at(self, index: Index) -> Float64:
        """Weights [len(index)] of these rows."""
        if self.weights is None:
            return np.ones(len(index))
        return self.weights[torch.from_numpy(index).to(self.device)].double().cpu().numpy()

    def number(self, index: Index) -> Index:
        """Numbers, among all rows, of the local rows at ``index``."""
        return index

    def copy(self, index: Index) -> MatrixRows:
        """The rows at ``index``, with their weights, in memory on every rank."""
        weights = None
        if self.weights is not None:
            weights = torch.from_numpy(self.weights_at(index)).to(self.device)
        return MatrixRows(self.take(index), weights, self.metric)

    def subset(self, index: Index) -> Rows:
        """The rows at ``index``, with their weights, spread as these are."""
        return self.copy(index)

    def new_ids(self, num_clusters: int) -> torch.Tensor | None:
        """A place for the ids of the local rows; None: they are not kept."""
        return torch.empty(self.local.num_rows, dtype=torch.int64, device=self.device)

    def accumulate(self, centers: torch.Tensor, totals: Totals) -> torch.Tensor | None:
        """Assign these rows to ``centers`` [K, D] and add them to ``totals``; their ids."""
        ids = self.new_ids(len(centers))
        for start, rows in self.blocks():
            weights = None if self.weights is None else self.weights[start : start + len(rows)]
            part = ops.lloyd_step(rows, centers, weights=weights, metric=self.metric)
            require_finite(part[0], start)
            if ids is not None:
                ids[start : start + len(rows)] = part[0]
            totals.add(*part[1:])
        return ids

    def lloyd_step(self, centers: torch.Tensor) -> Step:
        """Assign all rows to ``centers`` [K, D] (rounded to ``dtype``) and add them up.

        NotFinite names the first row with NaN or Inf, on every rank.
        """
        centers = rounded(centers, self.dtype)
        totals = Totals(centers, self.exact)
        ids, bad = None, -1
        try:
            ids = self.local.accumulate(centers, totals)
        except NotFinite as error:
            bad = error.row
        found = self.group.each(np.array([bad]))[:, 0]
        if (found >= 0).any():
            rank = int(np.argmax(found >= 0))
            raise NotFinite(int(found[rank]), f" of rank {rank}" if len(found) > 1 else "")
        return totals.step(self.group, ids)

    def unweighted(self) -> Rows:
        """The same rows, each of weight 1."""
        return self

    def mean_variance(self) -> float:
        """Mean over features of their variances, weights ignored (as scikit-learn's tolerance).

        Two assignments to a single centroid give the sums and the squared distances, in the ops'
        order, so that the result does not depend on the thread count. NotFinite on NaN or Inf.
        """
        rows = self.unweighted()
        step = rows.lloyd_step(torch.zeros(1, self.dim, dtype=torch.float64, device=self.device))
        mean = step.sums / self.num_rows
        if self.metric == "cosine":  # unit rows: the mean of |x|^2 is 1
            return max(0.0, 1.0 - float(mean.square().sum())) / self.dim
        return rows.lloyd_step(mean).inertia / (self.num_rows * self.dim)

    def farthest(self, centers: torch.Tensor, count: int) -> tuple[torch.Tensor, Float64]:
        """Up to ``count`` different rows, farthest from their centroid first, and their weights.

        Equal distances go to the lower number; rows at distance 0 or of weight 0 are left out.
        """
        distance, index = self.local.far_rows(centers.to(self.dtype), count)
        distance, index = self.group.join(distance), self.group.join(self.number(index))
        index = index[np.lexsort((index, -distance))]
        index = index[self.distinct(index, count)]
        return self.take(index), self.weights_at(index)

    def far_rows(self, centers: torch.Tensor, count: int) -> tuple[Float64, Index]:
        """Distances and indices of these rows for :meth:`farthest`."""
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
        return best_distance, best_index

    def distinct(self, index: Index, count: int) -> list[int]:
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

    def draw(self, shares: Index, points: Float64) -> Index:
        """Numbers of rows drawn with probability proportional to ``shares`` [n] of the local rows.

        For each of ``points`` (in [0, 1)) the row at which the sum over all rows so far passes this
        part of the whole. Integers, so that it does not matter how the rows are spread.
        """
        running = np.cumsum(shares)
        totals = self.group.each(running[-1:] if len(running) else np.zeros(1, dtype=np.int64))
        ends = np.cumsum(totals[:, 0])
        whole = int(ends[-1])
        if whole == 0:
            return self.draw(np.ones(len(shares), dtype=np.int64), points)
        target = np.minimum((points * whole).astype(np.int64), whole - 1)
        end = ends[self.group.rank]
        target -= end - totals[self.group.rank, 0]
        mine = (target >= 0) & (target < totals[self.group.rank, 0])
        drawn = np.zeros(len(points), dtype=np.int64)
        drawn[mine] = self.number(np.searchsorted(running, target[mine], side="right"))
        return self.group.each(drawn).sum(axis=0)


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

    def take(self, index: Index) -> torch.Tensor:
        """The rows at ``index``."""
        return self._values(self.x[torch.from_numpy(index).to(self.device)])

    def subset(self, index: Index) -> MatrixRows:
        """The rows at ``index`` in their own dtype."""
        chosen = torch.from_numpy(index.astype(np.int64)).to(self.device)
        weights = None if self.weights is None else self.weights[chosen]
        return MatrixRows(self.x[chosen], weights, self.metric)

    def unweighted(self) -> MatrixRows:
        """The same tensor."""
        return self if self.weights is None else MatrixRows(self.x, None, self.metric)

    def accumulate(self, centers: torch.Tensor, totals: Totals) -> torch.Tensor | None:
        """One pass; euclidean rows go to the op as they are."""
        if self.metric == "cosine":
            return super().accumulate(centers, totals)
        part = ops.lloyd_step(self.x, centers, weights=self.weights, metric=self.metric)
        require_finite(part[0])
        totals.add(*part[1:])
        return part[0]


def require_finite(ids: torch.Tensor, start: int = 0) -> torch.Tensor:
    """``ids``, unless one is -1: the op's mark for a row with NaN or Inf."""
    if ids.numel() and int(serially(lambda values: values.min(), ids)) < 0:
        raise NotFinite(start + int(torch.nonzero(ids < 0)[0]))
    return ids
