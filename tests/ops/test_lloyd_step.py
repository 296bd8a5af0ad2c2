"""lloyd_step: sums, counts and inertia beside plain numpy, within what float64 can lose."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import (
    DTYPES,
    assert_same,
    check_compile,
    check_opcheck,
    check_refusal,
    check_threads,
    every_metric,
    every_path,
    fewer,
    running,
    usable_paths,
)
from tests.ops.truth import nearest_ids, to_numpy

UNIT = 2.0**-53


def costs(x: np.ndarray, c: np.ndarray, metric: str) -> np.ndarray:
    if metric == "euclidean":
        return np.square(x - c).sum(1)
    dot = (x * c).sum(1)
    if metric == "dot":
        return -dot
    size = np.sqrt(np.square(x).sum(1) * np.square(c).sum(1))
    return 1 - np.where(size == 0, 0.0, dot / np.where(size == 0, 1.0, size))


def check(x, c, metric="euclidean", weights=None, path=None) -> None:
    """ids are the truth's; the rest is within what float64 summation in any order can lose."""
    ids = nearest_ids(x, c, metric)
    kept = ids >= 0
    rows, winners = to_numpy(x)[kept].astype(np.longdouble), ids[kept]
    w = np.ones(len(x)) if weights is None else to_numpy(weights)
    w = w[kept].astype(np.longdouble)
    sums, size = np.zeros((2, *c.shape), np.longdouble)
    np.add.at(sums, winners, w[:, None] * rows)
    np.add.at(size, winners, np.abs(w[:, None] * rows))
    counts = np.bincount(winners, weights=w.astype(float), minlength=len(c))
    centres = to_numpy(c)[winners].astype(np.longdouble)
    cost = w * costs(rows, centres, metric)
    # The relative error of one cost times its largest term, and of a sum of N of them.
    term = w * (np.abs(rows * centres).sum(1) if metric == "dot" else np.abs(cost) + 4 * w)
    slack = (len(x) + x.shape[1] + 8) * UNIT
    for name in [path] if path else usable_paths():
        with running(name) as backend:
            got = ops.lloyd_step(x, c, weights=weights, metric=metric, backend=backend)
        np.testing.assert_array_equal(got[0].numpy(), ids, err_msg=name)
        assert [t.dtype for t in got[:2]] == [torch.int64, torch.float64]
        assert got[2].dtype == (torch.int64 if weights is None else torch.float64)
        assert got[3].dtype == torch.float64
        assert got[3].shape == ()
        assert (np.abs(got[1].numpy() - sums) <= slack * size).all(), name
        assert (np.abs(got[2].numpy() - counts) <= slack * counts).all(), name
        if weights is None:
            assert int(got[2].sum()) == kept.sum()
        assert abs(got[3].item() - cost.sum()) <= slack * (term.sum() + np.abs(cost).sum()), name


# ---- rows of a matrix


@every_metric
@pytest.mark.parametrize(
    ("n", "d", "k"),
    [(0, 5, 3), (1, 1, 1), (7, 3, 9), (300, 48, 50), (500, 17, 257), (230, 100, 7), (40, 768, 100)],
)
def test_sizes(n, d, k, metric):
    check(torch.randn(n, d), torch.randn(k, d), metric)


