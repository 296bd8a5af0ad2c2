"""Mini-batches against scikit-learn's MiniBatchKMeans: updates, re-assignment, stopping."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import sklearn.cluster
import torch

from clustermim_fast import KMeans
from clustermim_fast.tokenizers.kmeans_minibatch import BatchResult, EarlyStop


def data(n=3000, d=6, k=8, dtype=np.float64):
    random = np.random.default_rng(0)
    centers = 3 * random.normal(size=(k, d))
    return (centers[random.integers(0, k, n)] + random.normal(size=(n, d))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("weighted", [False, True])
def test_partial_fit_equals_scikit_learns(dtype, weighted):
    x = data(dtype=dtype)
    weights = np.random.default_rng(1).random(len(x)) + 0.1
    start = x[:8]
    ours = KMeans(8, init=start, algorithm="minibatch", reassignment_ratio=0.0)
    theirs = sklearn.cluster.MiniBatchKMeans(8, init=start, n_init=1, reassignment_ratio=0.0)
    for begin in range(0, len(x), 250):
        part = slice(begin, begin + 250)
        w = weights[part] if weighted else None
        ours.partial_fit(x[part], sample_weight=w)
        theirs.partial_fit(x[part], sample_weight=w)
        # Theirs are stored and updated in X's dtype, ours in float64.
        error = 1e-12 if dtype == np.float64 else 1e-4
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=error)
        assert np.array_equal(ours.labels_, theirs.labels_)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-4)


def test_centroids_are_running_means_of_the_rows_they_were_given():
    """Every cluster far from the others, so that no row ever changes its cluster."""
    random = np.random.default_rng(2)
    truth = 100.0 * np.eye(4)
    labels = random.integers(0, 4, 800)
    x = truth[labels] + random.normal(size=(800, 4))
    model = KMeans(4, init=truth, algorithm="minibatch", reassignment_ratio=0.0)
    for begin in range(0, 800, 100):
        model.partial_fit(x[begin : begin + 100])
    means = np.stack([x[labels == k].mean(axis=0) for k in range(4)])
    np.testing.assert_allclose(model.cluster_centers_, means, rtol=1e-12)


def test_starved_clusters_are_reseeded_from_the_batch():
    x = data()
    start = np.concatenate([x[:7], np.full((1, 6), 1e3)])  # the last wins no row
    model = KMeans(8, init=start, algorithm="minibatch", random_state=0).partial_fit(x[:500])
    assert np.abs(model.cluster_centers_).max() < 100
    last = model.cluster_centers_[7]
    assert (np.abs(x[:500] - last).sum(axis=1) == 0).any()
    kept = KMeans(
        8, init=start, algorithm="minibatch", random_state=0, reassignment_ratio=0.0
    ).partial_fit(x[:500])
    assert (kept.cluster_centers_[7] == 1e3).all()
    # The same rows as scikit-learn's at the same seed: both draw them the same way.
    theirs = sklearn.cluster.MiniBatchKMeans(8, init=start, n_init=1, random_state=0)
    np.testing.assert_allclose(
        model.cluster_centers_, theirs.partial_fit(x[:500]).cluster_centers_, atol=1e-12
    )


def test_at_most_half_a_batch_is_reseeded():
    x = data(n=20)
    start = np.concatenate([x[:2], 1e3 + np.arange(18)[:, None] + np.zeros((18, 6))])
    model = KMeans(20, init=start, algorithm="minibatch", random_state=0).partial_fit(x)
    assert (np.abs(model.cluster_centers_).max(axis=1) < 100).sum() == 2 + 10


def test_fit_is_about_as_good_as_scikit_learns():
    x = data(dtype=np.float32)
    ours = [KMeans(8, algorithm="minibatch", random_state=s).fit(x) for s in range(5)]
    theirs = [
        sklearn.cluster.MiniBatchKMeans(8, n_init="auto", random_state=s).fit(x) for s in range(5)
    ]
    best = min(m.inertia_ for m in theirs)
    spread = max(m.inertia_ for m in theirs) - best
    assert np.median([m.inertia_ for m in ours]) <= best + spread + 0.05 * best
    for model in ours:
        assert np.array_equal(model.labels_, model.predict(x))
        assert model.report_.iterations
        assert model.report_.stop


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_scikit_learns_fit_at_the_same_seed(weighted):
    """Same draws, same rules: even the number of steps is the same."""
    x = data()
    weights = np.random.default_rng(1).random(len(x)) if weighted else None
    options = {"n_init": 3, "batch_size": 200, "random_state": 0}
    ours = KMeans(8, algorithm="minibatch", tol=0.0, **options).fit(x, sample_weight=weights)
    theirs = sklearn.cluster.MiniBatchKMeans(8, max_iter=300, **options)
    theirs.fit(x, sample_weight=weights)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-9)
    assert np.array_equal(ours.labels_, theirs.labels_)
    assert ours.n_iter_ == theirs.n_iter_


def test_partial_fit_goes_on_from_a_fit():
    x = data()
    model = KMeans(8, random_state=0).fit(x)
    before = model.cluster_centers_.copy()
    model.partial_fit(x[:100])
    moved = np.abs(model.cluster_centers_ - before).max()
    assert 0 < moved < 0.2  # 100 rows on top of 3000


def test_a_refused_batch_changes_nothing_and_a_small_one_is_welcome():
    x = data()
    model = KMeans(8, random_state=0).partial_fit(x[:500])
    before = model.cluster_centers_.copy()
    bad = x[500:600].copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in row 3"):
        model.partial_fit(bad)
    assert np.array_equal(model.cluster_centers_, before)
    model.partial_fit(x[500:503])  # fewer rows than clusters, after the first batch
    assert not np.array_equal(model.cluster_centers_, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_stream_of_batches(dtype):
    """Batches from a generator, each gone when the next is made; the means of all of their rows."""
    random = np.random.default_rng(2)
    truth = 100.0 * np.eye(4)
    alive = weakref.WeakSet()
    sums, counts = np.zeros((4, 4)), np.zeros(4)

    def stream():
        for _ in range(12):
            labels = random.integers(0, 4, 100)
            batch = torch.from_numpy(truth[labels] + random.normal(size=(100, 4))).to(dtype)
            np.add.at(sums, labels, batch.double().numpy())
            np.add.at(counts, labels, 1)
            alive.add(batch)
            yield batch

    model = KMeans(4, algorithm="minibatch", random_state=0, reassignment_ratio=0.0)
    for batch in stream():
        model.partial_fit(batch)
        assert len(alive) == 1  # this one
    assert model.n_steps_ == 12
    centers = model.cluster_centers_
    assert centers.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    order = np.argsort(-centers.numpy(), axis=0)[0]
    error = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(
        centers.numpy()[order], sums / counts[:, None], rtol=error, atol=100 * error
    )


def test_a_first_batch_of_too_few_rows_names_the_remedies():
    x = data()
    model = KMeans(8, algorithm="minibatch", random_state=0)
    with pytest.raises(ValueError, match=r"n_samples=5 should be >= n_clusters=8.*first call"):
        model.partial_fit(x[:5])
    model.partial_fit(x[:50]).partial_fit(x[50:55])  # the first remedy; later it does not matter
    given = KMeans(8, init=x[:8], reassignment_ratio=0.0).partial_fit(x[:5])  # the second
    np.testing.assert_array_equal(given.cluster_centers_, x[:8])


def test_cosine_batches_keep_unit_centroids():
    x = data()
    model = KMeans(5, algorithm="minibatch", metric="cosine", random_state=0)
    for begin in range(0, 1000, 250):
        model.partial_fit(x[begin : begin + 250])
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_, axis=1), 1, rtol=1e-12)


def test_early_stop_rule():
    """Smoothing with alpha = 2 batch / (n + 1), the first batch ignored, patience counted."""
    rule = EarlyStop(num_rows=99, tol=0.0, patience=2)
    counts = torch.zeros(1)

    def feed(cost):
        return rule.reason(BatchResult(10 * cost, 1.0, 0, counts), 10)

    assert feed(1.0) == ""  # ignored: before any update
    assert feed(5.0) == ""
    assert feed(4.0) == ""
    assert rule.smoothed == pytest.approx(5.0 * 0.8 + 4.0 * 0.2)
    assert feed(9.0) == ""
    assert "did not fall for 2 batches" in feed(9.0)
    small = EarlyStop(num_rows=99, tol=0.5, patience=None)
    small.reason(BatchResult(1.0, 1.0, 0, counts), 10)
    assert "tol" in small.reason(BatchResult(1.0, 0.4, 0, counts), 10)
