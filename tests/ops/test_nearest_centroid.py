"""nearest_centroid against the truth of ``truth.py``: sizes, dtypes, ties, extreme values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import (
    DTYPES,
    METRICS,
    every_cpu_path,
    every_metric,
    every_path,
    running,
    usable_paths,
)
from tests.ops.truth import nearest_ids, to_numpy

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


def check(x: torch.Tensor, c: torch.Tensor, metric: str = "euclidean", path: str | None = None):
    """Ids on one path, or on all that this machine has, are the truth's; returns them."""
    expected = nearest_ids(x, c, metric)
    for name in [path] if path else usable_paths():
        with running(name) as backend:
            ids = ops.nearest_centroid(x, c, metric=metric, backend=backend)
        assert ids.dtype == torch.int64
        wrong = np.flatnonzero(ids.numpy().ravel() != expected.ravel())
        assert ids.shape == expected.shape
        assert len(wrong) == 0, (
            f"{name}: {len(wrong)} wrong of {ids.numel()}, row {wrong[0]}: "
            f"{ids.numpy().ravel()[wrong[0]]}, not {expected.ravel()[wrong[0]]}"
        )
    return expected


@pytest.mark.parametrize("n, d, k", SHAPES)
def test_every_size(n, d, k):
    # Values of a few bits: near ties and exact ties occur, and every tail column or row matters.
    x = torch.randint(-9, 10, (n, d)) / 8 + 0.001 * torch.randn(n, d)
    c = torch.randint(-9, 10, (k, d)) / 8
    for metric in METRICS if n * d * k < 2_000_000 else METRICS[:1]:
        check(x, c, metric)


@pytest.mark.parametrize("d", WIDTHS)
def test_bug13_every_column_counts(d):
    """The last columns decide: a dropped tail would give the wrong id (bug 13: unmasked D tail)."""
    for column in {0, d // 2, d - 2, d - 1} - {-1}:
        c = torch.zeros(3, d)
        c[:, column] = torch.tensor([1.0, -1.0, 2.0])
        x = torch.zeros(40, d)
        x[:, column] = torch.linspace(-3, 3, 40)
        check(x, c)
        check(x, c, "dot")


@pytest.mark.parametrize("k", [1, 7, 15, 16, 17, 31, 32, 33, 47, 257])
def test_bug14_padding_never_wins(k):
    """Every real centroid scores below zero, padding lanes must not (bug 14: sentinel 0)."""
    x, c = torch.full((30, 5), 1.0), -torch.rand(k, 5) - 1.0
    expected = check(x, c, "dot")
    assert expected.max() < k
    check(-1e6 * x, -c, "dot")


@every_metric
@pytest.mark.parametrize("x_dtype, c_dtype", list(itertools.product(DTYPES, DTYPES)))
def test_every_pair_of_dtypes(x_dtype, c_dtype, metric):
    """Values are taken as they are, never rounded to a common dtype."""
    c = torch.randn(33, 21, dtype=torch.float64)
    x = (c[torch.randint(33, (150,))] + 1e-3 * torch.randn(150, 21)).to(x_dtype)
    check(x, c.to(c_dtype), metric)


def test_float64_differences_below_float32():
    c = torch.ones(2, 4, dtype=torch.float64)
    c[1] += 1e-12
    x = torch.tensor([[1.0] * 4, [1 + 2e-12] * 4, [1 + 4e-13] * 4], dtype=torch.float64)
    assert check(x, c).tolist() == [0, 1, 0]


# ---- ties


@every_metric
@pytest.mark.parametrize("k", [5, 50, 257])
def test_ties_of_integer_grids(k, metric):
    x, c = torch.randint(-1, 2, (200, 6)).float(), torch.randint(-1, 2, (k, 6)).float()
    check(x, c, metric)


@every_metric
def test_ties_of_permuted_centroids(metric):
    """A direct float64 sum picks the higher id of such ties (70 of 400 rows when it was tried)."""
    base = torch.rand(20)
    c = torch.stack([base[torch.randperm(20)] for _ in range(40)])
    x = torch.full((60, 20), 0.3) * torch.arange(1, 61)[:, None]
    expected = check(x, c, metric)
    assert (expected == 0).all()  # all coordinates of a row are equal: every centroid ties


def test_ties_of_scaled_centroids_by_cosine():
    c = torch.randn(30, 9)
    c = torch.cat([2 * c, c, 0.125 * c, 3 * c[:2].double().float()])
    x = torch.randn(300, 9)
    expected = check(x, c, "cosine")
    assert (expected < 30).sum() > 250  # of exact multiples the first; 3 c is rounded and may win


@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
def test_midpoints(dtype, metric):
    c = torch.randint(-8, 9, (20, 7)).to(dtype)
    a, b = torch.randint(20, (100,)), torch.randint(20, (100,))
    check(((c[a].double() + c[b].double()) / 2).to(dtype), c, metric)


@every_metric
def test_bug20_duplicate_centroids_give_the_lowest_id(metric):
    c = torch.randn(11, 16)
    c = torch.cat([c, c.flip(0), c])
    assert check(torch.randn(200, 16), c, metric).max() < 11


def test_negative_zero_is_zero():
    c = torch.tensor([[-0.0, 1.0], [0.0, 1.0], [0.0, -0.0], [-0.0, 0.0]])
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 0.0], [-0.0, -0.0]])
    assert check(x, c).tolist() == [0, 0, 2, 2]
    check(x, c, "cosine")
    check(x, c, "dot")


