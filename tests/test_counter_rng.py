"""Random numbers are a function of their coordinates alone, and look random."""

from __future__ import annotations

import numpy as np
import pytest

from clustermim_fast import counter_rng as rng


def test_known_values_never_change():
    """A change here would change the crops and masks of every run that resumes."""
    got = rng.bits(0, 0, [0, 1], rng.STREAM_CROP, 2)
    assert got.dtype == np.uint64
    assert got.tolist() == rng_reference(0, 0, [0, 1], rng.STREAM_CROP, 2)


def rng_reference(seed, epoch, samples, stream, count):
    """SplitMix64 in Python integers, from its published definition."""
    ones = (1 << 64) - 1
    gamma = 0x9E3779B97F4A7C15

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ones
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ones
        return z ^ (z >> 31)

    rows = []
    for sample in samples:
        key = 0
        for value in (seed, stream, epoch, sample):
            key = mix(key ^ mix((value + gamma) & ones))
        rows.append([mix((key + (j + 1) * gamma) & ones) for j in range(count)])
    return rows


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(7, 3, 1), (-1, 0, 2), (2**63, 10**6, 4)])
def test_equals_the_definition(seed, epoch, stream):
    samples = [0, 5, 2**40, -3]
    assert rng.bits(seed, epoch, samples, stream, 5).tolist() == rng_reference(
        seed, epoch, samples, stream, 5
    )


def test_independent_of_the_batch():
    whole = rng.uniform(1, 2, np.arange(100), rng.STREAM_MASK, 7)
    parts = [rng.uniform(1, 2, [i], rng.STREAM_MASK, 7) for i in range(100)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_uniform():
    values = rng.uniform(0, 0, np.arange(2000), rng.STREAM_CROP, 50)
    assert values.min() >= 0.0
    assert values.max() < 1.0
    # 100,000 values: the mean's deviation is 0.0009, a bin's 0.003 of its share.
    assert abs(values.mean() - 0.5) < 5e-3
    histogram = np.histogram(values, bins=10, range=(0, 1))[0]
    assert np.abs(histogram / values.size - 0.1).max() < 5e-3
    correlation = np.corrcoef(values[:, 0], values[:, 1])[0, 1]
    assert abs(correlation) < 0.1


def test_coordinates_all_matter():
    base = rng.bits(0, 0, [3], rng.STREAM_CROP, 4)
    for other in [(1, 0, 3, 0), (0, 1, 3, 0), (0, 0, 4, 0), (0, 0, 3, 1)]:
        seed, epoch, sample, stream = other
        assert not np.array_equal(base, rng.bits(seed, epoch, [sample], stream, 4))
    # seed and epoch do not merely add up
    assert not np.array_equal(rng.bits(1, 0, [3], 0, 4), rng.bits(0, 1, [3], 0, 4))


def test_permutation():
    first, second = rng.permutation(0, 0, 1000), rng.permutation(0, 1, 1000)
    assert sorted(first) == list(range(1000))
    assert not np.array_equal(first, second)
    assert rng.permutation(0, 0, 0).shape == (0,)


def test_refuses():
    with pytest.raises(ValueError, match=r"samples must have shape \[B\]"):
        rng.bits(0, 0, [[1]], 0, 1)
    with pytest.raises(ValueError, match="count must be >= 0"):
        rng.bits(0, 0, [1], 0, -1)
