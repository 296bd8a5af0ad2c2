"""First centroids: k-means++ as scikit-learn defines it, distinct random rows, seeds."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.cluster
import torch

from clustermim_fast import KMeans
from clustermim_fast.tokenizers.kmeans_init import as_random_state, kmeans_plus_plus, random_rows
from clustermim_fast.tokenizers.rows import MatrixRows
from clustermim_fast.tokenizers.seed_distances import SeedDistances


def data(n=500, d=4, dtype=np.float64):
    random = np.random.default_rng(0)
    return (6 * random.integers(0, 3, (n, d)) + random.normal(size=(n, d))).astype(dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_plus_plus_picks_the_rows_scikit_learn_picks(weighted):
    """Same random numbers, same definition: the same rows (the data have no near ties)."""
    x = data()
    weights = np.random.default_rng(5).random(len(x)) if weighted else None
    for seed in range(5):
        theirs, _ = sklearn.cluster.kmeans_plusplus(x, 20, sample_weight=weights, random_state=seed)
        rows = MatrixRows(
            torch.from_numpy(x), None if weights is None else torch.from_numpy(weights)
        )
        ours = kmeans_plus_plus(rows, 20, np.random.RandomState(seed))
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_plus_plus_inertia_is_not_worse_over_seeds():
    x = data(dtype=np.float32)

    def final(model, seeds):
        return np.array([model(seed).fit(x).inertia_ for seed in seeds])

    ours = final(lambda s: KMeans(30, random_state=s, max_iter=30), range(8))
    theirs = final(
        lambda s: sklearn.cluster.KMeans(30, n_init=1, random_state=100 + s, max_iter=30), range(8)
    )
    # Two samples of the same distribution: their means differ by less than 4 standard errors.
    error = np.sqrt(ours.var(ddof=1) / 8 + theirs.var(ddof=1) / 8)
    assert ours.mean() < theirs.mean() + 4 * error


def test_plus_plus_never_picks_a_value_twice_while_others_remain():
    x = np.repeat(np.arange(12.0)[:, None] * 1e-3 + 1e4, 30, axis=0)
    for seed in range(5):
        rows = MatrixRows(torch.from_numpy(x))
        picked = kmeans_plus_plus(rows, 12, np.random.RandomState(seed)).flatten().tolist()
        assert len(set(picked)) == 12


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_plus_plus_where_float32_squares_leave_their_range(scale):
    x = (data(dtype=np.float32) * np.float32(scale)).astype(np.float32)
    picked = kmeans_plus_plus(MatrixRows(torch.from_numpy(x)), 20, np.random.RandomState(0))
    unscaled = kmeans_plus_plus(
        MatrixRows(torch.from_numpy(x.astype(np.float64) / scale)), 20, np.random.RandomState(0)
    )
    np.testing.assert_allclose(picked.numpy() / scale, unscaled.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("d", "offset", "dtype"),
    [
        (3, 0.0, np.float32),
        (48, 0.0, np.float32),
        (768, 1e3, np.float32),
        (48, 1e6, np.float64),
    ],
)
def test_seed_distances_are_the_direct_ones(d, offset, dtype):
    """The matrix product only leaves rows out; every distance that counts is the direct form's."""
    random = np.random.default_rng(0)
    x = (offset + random.normal(size=(700, d))).astype(dtype)
    x[300:310] = x[0]
    distances = SeedDistances(MatrixRows(torch.from_numpy(x)), np.array([5]))
    seeds = np.array([0, 1, 305, 699])

    def direct(seed):
        difference = x - x[seed]
        return np.einsum("ij,ij->i", difference, difference).astype(np.float64)

    closest = direct(5)
    assert np.array_equal(distances.closest, closest)
    for seed, (index, distance) in zip(seeds, distances.nearer(seeds), strict=True):
        expected = direct(seed)
        assert np.array_equal(index, np.flatnonzero(expected < closest))
        assert np.array_equal(distance, expected[index])
        assert (expected[seed] == 0) and seed in index


def test_random_rows_are_distinct_values():
    x = np.repeat(np.arange(10.0)[:, None], [91, 1, 1, 1, 1, 1, 1, 1, 1, 1], axis=0)
    rows = MatrixRows(torch.from_numpy(x))
    for seed in range(10):
        picked = random_rows(rows, 10, np.random.RandomState(seed)).flatten().tolist()
        assert sorted(picked) == list(range(10))


def test_random_rows_follow_the_weights():
    x = np.arange(4.0)[:, None]
    rows = MatrixRows(torch.from_numpy(x), torch.tensor([1.0, 0.0, 2.0, 5.0], dtype=torch.float64))
    random = np.random.RandomState(0)
    first = np.array([float(random_rows(rows, 1, random)[0, 0]) for _ in range(2000)])
    share = np.array([(first == v).mean() for v in range(4)])
    expected = np.array([1, 0, 2, 5]) / 8
    # Binomial: within 5 standard deviations.
    assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2000)).all()


def test_random_states():
    x = data()
    by_int = KMeans(5, random_state=3).fit(x).cluster_centers_
    by_state = KMeans(5, random_state=np.random.RandomState(3)).fit(x).cluster_centers_
    assert np.array_equal(by_int, by_state)
    pair = [KMeans(5, random_state=np.random.default_rng(3)).fit(x) for _ in range(2)]
    assert np.array_equal(pair[0].cluster_centers_, pair[1].cluster_centers_)
    with pytest.raises(TypeError, match="random_state must be None, an int, a numpy Generator"):
        as_random_state("seed")


def test_init_array_and_callable():
    x = data()
    given = KMeans(3, init=x[:3], max_iter=1, tol=0).fit(x)
    called = KMeans(
        3, init=lambda X, n_clusters, random_state: X[:n_clusters], n_init=1, max_iter=1, tol=0
    ).fit(x)
    assert np.array_equal(given.cluster_centers_, called.cluster_centers_)
    with pytest.raises(ValueError, match=r"init must have shape .* = \[3, 4\], got \[2, 4\]"):
        KMeans(3, init=x[:2]).fit(x)
    with pytest.raises(ValueError, match="init contains NaN"):
        KMeans(3, init=np.full((3, 4), np.nan)).fit(x)


def test_n_init_keeps_the_best():
    x = data()
    single = [KMeans(12, init="random", n_init=1, random_state=s).fit(x).inertia_ for s in range(3)]
    state = np.random.RandomState(0)
    several = KMeans(12, init="random", n_init=10, random_state=state).fit(x).inertia_
    assert several <= min(single) * 1.05
    auto = KMeans(12, init="random", random_state=0).fit(x).inertia_
    ten = KMeans(12, init="random", n_init=10, random_state=0).fit(x).inertia_
    assert auto == ten