@every_metric
def test_all_rows_equal(metric):
    x, c = torch.randn(1, 48).expand(300, 48), torch.randn(100, 48)
    assert len(set(check(x, c, metric).tolist())) == 1


@every_metric
def test_all_centroids_equal(metric):
    c = torch.randn(1, 13).expand(100, 13)
    assert (check(torch.randn(20, 13), c, metric) == 0).all()


def test_rows_that_are_centroids():
    c = torch.randn(257, 33)
    assert check(c, c).tolist() == list(range(257))
    check(c, c, "cosine")


# ---- values that are not finite, zero vectors


@every_path
@every_metric
def test_rows_with_nan_or_inf_get_minus_one(path, metric):
    """(bugs 3 and 22: such rows silently got id 0 elsewhere)"""
    x, c = torch.randn(40, 19), torch.randn(9, 19)
    x[3, 0], x[17, 18], x[39, 7] = float("nan"), float("inf"), -float("inf")
    check(x, c, metric, path)
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
    assert set(check(x, c, metric, path).tolist()).isdisjoint({0, 7, 19})


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
    expected = check(x, c, "cosine", path)
    assert expected.tolist() == [1, 0, 1, 0, 2, 1]
    with running(path) as backend:
        _, cosine = ops.nearest_centroid(
            x, c, metric="cosine", return_distance=True, backend=backend
        )
    assert cosine.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]


# ---- extreme values


@every_metric
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-22, 1e-18, 1e-8, 1e8, 1e15, 1e18, 1e30, 1e37])
def test_scales_of_float32(scale, metric):
    """1e-22 once gave 404 wrong ids of 2000: squares that underflow need a bound of their own."""
    x, c = torch.randn(100, 24) * scale, torch.randn(40, 24) * scale
    check(x, c, metric)
    check(torch.randn(15, 24), c, metric)  # rows and centroids of unlike scale
    check(x[:15], torch.randn(40, 24), metric)


@every_metric
@pytest.mark.parametrize("exponent", [-300, -200, -160, -100, 100, 160, 200, 300])
def test_scales_of_float64(exponent, metric):
    scale = 10.0**exponent
    x = torch.randn(20, 10, dtype=torch.float64)
    c = torch.randn(30, 10, dtype=torch.float64)
    check(x * scale, c * scale, metric)
    check(x, c * scale, metric)
    check(x * scale, c, metric)


