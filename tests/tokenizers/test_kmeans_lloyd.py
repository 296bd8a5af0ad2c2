"""Lloyd against an independent float64 loop and against scikit-learn."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import sklearn.cluster
import torch
from sklearn.exceptions import ConvergenceWarning

from clustermim_fast import KMeans


def lloyd_float64(x, centers, weights=None, max_iter=300):
    """Plain numpy: direct distances, lowest index among equal ones, stop when no row moves."""
    x, centers = x.astype(np.float64), centers.astype(np.float64).copy()
    weights = np.ones(len(x)) if weights is None else weights
    ids = None
    for _ in range(max_iter):
        distance = ((x[:, None] - centers[None]) ** 2).sum(axis=2)
        new = distance.argmin(axis=1)
        if ids is not None and (new == ids).all():
            break
        ids = new
        for k in range(len(centers)):
            if weights[ids == k].sum() > 0:
                centers[k] = np.average(x[ids == k], axis=0, weights=weights[ids == k])
    return ids, centers, float((weights * distance.min(axis=1)).sum())


def blobs(n=600, d=5, k=7, dtype=np.float64):
    random = np.random.default_rng(0)
    centers = 4 * random.normal(size=(k, d))
    return (centers[random.integers(0, k, n)] + random.normal(size=(n, d))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_plain_loop(dtype, weighted):
    x = blobs(dtype=dtype)
    weights = np.random.default_rng(1).integers(0, 4, len(x)).astype(float) if weighted else None
    model = KMeans(7, init=x[:7], tol=0).fit(x, sample_weight=weights)
    ids, centers, inertia = lloyd_float64(x, x[:7], weights)
    assert np.array_equal(model.labels_, ids)
    # float32 centroids are the float64 means, rounded once.
    precision = 0 if dtype == np.float64 else 2**-23 * np.abs(centers).max()
    np.testing.assert_allclose(model.cluster_centers_, centers, rtol=1e-12, atol=precision)
    assert model.inertia_ == pytest.approx(inertia, rel=1e-6 if dtype == np.float32 else 1e-12)
    assert model.cluster_centers_.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equals_scikit_learn_at_equal_start(dtype):
    x = blobs(n=2000, d=12, k=15, dtype=dtype)
    ours = KMeans(15, init=x[:15]).fit(x)
    theirs = sklearn.cluster.KMeans(15, init=x[:15], n_init=1).fit(x)
    assert np.array_equal(ours.labels_, theirs.labels_)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-5)


def test_tol_is_scikit_learns():
    x = blobs(n=3000, d=3, k=4)
    for tol in (1e-1, 1e-2, 1e-3):
        ours = KMeans(12, init=x[:12], tol=tol).fit(x)
        theirs = sklearn.cluster.KMeans(12, init=x[:12], n_init=1, tol=tol).fit(x)
        assert ours.n_iter_ == theirs.n_iter_
        assert ours.report_.stop == "centroids moved less than tol"


def test_labels_and_inertia_belong_to_the_final_centroids_when_cut_short():
    x = blobs()
    model = KMeans(7, init=x[:7], max_iter=2, tol=0).fit(x)
    assert np.array_equal(model.labels_, model.predict(x))
    direct = ((x - model.cluster_centers_[model.labels_]) ** 2).sum()
    assert model.inertia_ == pytest.approx(direct, rel=1e-12)
    assert model.score(x) == pytest.approx(-direct, rel=1e-12)
    assert model.report_.stop == "max_iter = 2"


def test_report():
    x = blobs()
    model = KMeans(7, init=x[:7], tol=0).fit(x)
    report = model.report_
    assert len(report.iterations) == model.n_iter_
    assert report.iterations[0].moved == len(x)
    assert report.iterations[-1].moved == 0
    assert report.iterations[-1].shift == 0
    inertias = [i.inertia for i in report.iterations]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(inertias))
    assert report.converged
    assert sum(report.counts) == len(x)
    sizes = np.bincount(model.labels_, minlength=7)
    assert report.iterations[-1].imbalance == pytest.approx(7 * (sizes**2).sum() / len(x) ** 2)


def test_one_cluster_is_the_mean():
    x = blobs()
    model = KMeans(1).fit(x)
    np.testing.assert_allclose(model.cluster_centers_[0], x.mean(axis=0), rtol=1e-12)
    assert not model.labels_.any()


def test_as_many_clusters_as_rows():
    x = blobs(n=40)
    model = KMeans(40, random_state=0).fit(x)
    assert model.inertia_ == 0
    assert sorted(model.labels_) == list(range(40))


def test_constant_data_warns_and_does_not_hang():
    x = np.full((50, 3), 2.5, dtype=np.float32)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(1\).*n_clusters \(4\)"):
        model = KMeans(4, random_state=0).fit(x)
    assert model.inertia_ == 0
    assert (model.cluster_centers_ == 2.5).all()
    assert not model.labels_.any()  # lowest index among equal centroids


def test_fewer_distinct_rows_than_clusters():
    x = np.repeat(np.eye(3), 20, axis=0)
    for init in ("k-means++", "random"):
        with pytest.warns(ConvergenceWarning, match="Possibly due to duplicate"):
            model = KMeans(5, init=init, random_state=0).fit(x)
        assert model.inertia_ == 0
        assert np.isfinite(model.cluster_centers_).all()


def test_empty_clusters_take_the_farthest_rows():
    x = np.array([[0.0], [1.0], [2.0], [100.0], [101.0], [1000.0]])
    start = np.array([[1.0], [-500.0], [-600.0]])  # the last two win no row
    model = KMeans(3, init=start, max_iter=1, tol=0).fit(x)
    # 1000 and 101 leave cluster 0, farthest first.
    np.testing.assert_allclose(model.cluster_centers_, [[(0 + 1 + 2 + 100) / 4], [1000.0], [101.0]])
    assert model.report_.iterations[0].empty == 2
    assert model.report_.reseeded == 2
    theirs = sklearn.cluster.KMeans(3, init=start, n_init=1, tol=0).fit(x)
    ours = KMeans(3, init=start, tol=0).fit(x)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)


def test_equal_far_rows_seed_one_cluster_only():
    x = np.concatenate([np.zeros((10, 2)), np.full((10, 2), 9.0), [[5.0, 0.0]]])
    start = np.array([[1.0, 1.0], [50.0, 50.0], [60.0, 60.0]])
    with pytest.warns(ConvergenceWarning):  # one iteration: cluster 0 has lost its rows again
        first = KMeans(3, init=start, max_iter=1, tol=0).fit(x)
    assert first.report_.reseeded == 2
    assert first.cluster_centers_[1:].tolist() == [[9.0, 9.0], [5.0, 0.0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert KMeans(3, init=start, tol=0).fit(x).inertia_ == 0


def test_zero_weight_rows_never_seed_and_do_not_count():
    x = np.concatenate([blobs(n=100), np.full((1, 5), 1e6)])
    weights = np.ones(101)
    weights[100] = 0.0
    start = np.concatenate([x[:3], np.full((1, 5), -1e5)])
    model = KMeans(4, init=start, tol=0).fit(x, sample_weight=weights)
    assert np.abs(model.cluster_centers_).max() < 100
    again = KMeans(4, init="random", random_state=0).fit(x, sample_weight=weights)
    assert np.abs(again.cluster_centers_).max() < 100


def test_equal_weights_change_nothing():
    x = blobs()
    plain = KMeans(7, init=x[:7]).fit(x)
    doubled = KMeans(7, init=x[:7]).fit(x, sample_weight=np.full(len(x), 2.0))
    assert np.array_equal(plain.labels_, doubled.labels_)
    assert doubled.inertia_ == pytest.approx(2 * plain.inertia_, rel=1e-12)


def spherical_float64(x, centers, max_iter=100):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    for _ in range(max_iter):
        ids = (x @ centers.T).argmax(axis=1)
        sums = np.stack([x[ids == k].sum(axis=0) for k in range(len(centers))])
        centers = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return ids, centers, float((1 - (x * centers[ids]).sum(axis=1)).sum())


def test_cosine_is_spherical_kmeans():
    random = np.random.default_rng(3)
    x = blobs() * np.exp(random.normal(size=(600, 1)))  # lengths must not matter
    model = KMeans(6, init=x[:6], metric="cosine", tol=0).fit(x)
    ids, centers, inertia = spherical_float64(x, x[:6])
    assert np.array_equal(model.labels_, ids)
    np.testing.assert_allclose(model.cluster_centers_, centers, atol=1e-12)
    assert model.inertia_ == pytest.approx(inertia, rel=1e-9)
    assert np.array_equal(model.predict(x * 1000), ids)
    similarity = 1 - model.transform(x)
    assert np.array_equal(similarity.argmax(axis=1), ids)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_torch_dtypes(dtype):
    x = torch.from_numpy(blobs()).to(dtype)
    model = KMeans(7, init=x[:7], tol=0).fit(x)
    assert model.cluster_centers_.dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    assert model.labels_.dtype == torch.int64
    ids, _, _ = lloyd_float64(x.double().numpy(), x[:7].double().numpy())
    assert np.array_equal(model.labels_.numpy(), ids)
    assert torch.equal(model.predict(x), model.labels_)


def test_strided_input_equals_contiguous():
    x = blobs(d=10)
    ours = KMeans(5, init=np.ascontiguousarray(x[:5, ::2])).fit(x[:, ::2])
    plain = KMeans(5, init=np.ascontiguousarray(x[:5, ::2])).fit(np.ascontiguousarray(x[:, ::2]))
    assert np.array_equal(ours.labels_, plain.labels_)
    fortran = KMeans(5, init=x[:5]).fit(np.asfortranarray(x))
    assert np.array_equal(fortran.labels_, KMeans(5, init=x[:5]).fit(x).labels_)
    reverse = KMeans(5, init=x[:5]).fit(x[::-1])
    assert np.array_equal(reverse.labels_, KMeans(5, init=x[:5]).fit(x[::-1].copy()).labels_)


def test_offset_data_keep_their_clusters():
    """The expanded formula loses everything here: |x|^2 is 1e12, differences are about 1."""
    x = blobs(dtype=np.float64)
    plain = KMeans(7, init=x[:7], tol=0).fit(x)
    moved = KMeans(7, init=x[:7] + 1e6, tol=0).fit(x + 1e6)
    assert np.array_equal(plain.labels_, moved.labels_)
    assert moved.inertia_ == pytest.approx(plain.inertia_, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale):
    x = blobs(dtype=np.float32)
    plain = KMeans(7, random_state=0).fit(x)
    scaled = KMeans(7, random_state=0).fit((x.astype(np.float64) * scale).astype(np.float32))
    assert (plain.labels_ == scaled.labels_).mean() > 0.99  # the scaled rows are rounded anew
    assert scaled.inertia_ == pytest.approx(plain.inertia_ * scale**2, rel=1e-3)
