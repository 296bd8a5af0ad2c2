"""How far an accuracy may be off: 95 % intervals for one result and for the difference of two."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

__all__ = ["BOOTSTRAP_RESAMPLES", "accuracy_interval", "bootstrap_interval", "gain_interval"]

BOOTSTRAP_RESAMPLES = 2000


def accuracy_interval(correct: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Accuracy of correct [N] and its Wilson 95 % interval, all in percent."""
    if len(correct) == 0:
        raise ValueError("correct: expected at least one test image, got none")
    test = binomtest(int(correct.sum()), len(correct))
    interval = test.proportion_ci(0.95, method="wilson")
    return 100 * float(correct.mean()), 100 * float(interval.low), 100 * float(interval.high)


def bootstrap_interval(share: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Mean of share [N] (of seeds that got each test image right) and its 95 % interval, percent.

    Percentile bootstrap over test images. Unlike Wilson's it has no width where all shares are
    equal: with a single seed take `accuracy_interval`.
    """
    mean = 100 * float(share.mean())
    if len(share) == 1 or np.ptp(share) == 0:
        return mean, mean, mean
    random = np.random.default_rng(seed)
    count = len(share)
    means = [share[random.integers(count, size=count)].mean() for _ in range(BOOTSTRAP_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return mean, 100 * float(low), 100 * float(high)


def gain_interval(
    ours: NDArray[np.bool_] | NDArray[np.float64], other: NDArray[np.bool_] | NDArray[np.float64]
) -> tuple[float, float]:
    """Gain of `ours` over `other` on the same N test images and the half width of its 95 %
    interval, in points. Right or wrong, or the share of seeds that were right.

    Paired: images that both get right or wrong carry no uncertainty. Covers the sampling of test
    images only, not the seed of the training run.
    """
    if ours.shape != other.shape or len(ours) == 0:
        raise ValueError(f"other: expected {ours.shape} like ours and not empty, got {other.shape}")
    difference = ours.astype(np.float64) - other.astype(np.float64)
    return 100 * float(difference.mean()), 196.0 * float(difference.std()) / math.sqrt(len(ours))