@every_metric
def test_scales_that_differ_by_row_and_by_centroid(metric):
    exponents = torch.linspace(-36, 36, 73).double()
    x = torch.randn(73, 12) * (10**exponents).float()[:, None]
    c = torch.randn(73, 12) * (10 ** exponents[torch.randperm(73)]).float()[:, None]
    check(x, c, metric)
    wide = 10 ** (exponents * 8)[:, None]
    check(x.sign().double() * wide, c.sign().double() * wide.flip(0), metric)


@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_values(dtype, metric):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = (torch.randint(-3, 4, (80, 5)).double() * smallest).to(dtype)
    c = (torch.randint(-3, 4, (20, 5)).double() * smallest).to(dtype)
    assert x.double().abs().max() == 3 * smallest
    check(x, c, metric)


@every_metric
def test_flush_denormal_of_the_caller_does_not_matter(metric):
    """torch.set_flush_denormal changes the processor's mode for the calling thread."""
    tiny = torch.finfo(torch.float32).smallest_normal / 8
    x, c = torch.randint(-4, 5, (80, 5)) * tiny, torch.randint(-4, 5, (20, 5)) * tiny
    expected = nearest_ids(x, c, metric)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        ids = ops.nearest_centroid(x, c, metric=metric, backend="cpu")
        still_set = (torch.tensor(tiny) / 2).item()
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(ids.numpy(), expected)
    assert still_set == 0.0  # and the caller's mode is put back


@pytest.mark.parametrize("offset", [30.0, 1e3, 1e4, 1e5, 1e6])
def test_bug04_offset_data(offset):
    """|x|^2 swamps the expanded formula; a clamp at 0 then makes false ties (bug 4)."""
    x, c = torch.randn(300, 32) + offset, torch.randn(64, 32) + offset
    expected = check(x, c)
    assert len(set(expected.tolist())) > 30
    check(x.double() + 1e9, c.double() + 1e9)


def test_bug04_clamp_makes_no_false_ties():
    """torch.cdist calls 512695 and 512804 equal to 0 apart in float32 (pytorch#42479)."""
    c = torch.tensor([[512695.0], [512804.0], [512696.0]])
    x = torch.tensor([[512804.0], [512695.0], [512749.0], [512750.0], [512696.0]])
    assert check(x, c).tolist() == [1, 0, 2, 1, 2]
    x = torch.full((4, 768), 1000.0) + torch.arange(4)[:, None] * 2.0**-13
    assert check(x, x.flip(0)).tolist() == [3, 2, 1, 0]


@every_metric
def test_one_centroid_far_from_the_rest(metric):
    c = torch.randn(100, 48)
    c[13] *= 1e4
    x = torch.randn(300, 48)
    x[5] = c[13] * 0.9
    check(x, c, metric)


def test_bug03_float16_norms_beyond_65504():
    """768 values of 12 overflow a float16 norm; every row then got id 0 elsewhere (bug 3)."""
    c = (12 + torch.randn(20, 768)).half()
    x = (c[torch.arange(100) % 20] + 0.1 * torch.randn(100, 768)).half()
    assert x.float().square().sum(1).min() > 65504
    assert len(set(check(x, c).tolist())) == 20
    check(torch.full((3, 8), 65504.0).half(), -c[:, :8], "dot")


def test_bug01_float32_is_not_rounded_to_tf32():
    """Differences beyond TF32's 10 bits of mantissa decide (bug 1)."""
    c = 1 + torch.randperm(64)[:, None] * 2.0**-20 * torch.ones(1, 32)
    assert check(c, c).tolist() == list(range(64))


