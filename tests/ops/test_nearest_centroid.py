"""nearest_centroid against the truth of ``truth.py``: sizes, dtypes, ties, NaN and Inf."""

from __future__ import annotations

import itertools

import pytest
import torch

from clustermim_fast import ops
from tests.ops.assignment import check_ids
from tests.ops.harness import DTYPES, METRICS, every_metric, every_path, fewer, running

# Around the vector widths (4, 8, 16 lanes, panels of two), the run length of a sum (64), and the
# widths of real patches and features.
WIDTHS = (1, 3, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 384, 511, 513, 768, 1000, 1024)
CODEBOOKS = (1, 2, 7, 50, 100, 257, 1000)
# Around the register tiles (4, 6, 14 rows) and one block (up to 224 rows).
BATCHES = (0, 1, 13, 14, 15, 127, 129, 225)
# Every codebook and batch size meets several widths; one grid of all three would take minutes.
SHAPES = sorted(
    {(BATCHES[i % 8], d, CODEBOOKS[i % 7]) for i, d in enumerate(WIDTHS)}
    | {(BATCHES[(i + 3) % 8], d, CODEBOOKS[(3 * i + 2) % 7]) for i, d in enumerate(WIDTHS)}
    | {(n, 17, k) for n, k in itertools.product(BATCHES, CODEBOOKS)}
)


@pytest.mark.parametrize("n, d, k", SHAPES)
def test_every_size(n, d, k):
    # Values of a few bits: near ties and exact ties occur, and every tail column or row matters.
    x = torch.randint(-9, 10, (n, d)) / 8 + 0.001 * torch.randn(n, d)
    c = torch.randint(-9, 10, (k, d)) / 8
    for metric in METRICS if n * d * k < 2_000_000 else METRICS[:1]:
        check_ids(x, c, metric)


@pytest.mark.parametrize("d", WIDTHS)
def test_bug13_every_column_counts(d):
    """The last columns decide: a dropped tail would give the wrong id (bug 13: unmasked D tail)."""
    for column in {0, d // 2, d - 2, d - 1} - {-1}:
        c = torch.zeros(3, d)
        c[:, column] = torch.tensor([1.0, -1.0, 2.0])
        x = torch.zeros(40, d)
        x[:, column] = torch.linspace(-3, 3, 40)
        check_ids(x, c)
        check_ids(x, c, "dot")


@pytest.mark.parametrize("k", [1, 7, 15, 16, 17, 31, 32, 33, 47, 257])
def test_bug14_padding_never_wins(k):
    """Every real centroid scores below zero, padding lanes must not (bug 14: sentinel 0)."""
    x, c = torch.full((30, 5), 1.0), -torch.rand(k, 5) - 1.0
    expected = check_ids(x, c, "dot")
    assert expected.max() < k
    check_ids(-1e6 * x, -c, "dot")


@every_metric
@pytest.mark.parametrize("x_dtype, c_dtype", list(itertools.product(DTYPES, DTYPES)))
def test_every_pair_of_dtypes(x_dtype, c_dtype, metric):
    """Values are taken as they are, never rounded to a common dtype."""
    c = torch.randn(33, 21, dtype=torch.float64)
    x = (c[torch.randint(33, (150,))] + 1e-3 * torch.randn(150, 21)).to(x_dtype)
    check_ids(x, c.to(c_dtype), metric)


def test_float64_differences_below_float32():
    c = torch.ones(2, 4, dtype=torch.float64)
    c[1] += 1e-12
    x = torch.tensor([[1.0] * 4, [1 + 2e-12] * 4, [1 + 4e-13] * 4], dtype=torch.float64)
    assert check_ids(x, c).tolist() == [0, 1, 0]


# ---- ties


@every_metric
@pytest.mark.parametrize("k", [5, 50, 257])
def test_ties_of_integer_grids(k, metric):
    x, c = torch.randint(-1, 2, (200, 6)).float(), torch.randint(-1, 2, (k, 6)).float()
    check_ids(x, c, metric)


@every_metric
def test_ties_of_permuted_centroids(metric):
    """A direct float64 sum picks the higher id of such ties (70 of 400 rows when it was tried)."""
    base = torch.rand(20)
    c = torch.stack([base[torch.randperm(20)] for _ in range(40)])
    n = fewer(60, 3)
    x = torch.full((n, 20), 0.3) * torch.arange(1, n + 1)[:, None]
    expected = check_ids(x, c, metric)
    assert (expected == 0).all()  # all coordinates of a row are equal: every centroid ties


def test_ties_of_scaled_centroids_by_cosine():
    c = torch.randn(30, 9)
    c = torch.cat([2 * c, c, 0.125 * c, 3 * c[:2].double().float()])
    x = torch.randn(300, 9)
    expected = check_ids(x, c, "cosine")
    assert (expected < 30).sum() > 250  # of exact multiples the first; 3 c is rounded and may win


@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
def test_midpoints(dtype, metric):
    c = torch.randint(-8, 9, (20, 7)).to(dtype)
    a, b = torch.randint(20, (100,)), torch.randint(20, (100,))
    check_ids(((c[a].double() + c[b].double()) / 2).to(dtype), c, metric)


@every_metric
def test_bug20_duplicate_centroids_give_the_lowest_id(metric):
    c = torch.randn(11, 16)
    c = torch.cat([c, c.flip(0), c])
    assert check_ids(torch.randn(200, 16), c, metric).max() < 11


def test_negative_zero_is_zero():
    c = torch.tensor([[-0.0, 1.0], [0.0, 1.0], [0.0, -0.0], [-0.0, 0.0]])
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 0.0], [-0.0, -0.0]])
    assert check_ids(x, c).tolist() == [0, 0, 2, 2]
    check_ids(x, c, "cosine")
    check_ids(x, c, "dot")


