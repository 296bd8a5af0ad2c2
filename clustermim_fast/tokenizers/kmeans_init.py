"""First centroids: k-means++ as scikit-learn defines it, or distinct random rows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from clustermim_fast.tokenizers.rows import Rows
from clustermim_fast.tokenizers.seed_distances import SeedDistances

# Its streams are frozen: the same seed, the same codebook in years.
RandomState = np.random.RandomState


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
    nearest centroid so far; the trial that lowers the total most is kept.

    Returns:
        [K, D] float64, rows of the data.
    """
    weights = row_weights(rows)
    trials = 2 + int(math.log(num_clusters))
    chosen = [int(random.choice(rows.num_rows, p=weights / weights.sum()))]
    distances = SeedDistances(rows, chosen[0])
    for _ in range(1, num_clusters):
        total = np.cumsum(weights * distances.closest)
        drawn = np.searchsorted(total, random.uniform(size=trials) * total[-1])
        drawn = np.minimum(drawn, rows.num_rows - 1).astype(np.int64)
        nearer = distances.nearer(drawn)
        gains = [np.sum(weights[i] * (distances.closest[i] - d)) for i, d in nearer]
        best = int(np.argmax(gains))
        index, distance = nearer[best]
        distances.closest[index] = distance
        chosen.append(int(drawn[best]))
    return rows.take(np.array(chosen, dtype=np.int64)).double()


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