def test_bug06_scores_are_not_coarsened():
    """Scores 2^-14 apart at K = 1024: an index packed into the mantissa would lose them (bug 6)."""
    c = torch.zeros(1024, 2)
    c[:, 0] = 1 + torch.randperm(1024) * 2.0**-16
    check(torch.tensor([[1.0, 0.0], [1.01, 0.5], [1.005, -1.0]]), c)


# ---- bounds: data made so that a bound that is too small shows


@every_cpu_path
@every_metric
def test_near_ties_at_every_distance(path, metric):
    """Two centroids whose scores differ by 2^-50 .. 2^-5 of a row's size, many of each gap."""
    d = 96
    x = torch.randn(40, d, dtype=torch.float64)
    direction = torch.nn.functional.normalize(x, dim=1)
    for gap in range(5, 51, 3):
        side = torch.randn(40, d, dtype=torch.float64)
        side -= (side * direction).sum(1, keepdim=True) * direction
        a = x + side
        b = x - side * (1 + 2.0**-gap * torch.randn(40, 1).double())
        c = torch.cat([a, b])[torch.randperm(80)]
        check(x.float(), c.float(), metric, path)
        check(x, c, metric, path)


@every_cpu_path
@pytest.mark.parametrize("d", [48, 384, 1024])
def test_long_sums_of_one_sign(path, d):
    """Terms of one sign and size: rounding errors of a running sum add up in one direction."""
    x = (1 + torch.rand(100, d)) * 1000
    noise = torch.rand(200, d)
    check(x, x[:1] + 0.001 * noise, "euclidean", path)
    check(x, 1 + 2.0**-18 * noise, "dot", path)
    check(x, 1 + 2.0**-18 * noise, "cosine", path)


# ---- accuracy of the value that return_distance adds


def exact_values(x: torch.Tensor, c: torch.Tensor, ids: torch.Tensor, metric: str) -> np.ndarray:
    a, b = to_numpy(x).astype(np.longdouble), to_numpy(c).astype(np.longdouble)[ids.numpy()]
    if metric == "euclidean":
        return np.square(a - b).sum(1)
    dot = (a * b).sum(1)
    if metric == "dot":
        return dot
    return dot / np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))


@every_path
@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
def test_distance_is_direct_and_accurate(path, metric, dtype):
    """At an offset of 1e5 the expanded formula keeps no digit of a float32 distance (bug 8)."""
    offset = 1e5 if dtype in (torch.float64, torch.float32) else 0.0
    x = (torch.randn(80, 30, dtype=torch.float64) + offset).to(dtype)
    c = (torch.randn(10, 30, dtype=torch.float64) + offset).to(dtype)
    with running(path) as backend:
        ids, value = ops.nearest_centroid(
            x, c, metric=metric, return_distance=True, backend=backend
        )
        plain = ops.nearest_centroid(x, c, metric=metric, backend=backend)
    assert torch.equal(ids, plain)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.shape == ids.shape
    expected = exact_values(x, c, ids, metric)
    # float64 throughout: (D + 8) 2^-53 of the sum of absolute terms, then one rounding.
    size = np.abs(expected) if metric != "dot" else np.abs(to_numpy(x) * to_numpy(c)[ids]).sum(1)
    tolerance = 40 * 2.0**-53 * size + 2.0**-24 * np.abs(expected) * (dtype != torch.float64)
    assert (np.abs(value.double().numpy() - expected) <= tolerance + 2.0**-52).all()


@every_path
def test_distance_of_mixed_dtypes_is_float64(path):
    with running(path) as backend:
        for x_dtype, c_dtype in ((torch.float64, torch.float16), (torch.float32, torch.float64)):
            x, c = torch.randn(5, 3).to(x_dtype), torch.randn(4, 3).to(c_dtype)
            ids, value = ops.nearest_centroid(x, c, return_distance=True, backend=backend)
            assert value.dtype == torch.float64
            np.testing.assert_allclose(value, exact_values(x, c, ids, "euclidean"), rtol=1e-14)
