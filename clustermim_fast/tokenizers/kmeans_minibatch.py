"""Mini-batch k-means with scikit-learn's update, re-assignment and stopping rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clustermim_fast.tokenizers.kmeans_lloyd import imbalance, project, squared_distance
from clustermim_fast.tokenizers.kmeans_report import Iteration
from clustermim_fast.tokenizers.rows import Rows
from clustermim_fast.tokenizers.serial import Values, serially

STARVED = 0.01
"""Default of reassignment_ratio, as scikit-learn's MiniBatchKMeans has it."""


@dataclass
class BatchResult:
    """What one mini-batch did: cost before the update, squared shift, re-seeded clusters."""

    inertia: float
    shift: float
    reseeded: int
    counts: torch.Tensor


@dataclass
class MiniBatch:
    """Centroids [K, D] float64 as running means of all rows they were ever given.

    Attributes:
        counts: [K] float64, the weight of these rows.
        random: numpy RandomState that draws re-seeding rows.
        reassignment_ratio: clusters whose count is below this share of the largest are re-seeded
            with random rows of the batch, every 10 * K rows or when a cluster has no row at all.
    """

    centers: torch.Tensor
    counts: torch.Tensor
    random: np.random.RandomState
    reassignment_ratio: float
    rows_since_reassignment: int = 0

    def step(self, rows: Rows, *, reseed: bool = True) -> BatchResult:
        """One batch: assign to the old centroids, then move each by its rows at rate 1 / count.

        ``reseed=False`` leaves starved clusters to an explicit :meth:`reseed`.
        """
        before = self.centers
        result = rows.lloyd_step(before)
        totals = self.counts + result.counts
        means = serially(_running_means, before, self.counts, result.sums, result.counts)
        self.centers = project(means, rows.metric, before)
        self.counts = totals
        reseeded = 0
        if reseed and self._is_due(rows.num_rows):
            reseeded = self.reseed(rows, self.counts, self.reassignment_ratio * self.counts.max())
        shift = squared_distance(self.centers, before)
        return BatchResult(result.inertia, shift, reseeded, result.counts)

    def _is_due(self, batch: int) -> bool:
        self.rows_since_reassignment += batch
        if bool((self.counts == 0).any()) or self.rows_since_reassignment >= 10 * len(self.counts):
            self.rows_since_reassignment = 0
            return self.reassignment_ratio > 0
        return False

    def reseed(self, rows: Rows, judged: torch.Tensor, lowest: torch.Tensor) -> int:
        """Replace centroids whose ``judged`` count [K] is below ``lowest`` by random rows."""
        counts = judged.cpu().numpy()
        starved = counts < float(lowest)
        if starved.sum() > 0.5 * rows.num_rows:
            starved[np.argsort(counts, kind="stable")[int(0.5 * rows.num_rows) :]] = False
        number = int(starved.sum())
        if not number:
            return 0
        index = self.random.choice(rows.num_rows, replace=False, size=number).astype(np.int64)
        mask = torch.from_numpy(starved).to(self.centers.device)
        self.centers = self.centers.clone()
        self.centers[mask] = rows.take(index).double()
        self.counts[mask] = self.counts[~mask].min()
        return number


def _running_means(before: Values, seen: Values, sums: Values, counts: Values) -> Values:
    unhit = counts == 0
    means = before * seen[:, None]
    means += sums
    means /= (seen + counts + unhit)[:, None]
    means[unhit] = before[unhit]
    return means


@dataclass
class EpochTotals:
    """What the batches of one pass add up to."""

    counts: torch.Tensor
    inertia: float = 0.0
    shift: float = 0.0
    reseeded: int = 0

    @classmethod
    def zero(cls, like: torch.Tensor) -> EpochTotals:
        """Nothing yet; ``like`` is a tensor [K]."""
        return cls(torch.zeros_like(like, dtype=torch.float64))

    def add(self, result: BatchResult) -> None:
        """Count one batch."""
        self.counts += result.counts
        self.inertia += result.inertia
        self.shift += result.shift
        self.reseeded += result.reseeded

    def iteration(self, seconds: float) -> Iteration:
        """The pass as one entry of the report."""
        return Iteration(
            self.inertia, None, self.reseeded, imbalance(self.counts), self.shift, seconds
        )


@dataclass
class EarlyStop:
    """Stop when the smoothed cost has not fallen for ``patience`` batches, or on a small shift."""

    num_rows: int
    tol: float
    patience: int | None
    smoothed: float | None = None
    lowest: float | None = None
    without_gain: int = 0
    batches: int = 0

    def reason(self, result: BatchResult, batch: int) -> str:
        """Why to stop after this batch, or ""."""
        self.batches += 1
        cost = result.inertia / batch
        if self.batches == 1:
            return ""  # before any update: it would be the lowest by chance of the initialisation
        alpha = min(batch * 2.0 / (self.num_rows + 1), 1.0)
        self.smoothed = (
            cost if self.smoothed is None else self.smoothed * (1 - alpha) + cost * alpha
        )
        if self.tol > 0 and result.shift <= self.tol:
            return "centroids moved less than tol"
        if self.lowest is None or self.smoothed < self.lowest:
            self.lowest, self.without_gain = self.smoothed, 0
        else:
            self.without_gain += 1
        if self.patience is not None and self.without_gain >= self.patience:
            return f"inertia did not fall for {self.patience} batches"
        return ""
