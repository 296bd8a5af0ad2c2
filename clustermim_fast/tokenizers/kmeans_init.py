"""First centroids: k-means++ as scikit-learn defines it, or distinct random rows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from clustermim_fast.tokenizers.rows import Rows

RandomState = (
    np.random.RandomState
)  # its streams are frozen: the same seed, the same codebook in years


def as_random_state(seed: object) -> np.random.RandomState:
    """A RandomState from None, an int, a RandomState or a Generator.

    Raises:
        TypeError: for anything else.
    """
    if seed is None:
        return np.random.mtrand._rand  # the one numpy.random.seed sets, as in scikit-learn
    if isinstance(seed, np.random.RandomState):
        return seed
    if isinstance(seed, np.random.Generator):
        return np.random.RandomState(int(seed.integers(2**32)))
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        return np.random.RandomState(int(seed))
    expected = "None, an int, a numpy Generator or a numpy RandomState"
    raise TypeError(f"random_state must be {expected}, got {type(seed).__name__}")


def kmeans_plus_plus(rows: Rows, num_clusters: int, random: RandomState) -> torch.Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, with 2 + int(log K) trials a centroid).

    Each trial row is drawn with probability proportional to weight times squared distance to the
    nearest centroid so far; the trial that lowers the total most is kept. Distances are taken in
    the direct form (equal rows are at distance exactly 0) and totals are summed by one thread, so
    that the choice does not depend on the thread count.

    Returns:
        [K, D] float64, rows of the data.
    """
    weights = row_weights(rows)
    trials = 2 + int(math.log(num_clusters))
    first = int(random.choice(rows.num_rows, p=weights / weights.sum()))
    chosen = [first]
    wide = rows.dtype == torch.float64
    closest = _squared_distances(rows, rows.take(np.array([first])), wide)[0]
    if not wide and not 1e-30 < closest.max(initial=0.0) < 1e30:  # squares leave float32's range
        wide = True
        closest = _squared_distances(rows, rows.take(np.array([first])), wide)[0]
    potential = float(closest @ weights)
    for _ in range(1, num_clusters):
        targets = random.uniform(size=trials) * potential
        candidates = np.searchsorted(np.cumsum(weights * closest), targets)
        candidates = np.minimum(candidates, rows.num_rows - 1).astype(np.int64)
        distances = _squared_distances(rows, rows.take(candidates), wide)
        np.minimum(distances, closest, out=distances)
        potentials = [float(np.sum(d * weights)) for d in distances]
        best = int(np.argmin(potentials))
        potential, closest = potentials[best], distances[best].copy()
        chosen.append(int(candidates[best]))
    return rows.take(np.array(chosen, dtype=np.int64)).double()


def _squared_distances(rows: Rows, points: torch.Tensor, wide: bool) -> npt.NDArray[np.float64]:
    """[T, N] float64 from the T ``points`` to all rows, direct form (``wide``: in float64)."""
    dtype = torch.float64 if wide else rows.dtype
    points = points.to(dtype)
    out = np.empty((len(points), rows.num_rows))
    for start, block in rows.blocks():
        # This mode subtracts before it squares; the other one is |a|^2 - 2ab + |b|^2 by a GEMM,
        # whose bits change with the thread count.
        d = torch.cdist(points, block.to(dtype), compute_mode="donot_use_mm_for_euclid_dist")
        distance = d.cpu().numpy()
        np.multiply(distance, distance, out=out[:, start : start + len(block)], dtype=np.float64)
    return out


def random_rows(rows: Rows, num_clusters: int, random: RandomState) -> torch.Tensor:
    """K rows drawn without replacement and without equal values, weight as probability.

    Where fewer than K values exist the rest are repeats.

    Returns:
        [K, D] float64, rows of the data.
    """
    weights = row_weights(rows)
    # Exponential clocks: sorting Exp(1) / weight draws without replacement, in order.
    with np.errstate(divide="ignore"):
        clocks = random.exponential(size=rows.num_rows) / weights
    order = np.argsort(clocks, kind="stable").astype(np.int64)
    order = order[weights[order] > 0]
    positions = rows.distinct(order, num_clusters)
    chosen = order[positions]
    if len(chosen) < num_clusters:
        chosen = np.resize(chosen, num_clusters)
    return rows.take(chosen).double()


def row_weights(rows: Rows) -> npt.NDArray[np.float64]:
    """The weights [N] float64, ones where none are given."""
    if rows.weights is None:
        return np.ones(rows.num_rows)
    return rows.weights.double().cpu().numpy()
