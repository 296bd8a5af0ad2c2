"""Narrow rows in docs/certificate.md: the bias in the product, two maxima for each score.

Emulated as the other formats are; nothing is read from the package.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.adversarial import GENERATORS, make
from tests.ops.assignment import check_compiled
from tests.ops.certificate_model import BFLOAT16, UNIT, lengths, measured_lengths
from tests.ops.low_precision import bfloat16, float32, tile_dot
from tests.ops.worst_cases import anchored, lost_increments


def parts_of(bias: np.ndarray) -> np.ndarray:
    """[3, K] bfloat16 values, each cut off at 8 bits, of the same sign."""
    parts, rest = [], bias
    for _ in range(3):
        bits = rest.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        parts.append(bits.view(np.float32).astype(np.float64))
        rest = rest - parts[-1]
    assert (np.abs(rest) <= 2.0**-133).all()  # the last bit of a subnormal bfloat16
    return np.stack(parts)


@pytest.mark.parametrize("d", [1, 7, 29, 30, 48, 100, 128])
def test_scores_with_the_bias_in_the_product(d):
    """At most 17 + ceil((D + 3) / 32) roundings of a value of the row, or of the bias."""
    a = 1.01 * UNIT * (17 + -(-(d + 3) // 32))
    for name in GENERATORS:
        if name in {"not_finite", "subnormal"} or name.startswith("scale"):
            continue
        x, c = (t.double().numpy() for t in make(name, 24, d, 40))
        centre = np.median(c, axis=0)
        size = np.ldexp(1.0, np.frexp(np.median(np.abs(c - centre)))[1])
        if size == 0.0:
            continue
        x, c = (x - centre) / size, (c - centre) / size
        near = (np.abs(x) < 2.0**50).all(1), (np.abs(c) < 2.0**38).all(1)
        xr, cr = bfloat16(float32(x[near[0]])), bfloat16(float32(c[near[1]]))
        exact_bias = -0.5 * np.square(cr).sum(1)
        bias = float32(exact_bias)
        ones = np.ones((len(xr), 3))
        zero = np.zeros((len(xr), len(cr)))
        computed = tile_dot(np.hstack([xr, ones]), np.hstack([cr, parts_of(bias).T]), zero)
        error = np.abs(computed - (xr @ cr.T + exact_bias))
        x_norm, c_norm = measured_lengths(xr)[:, None], np.maximum(lengths(cr), 2.0**-14)
        allowed = a * (x_norm * c_norm + np.abs(bias))
        assert (error <= allowed).all(), name


@pytest.mark.parametrize("d", [32, 96])
def test_errors_of_scores_attain_their_bound(d):
    x, c = lost_increments(BFLOAT16, d)
    c *= 2.0**-6  # the bias is small beside the product
    exact_bias = -0.5 * np.square(c).sum(1)
    bias = float32(exact_bias)
    operands = np.hstack([x, np.ones((1, 3))]), np.hstack([c, parts_of(bias).T])
    error = np.abs(tile_dot(*operands, np.zeros((1, 2))) - (x @ c.T + exact_bias))
    a = 1.01 * UNIT * (17 + -(-(d + 3) // 32))
    share = error / (a * (lengths(x)[:, None] * lengths(c) + np.abs(bias)))
    assert 0.5 <= share.max() <= 1.0


@pytest.mark.parametrize("tiles", [1, 4, 33])
def test_columns_above_a_threshold_from_two_maxima(tiles):
    random = np.random.default_rng(tiles)
    scores = np.round(random.standard_normal((4000, tiles, 16)), 1)  # equal ones too
    limit = np.quantile(scores, 1 - 2 / (tiles * 16))
    above = scores >= limit
    tile, place = scores.max(2) >= limit, scores.max(1) >= limit
    assert (above <= tile[:, :, None] & place[:, None, :]).all()
    one = (tile.sum(1) == 1) & (place.sum(1) == 1)
    assert one.any() and (above[one].sum((1, 2)) == 1).all()
    # One maximum alone does not tell: two columns of a tile, or at a place of several.
    assert (above[tile.sum(1) == 1].sum((1, 2)) > 1).any()
    if tiles > 1:
        assert (above[place.sum(1) == 1].sum((1, 2)) > 1).any()


def test_the_chord_is_above_the_margin():
    random = np.random.default_rng(0)
    slack, distance, most = np.exp2(random.uniform(-12, 3, (3, 500, 1)))
    r = most * np.linspace(0, 1, 101)
    margin = (slack + r) * (distance + (slack + r) / 2)
    at_zero = slack * (distance + slack / 2)
    chord = at_zero + r * (slack + distance + most / 2)
    assert (chord >= margin * (1 - 1e-12)).all()
    assert (chord[:, -1] <= margin[:, -1] * (1 + 1e-12)).all()
    # The tangent at zero is not enough.
    assert (at_zero + r * (slack + distance) < margin * (1 - 1e-3)).any()


@pytest.mark.parametrize("k", [50, 200, 700])
def test_centroids_with_very_different_residuals(k):
    """Norms of a factor of 60 in one segment; rows half way between two of them, give or take."""
    random = torch.Generator().manual_seed(k)
    c = torch.randn(k, 48, generator=random)
    c *= torch.exp2(6 * torch.rand(k, 1, generator=random) - 3) / 7
    one, two = torch.randint(0, k, (2, 3000), generator=random)
    share = 0.5 + 1e-3 * torch.randn(3000, 1, generator=random)
    check_compiled(c[one] * share + c[two] * (1 - share), c, "euclidean")


@pytest.mark.parametrize("k", [16, 100, 128, 1000, 1024])
def test_scores_that_differ_in_their_last_bits(k):
    """All centroids at almost one distance: in every tile and at every place."""
    for d, step in ((2, 2.0**-22), (48, 2.0**-24), (48, 0.0)):
        c = torch.randn(k, d, dtype=torch.float64)
        c /= c.norm(dim=1, keepdim=True)
        c = (c * (1 + step * torch.randint(0, 3, (k, 1)))).float()
        check_compiled(torch.zeros(40, d) + 1e-7 * torch.randn(40, 1), c, "euclidean")
        check_compiled((c[:40] * 1e-3).contiguous(), c, "euclidean")


def test_the_square_of_the_roundings_decides():
    """Row and farther centroid are rounded to one point (the row's ties go away from zero), so the
    computed distance of the best is 0: S^2 / 2 keeps the nearest, which holds its value."""
    unit = 2.0**-8
    x = np.full((1, 6), 1 + unit)
    nearest = 1 - unit * np.array([1, 1, 1, 1, 1, 0])
    c = np.stack([nearest, np.full(6, 1 + unit * (2 + 251 / 256))])
    x, c = anchored((x, c), "euclidean")
    rows = torch.from_numpy(x).float().repeat(20, 1)
    check_compiled(rows, torch.from_numpy(c).float(), "euclidean")
