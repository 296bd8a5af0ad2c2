"""nearest_centroid where floating point is at its worst: scales, offsets, near ties; distances."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.assignment import check_ids
from tests.ops.harness import DTYPES, every_cpu_path, every_metric, every_path, running
from tests.ops.truth import nearest_ids, to_numpy

# ---- extreme values


@every_metric
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-22, 1e-18, 1e-8, 1e8, 1e15, 1e18, 1e30, 1e37])
def test_scales_of_float32(scale, metric):
    """1e-22 once gave 404 wrong ids of 2000: squares that underflow need a bound of their own."""
    x, c = torch.randn(100, 24) * scale, torch.randn(40, 24) * scale
    check_ids(x, c, metric)
    check_ids(torch.randn(15, 24), c, metric)  # rows and centroids of unlike scale
    check_ids(x[:15], torch.randn(40, 24), metric)


@every_metric
@pytest.mark.parametrize("exponent", [-300, -200, -160, -100, 100, 160, 200, 300])
def test_scales_of_float64(exponent, metric):
    scale = 10.0**exponent
    x = torch.randn(20, 10, dtype=torch.float64)
    c = torch.randn(30, 10, dtype=torch.float64)
    check_ids(x * scale, c * scale, metric)
    check_ids(x, c * scale, metric)
    check_ids(x * scale, c, metric)


@every_metric
def test_scales_that_differ_by_row_and_by_centroid(metric):
    exponents = torch.linspace(-36, 36, 73).double()
    x = torch.randn(73, 12) * (10**exponents).float()[:, None]
    c = torch.randn(73, 12) * (10 ** exponents[torch.randperm(73)]).float()[:, None]
    check_ids(x, c, metric)
    wide = 10 ** (exponents * 8)[:, None]
    check_ids(x.sign().double() * wide, c.sign().double() * wide.flip(0), metric)


@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_values(dtype, metric):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = (torch.randint(-3, 4, (80, 5)).double() * smallest).to(dtype)
    c = (torch.randint(-3, 4, (20, 5)).double() * smallest).to(dtype)
    assert x.double().abs().max() == 3 * smallest
    check_ids(x, c, metric)


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
    expected = check_ids(x, c)
    assert len(set(expected.tolist())) > 30
    check_ids(x.double() + 1e9, c.double() + 1e9)


def test_bug04_clamp_makes_no_false_ties():
    """torch.cdist calls 512695 and 512804 equal to 0 apart in float32 (pytorch#42479)."""
    c = torch.tensor([[512695.0], [512804.0], [512696.0]])
    x = torch.tensor([[512804.0], [512695.0], [512749.0], [512750.0], [512696.0]])
    assert check_ids(x, c).tolist() == [1, 0, 2, 1, 2]
    x = torch.full((4, 768), 1000.0) + torch.arange(4)[:, None] * 2.0**-13
    assert check_ids(x, x.flip(0)).tolist() == [3, 2, 1, 0]


@every_metric
def test_one_centroid_far_from_the_rest(metric):
    c = torch.randn(100, 48)
    c[13] *= 1e4
    x = torch.randn(300, 48)
    x[5] = c[13] * 0.9
    check_ids(x, c, metric)


def test_bug03_float16_norms_beyond_65504():
    """768 values of 12 overflow a float16 norm; every row then got id 0 elsewhere (bug 3)."""
    c = (12 + torch.randn(20, 768)).half()
    x = (c[torch.arange(100) % 20] + 0.1 * torch.randn(100, 768)).half()
    assert x.float().square().sum(1).min() > 65504
    assert len(set(check_ids(x, c).tolist())) == 20
    check_ids(torch.full((3, 8), 65504.0).half(), -c[:, :8], "dot")


def test_bug01_float32_is_not_rounded_to_tf32():
    """Differences beyond TF32's 10 bits of mantissa decide (bug 1)."""
    c = 1 + torch.randperm(64)[:, None] * 2.0**-20 * torch.ones(1, 32)
    assert check_ids(c, c).tolist() == list(range(64))


def test_bug06_scores_are_not_coarsened():
    """Scores 2^-14 apart at K = 1024: an index packed into the mantissa would lose them (bug 6)."""
    c = torch.zeros(1024, 2)
    c[:, 0] = 1 + torch.randperm(1024) * 2.0**-16
    check_ids(torch.tensor([[1.0, 0.0], [1.01, 0.5], [1.005, -1.0]]), c)


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
        check_ids(x.float(), c.float(), metric, path)
        check_ids(x, c, metric, path)


@every_cpu_path
@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_near_ties_of_few_columns(path, d, metric):
    """Where one rounding is a good part of the bound: a bound an eighth as wide gives wrong ids.

    Float64 rows on the plane between two centroids, 2^-22 .. 2^-29 of their distance off it.
    """
    for _ in range(15):
        a, b = torch.randn(2, d, dtype=torch.float64) * 10 ** torch.randn(2, 1).double()
        apart = a - b
        rows = torch.randn(1600, d, dtype=torch.float64)
        rows -= (rows @ apart)[:, None] / apart.square().sum() * apart
        step = 2.0 ** -torch.arange(22, 30).repeat(200)[:, None] * torch.randn(1600, 1).double()
        rows += step * apart + ((a + b) / 2 if metric == "euclidean" else 0)
        check_ids(rows, torch.stack([a, b]), metric, path)


@every_path
@pytest.mark.parametrize("sign", [-1, 1])
def test_cosines_that_differ_beyond_float64(path, sign):
    """All cosines of a row within 2^-48 of each other, all negative or all positive."""
    for _ in range(20):
        x = torch.randn(1, 12, dtype=torch.float64)
        side = torch.randn(8, 12, dtype=torch.float64)
        side -= (side @ x.T) * x / x.square().sum()
        side *= x.norm() / side.norm(dim=1, keepdim=True) * (1 + 2.0**-49 * torch.randn(8, 1))
        scale = 1 + torch.rand(8, 1, dtype=torch.float64)
        check_ids(x, (sign * x + side) * scale, "cosine", path)


@every_cpu_path
@pytest.mark.parametrize("d", [48, 384, 1024])
def test_long_sums_of_one_sign(path, d):
    """Terms of one sign and size: rounding errors of a running sum add up in one direction."""
    x = (1 + torch.rand(100, d)) * 1000
    noise = torch.rand(200, d)
    check_ids(x, x[:1] + 0.001 * noise, "euclidean", path)
    check_ids(x, 1 + 2.0**-18 * noise, "dot", path)
    check_ids(x, 1 + 2.0**-18 * noise, "cosine", path)


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


def _just_around_root(target: int, *, above: bool) -> np.float32:
    """The float32 whose square is next above (or below) ``target``."""
    value = np.float32(np.sqrt(float(target)))
    while Fraction(float(value)) ** 2 <= target:
        value = np.nextafter(value, np.float32(np.inf))
    while Fraction(float(value)) ** 2 > target:
        value = np.nextafter(value, np.float32(0))
    return np.nextafter(value, np.float32(np.inf)) if above else value


@every_cpu_path
def test_a_float32_distance_that_overflows_stays_a_candidate(path):
    """|c|^2 just below 2^128, its terms such that 16 float32 chains round it up to infinity."""

    def centroid(second: float, *, up: bool) -> np.ndarray:
        c = np.zeros(16 * 600, np.float32)
        c[0] = _just_around_root(2**127, above=True)
        c[1] = _just_around_root(2**127 - int(second) * 2**103, above=up)
        c[16::16] = _just_around_root(2**103, above=up)
        c[17::16] = _just_around_root(2**102, above=up)
        return c

    nearer, farther = centroid(2.98 * 599, up=True), centroid(2.06 * 650, up=False)
    for c in (np.stack([nearer, farther]), np.stack([farther, nearer])):
        for rows in (1, 40):
            x, centroids = torch.zeros(rows, 16 * 600), torch.from_numpy(c)
            with running(path) as backend:
                ids = ops.nearest_centroid(x, centroids, backend=backend)
            np.testing.assert_array_equal(ids.numpy(), nearest_ids(x, centroids, "euclidean"))