@every_metric
def test_all_rows_equal(metric):
    x, c = torch.randn(1, 48).expand(300, 48), torch.randn(100, 48)
    assert len(set(check_ids(x, c, metric).tolist())) == 1


@every_metric
def test_all_centroids_equal(metric):
    c = torch.randn(1, 13).expand(100, 13)
    assert (check_ids(torch.randn(20, 13), c, metric) == 0).all()


def test_rows_that_are_centroids():
    c = torch.randn(257, 33)
    assert check_ids(c, c).tolist() == list(range(257))
    check_ids(c, c, "cosine")


# ---- values that are not finite, zero vectors


@every_path
@every_metric
def test_rows_with_nan_or_inf_get_minus_one(path, metric):
    """(bugs 3 and 22: such rows silently got id 0 elsewhere)"""
    x, c = torch.randn(40, 19), torch.randn(9, 19)
    x[3, 0], x[17, 18], x[39, 7] = float("nan"), float("inf"), -float("inf")
    check_ids(x, c, metric, path)
    with running(path) as backend:
        ids, value = ops.nearest_centroid(
            x, c, metric=metric, return_distance=True, backend=backend
        )
    bad = torch.tensor([3, 17, 39])
    assert (ids[bad] == -1).all()
    assert value[bad].isnan().all()
    assert value.isnan().sum() == 3


@every_path
@every_metric
def test_centroids_with_nan_or_inf_never_win(path, metric):
    x, c = torch.randn(60, 19), torch.randn(20, 19)
    c[0, 3], c[7, 18], c[19, 0] = float("nan"), float("inf"), -float("inf")
    assert set(check_ids(x, c, metric, path).tolist()).isdisjoint({0, 7, 19})


@every_path
@every_metric
def test_no_finite_centroid(path, metric):
    c = torch.tensor([[float("nan"), 0.0], [0.0, float("inf")]])
    with running(path) as backend:
        ids, value = ops.nearest_centroid(
            torch.randn(5, 2), c, metric=metric, return_distance=True, backend=backend
        )
    assert ids.tolist() == [-1] * 5
    assert value.isnan().all()


@every_path
def test_zero_vectors_have_cosine_zero(path):
    c = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, -0.001], [-1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    expected = check_ids(x, c, "cosine", path)
    assert expected.tolist() == [1, 0, 1, 0, 2, 1]
    with running(path) as backend:
        _, cosine = ops.nearest_centroid(
            x, c, metric="cosine", return_distance=True, backend=backend
        )
    assert cosine.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
