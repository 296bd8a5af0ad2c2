"""How far an accuracy may be off: 95 % intervals for one result and for the difference of two."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

__all__ = ["BOOTSTRAP_RESAMPLES", "accuracy_interval", "gain_interval"]

BOOTSTRAP_RESAMPLES = 2000


def accuracy_interval(
    share: NDArray[np.bool_] | NDArray[np.float64], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of share [N] and its 95 % interval over test images, all in percent.

    Of each test image: right or wrong, or the share of seeds that were right. Percentile bootstrap;
    where all images are equal, of which it makes nothing, Wilson's.
    """
    count = len(share)
    if count == 0:
        raise ValueError("correct: expected at least one test image, got none")
    mean = float(share.mean())
    values, counts = np.unique(share.astype(np.float64), return_counts=True)
    if len(values) == 1:
        low, high = binomtest(round(mean * count), count).proportion_ci(0.95, method="wilson")
    else:  # how often a resample of N images holds each value
        random = np.random.default_rng(seed)
        drawn = random.multinomial(count, counts / count, BOOTSTRAP_RESAMPLES)
        low, high = np.percentile(drawn @ values / count, [2.5, 97.5])
    return 100 * mean, 100 * float(low), 100 * float(high)


def gain_interval(
    ours: NDArray[np.bool_] | NDArray[np.float64], other: NDArray[np.bool_] | NDArray[np.float64]
) -> tuple[float, float]:
    """Gain of `ours` over `other` on the same N test images and the half width of its 95 %
    interval, in points. Right or wrong, or the share of seeds that were right.

    Paired: only images that one side alone gets right tell them apart. Gain ± half width holds the
    interval of Bonett and Price (2012), which adds an image won and one lost: none is certain
    because all images agree. Covers the sampling of test images only, not the seed of the training
    run.
    """
    if ours.shape != other.shape or len(ours) == 0:
        raise ValueError(f"other: expected {ours.shape} like ours and not empty, got {other.shape}")
    difference = ours.astype(np.float64) - other.astype(np.float64)
    added = np.append(difference, [1.0, -1.0])
    gain, centre = float(difference.mean()), float(added.mean())
    half = 1.96 * float(added.std()) / math.sqrt(len(added))
    return 100 * gain, 100 * (half + abs(gain - centre))
