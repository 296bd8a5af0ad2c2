"""Narrow rows in docs/certificate.md: the bias in the product, columns in the scores' last bits.

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
from tests.ops.worst_cases import lost_increments


def parts_of(bias: np.ndarray) -> np.ndarray:
    """[3, K] bfloat16 values, each cut off at 8 bits, of the same sign."""
    parts, rest = [], bias
    for _ in range(3):
        bits = rest.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        parts.append(bits.view(np.float32).astype(np.float64))
        rest = rest - parts[-1]
    assert (np.abs(rest) <= 2.0**-133).all()  # the last bit of a subnormal bfloat16
    return np.stack(parts)


def marked(scores: np.ndarray, bits: int) -> np.ndarray:
    """[N, K] float32 scores whose last bits say their column."""
    whole = scores.astype(np.float32).view(np.uint32) & ~np.uint32((1 << bits) - 1)
    whole |= np.arange(scores.shape[1], dtype=np.uint32)
    return whole.view(np.float32).astype(np.float64)


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


@pytest.mark.parametrize("bits", [4, 7, 10])
def test_marks_change_a_score_by_less_than_their_share(bits):
    random = np.random.default_rng(bits)
    size = 2.0 ** random.integers(-100, 100, (200, 1))
    scores = float32(random.standard_normal((200, 1 << bits)) * size)
    scores[0], scores[1] = 1.0, -1.0
    change = np.abs(marked(scores, bits) - scores) / np.abs(scores)
    share = change.max() / 2.0 ** (bits - 23)
    assert 0.9 <= share < 1.0
    tiny = float32(random.standard_normal((50, 1 << bits)) * 2.0**-135)
    assert np.abs(marked(tiny, bits) - tiny).max() < 2.0**-139
    # Without the share a column whose score is larger is taken for the smaller one.
    close = np.full((1, 1 << bits), 1.0)
    close[0, 0] += 2.0**-23
    assert marked(close, bits).argmax() == (1 << bits) - 1 != close.argmax()


@pytest.mark.parametrize("k", [16, 100, 128, 1000, 1024])
def test_scores_that_differ_in_their_last_bits(k):
    """All centroids at almost one distance: a mark alone would decide, and the last column win."""
    for d, step in ((2, 2.0**-22), (48, 2.0**-24), (48, 0.0)):
        c = torch.randn(k, d, dtype=torch.float64)
        c /= c.norm(dim=1, keepdim=True)
        c = (c * (1 + step * torch.randint(0, 3, (k, 1)))).float()
        check_compiled(torch.zeros(40, d) + 1e-7 * torch.randn(40, 1), c, "euclidean")
        check_compiled((c[:40] * 1e-3).contiguous(), c, "euclidean")
