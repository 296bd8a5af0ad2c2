"""First centroids: k-means++ as scikit-learn defines it, or distinct random rows."""

from __future__ import annotations

import math

import numpy as np
import torch

from clustermim_fast.tokenizers.rows import Float64, Index, Rows
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
    nearest centroid so far; the trial that lowers the total most is kept. Draws and gains are
    counted in integers: the rows picked do not depend on how they are spread over ranks.

    Returns:
        [K, D] float64, rows of the data.
    """
    weights = row_weights(rows.local)
    trials = 2 + int(math.log(num_clusters))
    first = rows.draw(as_integers(weights, unit(rows, weights)), random.random_sample(1))
    distances = SeedDistances(rows, first)
    chosen = [int(first[0])]
    for _ in range(1, num_clusters):
        potential = weights * distances.closest
        exponent = unit(rows, potential)
        drawn = rows.draw(as_integers(potential, exponent), random.uniform(size=trials))
        nearer = distances.nearer(drawn)
        lowered = [weights[i] * (distances.closest[i] - d) for i, d in nearer]
        gains = np.array([as_integers(values, exponent).sum() for values in lowered])
        best = int(np.argmax(rows.group.each(gains).sum(axis=0)))
        index, distance = nearer[best]
        distances.closest[index] = distance
        chosen.append(int(drawn[best]))
    return rows.take(np.array(chosen, dtype=np.int64)).double()


def unit(rows: Rows, values: Float64) -> int:
    """The exponent e for which all ``values`` >= 0 of all rows, times 2^e, add up to < 2^62."""
    largest = float(rows.group.each(np.array([values.max(initial=0.0)])).max())
    return 61 - rows.num_rows.bit_length() - math.frexp(largest)[1]


def as_integers(values: Float64, exponent: int) -> Index:
    """``values`` >= 0 times 2^exponent, rounded down."""
    half = exponent // 2  # 2.0**exponent itself may overflow
    return (values * 2.0**half * 2.0 ** (exponent - half)).astype(np.int64)


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


def row_weights(rows: Rows) -> Float64:
    """The weights [N] of all rows, ones where none are given."""
    return rows.weights_at(np.arange(rows.num_rows))
