"""The estimator surface: scikit-learn's rules, numpy and torch, refusals, determinism."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from clustermim_fast import KMeans

# What scikit-learn's own KMeans is excused from, too: seeds are drawn by row number, so that
# leaving a row out is not the same as giving it weight 0.
CANNOT_APPLY = {
    "check_sample_weight_equivalence_on_dense_data": "the draw of seeds depends on row numbers",
}
# Left out by scikit-learn itself where the environment lacks something.
MAY_BE_SKIPPED = {
    "check_sample_weights_pandas_series": "pandas is not installed",
    "check_array_api_input": "SCIPY_ARRAY_API is not set",
}


def data(n=300, d=5, dtype=np.float32):
    random = np.random.default_rng(0)
    return (4 * random.integers(0, 3, (n, d)) + random.normal(size=(n, d))).astype(dtype)


@pytest.mark.parametrize(
    "model",
    [
        KMeans(),
        KMeans(2, algorithm="minibatch", max_iter=5, batch_size=10),
        KMeans(metric="cosine"),
    ],
    ids=["lloyd", "minibatch", "cosine"],
)
@pytest.mark.filterwarnings("ignore")
def test_check_estimator(model):
    results = check_estimator(
        model, expected_failed_checks=CANNOT_APPLY, on_skip=None, on_fail="raise"
    )
    status = {r["check_name"]: r["status"] for r in results}
    assert {name for name, s in status.items() if s == "xfail"} == set(CANNOT_APPLY)
    others = {name: s for name, s in status.items() if s not in ("passed", "xfail")}
    assert set(others) <= set(MAY_BE_SKIPPED), others
    assert set(others.values()) <= {"skipped"}
    assert len(status) > 50


def test_parameters():
    model = KMeans(5, tol=0.5)
    assert model.get_params()["tol"] == 0.5
    assert clone(model.set_params(n_clusters=6)).n_clusters == 6
    for change, message in [
        ({"n_clusters": 0}, "n_clusters must be an int >= 1, got 0"),
        ({"n_clusters": 2.0}, "n_clusters must be an int >= 1, got 2.0"),
        ({"algorithm": "elkan"}, "algorithm must be one of 'lloyd', 'minibatch', got 'elkan'"),
        ({"metric": "dot"}, "metric must be one of 'euclidean', 'cosine', got 'dot'"),
        ({"init": "pca"}, "init must be one of 'k-means.*', 'random', got 'pca'"),
        ({"tol": -1.0}, "tol must be a number >= 0"),
        ({"n_init": 0}, "n_init must be an int >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            KMeans().set_params(**change).fit(data())


@pytest.mark.parametrize("algorithm", ["lloyd", "minibatch"])
def test_numpy_and_torch_give_the_same(algorithm):
    x = data()
    a = KMeans(6, algorithm=algorithm, random_state=0).fit(x)
    b = KMeans(6, algorithm=algorithm, random_state=0).fit(torch.from_numpy(x))
    assert isinstance(a.labels_, np.ndarray)
    assert isinstance(b.labels_, torch.Tensor)
    assert isinstance(b.cluster_centers_, torch.Tensor)
    assert np.array_equal(a.cluster_centers_, b.cluster_centers_.numpy())
    assert np.array_equal(a.labels_, b.labels_.numpy())
    # Fitted on one, used on the other.
    assert isinstance(a.predict(torch.from_numpy(x)), torch.Tensor)
    assert np.array_equal(b.predict(x), a.labels_)


def test_read_only_arrays_without_copy_or_warning():
    x = data()
    x.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = KMeans(4, random_state=0).fit(x)
        model.predict(x)
        model.transform(x)
        model.partial_fit(x)
        model.predict(np.broadcast_to(x[:1], (20, 5)))
    from clustermim_fast.tokenizers.kmeans_inputs import tensor_view

    assert tensor_view(x).data_ptr() == x.ctypes.data
    assert not x.flags.writeable


def test_input_is_not_changed():
    x = data()
    before = x.copy()
    for metric in ("euclidean", "cosine"):
        KMeans(4, metric=metric, random_state=0).fit(x).transform(x)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_nan_names_its_row(bad, kind):
    x = data()
    good = KMeans(4, random_state=0).fit(x)
    x[123, 2] = bad
    x[200] = bad
    given = torch.from_numpy(x) if kind == "torch" else x
    for call in (
        KMeans(4).fit,
        KMeans(4, algorithm="minibatch").fit,
        KMeans(4, metric="cosine").fit,
        KMeans(4).partial_fit,
        good.predict,
        good.transform,
        good.score,
    ):
        with pytest.raises(ValueError, match="NaN or infinity in row 123"):
            call(given)


def test_refusals():
    x = data()
    with pytest.raises(ValueError, match="n_samples=5 should be >= n_clusters=8"):
        KMeans(8).fit(x[:5])
    with pytest.raises(ValueError, match="n_samples=5 should be >= n_clusters=8"):
        KMeans(8).fit(torch.from_numpy(x[:5]))
    with pytest.raises(TypeError, match=r"dense tensor of dtype float64.*got torch.int64"):
        KMeans(2).fit(torch.arange(12).reshape(6, 2))
    with pytest.raises(ValueError, match=r"X must be of shape .* got \(6,\)"):
        KMeans(2).fit(torch.zeros(6))
    with pytest.raises(NotFittedError):
        KMeans(2).predict(x)
    model = KMeans(2, random_state=0).fit(x)
    with pytest.raises(ValueError, match="X has 3 features, but KMeans is expecting 5"):
        model.predict(torch.zeros(4, 3))
    for weights, message in [
        (np.ones(3), "sample_weight.shape"),
        (-np.ones(300), ">= 0"),
        (np.zeros(300), "zeros only"),
        (np.full(300, np.nan), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            KMeans(2).fit(x, sample_weight=weights)


def test_transform_and_pipeline():
    x = data(dtype=np.float64)
    model = KMeans(4, random_state=0).fit(x)
    expected = np.linalg.norm(x[:, None] - model.cluster_centers_[None], axis=2)
    np.testing.assert_allclose(model.transform(x), expected, rtol=1e-12)
    np.testing.assert_allclose(KMeans(4, random_state=0).fit_transform(x), expected, rtol=1e-12)
    assert list(model.get_feature_names_out()) == ["kmeans0", "kmeans1", "kmeans2", "kmeans3"]
    pipeline = make_pipeline(StandardScaler(), KMeans(3, random_state=0))
    assert pipeline.fit(x).predict(x).shape == (300,)
    assert np.array_equal(KMeans(4, random_state=0).fit_predict(x), model.labels_)


def test_pickle():
    x = data()
    model = KMeans(4, random_state=0).partial_fit(x)
    copy = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copy.predict(x), model.predict(x))
    assert np.array_equal(
        copy.partial_fit(x).cluster_centers_, model.partial_fit(x).cluster_centers_
    )


@pytest.mark.parametrize("algorithm", ["lloyd", "minibatch"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_at_one_two_and_three_threads(algorithm, metric, dtype, threads):
    x = data(n=1000, d=17, dtype=dtype)
    fitted = []
    for count in (1, 2, 3):
        threads(count)
        model = KMeans(20, algorithm=algorithm, metric=metric, max_iter=5, random_state=0)
        fitted.append(model.fit(x).partial_fit(x[:300]))
    for model in fitted[1:]:
        assert np.array_equal(fitted[0].cluster_centers_, model.cluster_centers_)
        assert np.array_equal(fitted[0].labels_, model.labels_)
        assert fitted[0].inertia_ == model.inertia_
        assert fitted[0].report_.inertia == model.report_.inertia


def test_progress_bar_only_when_asked(capsys):
    x = data()
    KMeans(3, random_state=0).fit(x)
    assert capsys.readouterr().err == ""
    KMeans(3, random_state=0, verbose=1).fit(x)
    shown = capsys.readouterr().err
    assert "k-means K=3" in shown
    assert "inertia" in shown
    KMeans(3, random_state=0, verbose=1, n_init=4, max_iter=2).fit(x)
    assert "/8" in capsys.readouterr().err  # the iterations of all runs