@pytest.mark.parametrize(("n", "d"), [(20_001, 6), (40_001, 6), (33_000, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_rows_than_are_accumulated_at_once(n, d, dtype):
    """A few rows are gathered; more are cut into shards, added row by row or sorted if wide."""
    x, c = torch.randn(n, d, dtype=dtype), torch.randn(5, d)
    x[n // 2, 1] = float("nan")
    check(x, c, path="avx512" if "avx512" in usable_paths() else "generic")
    check(x, c, weights=torch.rand(n), path="generic")


def test_more_sums_than_a_cache_holds():
    n, k = fewer(40_000, 400), fewer(2000, 200)
    check(torch.randn(n, 70), torch.randn(k, 70), path=usable_paths()[-1])


@pytest.mark.parametrize("x_dtype, c_dtype", list(itertools.product(DTYPES, DTYPES)))
def test_dtypes(x_dtype, c_dtype):
    check(torch.randn(60, 12).to(x_dtype), torch.randn(9, 12).to(c_dtype))


@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights(dtype, metric):
    weights = (torch.rand(200) * 5).to(dtype)
    weights[::7] = 0
    check(torch.randn(200, 12), torch.randn(9, 12), metric, weights)


@every_path
def test_weights_of_one_are_no_weights(path):
    x, c = torch.randn(200, 12), torch.randn(9, 12)
    with running(path) as backend:
        plain = ops.lloyd_step(x, c, backend=backend)
        ones = ops.lloyd_step(x, c, weights=torch.ones(200), backend=backend)
    assert torch.equal(plain[2].double(), ones[2])
    assert_same(ones[:2], plain[:2])
    # Without weights the N * D squares are summed in another order.
    assert (plain[3] - ones[3]).abs() <= 2 * x.numel() * UNIT * ones[3]


@every_metric
def test_rows_of_minus_one_are_left_out(metric):
    x, c = torch.randn(100, 8), torch.randn(5, 8)
    x[3, 1], x[50, 7], x[99, 0] = float("nan"), float("inf"), -float("inf")
    check(x, c, metric)
    check(x, c, metric, weights=torch.rand(100))
    c[2, 2] = float("nan")
    check(x, c, metric)
    for path in usable_paths():
        with running(path) as backend:
            ids, sums, counts, inertia = ops.lloyd_step(x, c.log() - 1e3, backend=backend)
        assert (ids == -1).all()
        assert not sums.any()
        assert not counts.any()
        assert inertia == 0


def test_bug08_inertia_is_direct():
    """Distances of 1e-4 at an offset of 1e4: the expanded formula loses every digit (bug 8)."""
    c = torch.randn(6, 20, dtype=torch.float64) + 1e4
    check(c.repeat(30, 1) + 1e-4 * torch.randn(180, 20, dtype=torch.float64), c)


@pytest.mark.slow
def test_bug09_counts_beyond_2_to_24():
    """Counts and sums in float32 stop at 2^24 (bug 9)."""
    n = 2**24 + 9
    _, sums, counts, inertia = ops.lloyd_step(
        torch.ones(1, 1).expand(n, 1), torch.tensor([[0.0], [9.0]]), backend="cpu"
    )
    assert counts.tolist() == [n, 0]
    assert sums[0, 0] == inertia == n


@pytest.mark.parametrize(("n", "d"), [(5000, 48), (300, 7), (3000, 200), (50_000, 20)])
def test_thread_counts_give_the_same_bits(n, d, threads):
    """Sums of floats in another order would differ in the last bits."""
    x, c = torch.randn(n, d) * torch.rand(n, 1).exp(), torch.randn(50, d)
    for weights in (None, torch.rand(n)):
        check_threads(threads, lambda w=weights: ops.lloyd_step(x, c, weights=w, backend="cpu"))


@every_path
def test_layouts(path):
    wide, c = torch.randn(150, 30), torch.randn(9, 12)
    for x in (wide[:, 3:15], wide[:, 3:27:2], wide[:1, :12].expand(70, 12), torch.randn(12, 90).T):
        check(x, c, path=path)
        check(x, torch.randn(12, 9).T, path=path)
    check(wide[:, 3:15], c, weights=torch.rand(300)[::2], path=path)


def test_sums_are_the_same_on_every_path():
    """The paths of the core differ in vectors, not in the order of any sum."""
    for n, d in ((3000, 130), (40_000, 20)):
        x, c = torch.randn(n, d) * torch.rand(n, 1).exp(), torch.randn(50, d)
        results = []
        for path in set(usable_paths()) - {"reference"}:
            with running(path) as backend:
                results.append(ops.lloyd_step(x, c, backend=backend))
        for other in results[1:]:
            assert_same(other, results[0])


# ---- the standard checks


def test_refusals():
    x, c, call = torch.randn(6, 8), torch.randn(3, 8), ops.lloyd_step
    w = torch.ones(6)
    for wrong, error, words in (
        (lambda: call(x[None], c), ValueError, ("x must be 2-dimensional [N, D]", "(1, 6, 8)")),
        (lambda: call(x[:, :5], c), ValueError, ("x must be [N, D]", "= 8", "(6, 5)")),
        (lambda: call(x.int(), c), TypeError, ("x must be of dtype", "int32")),
        (lambda: call(x, c[:0]), ValueError, ("centroids", "K >= 1")),
        (lambda: call(x, c, weights=w[:5]), ValueError, ("weights", "N = 6", "(5,)")),
        (lambda: call(x, c, weights=w.long()), TypeError, ("weights", "int64")),
        (lambda: call(x, c, weights=w[None]), ValueError, ("weights", "1-dimensional")),
        (lambda: call(x, c, weights=[1.0]), TypeError, ("weights", "torch.Tensor", "list")),
        (lambda: call(x, c, weights=w * -1), ValueError, ("weights", "finite and >= 0", "-1.0")),
        (lambda: call(x, c, weights=w / 0), ValueError, ("weights", "finite and >= 0", "inf")),
        (
            lambda: call(x, c, weights=w * torch.nan, backend="reference"),
            ValueError,
            ("weights", "finite and >= 0", "nan"),
        ),
        (lambda: call(x, c, metric="l2"), ValueError, ("metric", "'l2'")),
        (lambda: call(x, c.to("meta")), ValueError, ("centroids must be on cpu", "meta")),
    ):
        check_refusal(wrong, error, "lloyd_step: ", *words)


@every_path
def test_opcheck(path):
    with running(path) as backend:
        opcheck(backend)


def opcheck(backend):
    overload = torch.ops.clustermim.lloyd_step.default
    x, c = torch.randn(9, 4), torch.randn(3, 4).half()
    check_opcheck(overload, x, c, None, "euclidean", backend)
    check_opcheck(overload, x[:0], c, None, "dot", backend)
    check_opcheck(overload, x.T.contiguous().T, c, torch.rand(9), "cosine", backend)


def test_compile_fullgraph():
    def rows(x, c):
        return ops.lloyd_step(x * 2, c, metric="cosine")

    check_compile(rows, torch.randn(9, 4), torch.randn(3, 4))
