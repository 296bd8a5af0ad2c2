"""nearest_centroid on random mixtures of the adversarial set, driven and shrunk by hypothesis.

The examples are the same at every run (``derandomize``), so that a failure in CI is a failure here.
"""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from tests.ops.adversarial import GENERATORS, make
from tests.ops.assignment import check_compiled
from tests.ops.harness import DTYPES, METRICS

COMMON = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
}
dtypes = st.sampled_from(DTYPES)
metrics = st.sampled_from(METRICS)
widths = st.one_of(st.integers(1, 70), st.sampled_from([96, 128, 129, 192, 300]))


@st.composite
def mixtures(draw):
    """Some generators' rows and centroids, scaled, shifted, shuffled and made to tie."""
    d, metric = draw(widths), draw(metrics)
    names = draw(st.lists(st.sampled_from(list(GENERATORS)), min_size=1, max_size=4))
    dtype, c_dtype = draw(dtypes), draw(dtypes)
    parts = [
        make(name, draw(st.integers(1, 40)), d, draw(st.integers(1, 40)), metric, dtype, c_dtype)
        for name in names
    ]
    x = torch.cat([part[0] for part in parts]).double()
    c = torch.cat([part[1] for part in parts]).double()
    shift = draw(st.sampled_from([0.0, 0.0, 1.0, -37.5, 1e4, 1e6]))
    scale = 2.0 ** draw(st.sampled_from([0, 0, -3, 7, -60, 60, -130, 120]))
    x, c = (x + shift) * scale, (c + shift) * scale
    if draw(st.booleans()):  # the columns' own sizes
        column = 2.0 ** torch.from_numpy(_random(draw).integers(-6, 7, d))
        x, c = x * column, c * column
    if draw(st.booleans()):  # one centroid away from the rest
        c[draw(st.integers(0, len(c) - 1))] *= draw(st.sampled_from([-1.0, 1e4, 1e9, 1e30]))
    if draw(st.booleans()):  # rows that are centroids, and half-way between two
        rows = _random(draw).integers(0, len(c), (2, len(x)))
        x[::5] = c[rows[0]][::5]
        x[1::5] = ((c[rows[0]] + c[rows[1]]) / 2)[1::5]
    if draw(st.booleans()):  # each centroid again
        c = torch.cat([c, c.flip(0)])
    order = torch.from_numpy(_random(draw).permutation(len(c)))
    return x.to(dtype), c[order].to(c_dtype), metric


def _random(draw) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


@st.composite
def single_values(draw):
    """A few values each drawn on its own: bits that no generator thought of."""
    d, dtype, c_dtype = draw(st.integers(1, 5)), draw(dtypes), draw(dtypes)
    pool = draw(
        st.one_of(
            st.just(st.floats(width=32)),
            st.just(st.floats(-2, 2, width=32)),
            st.just(st.floats(-2, 2, width=16)),
            st.just(st.integers(-3, 3).map(float)),
            st.just(st.floats(1.0, 1.0 + 2.0**-20, width=32)),
            st.just(st.sampled_from([0.0, -0.0, 2.0**-149, 1.0, 1e30, -1e38, np.inf, np.nan])),
        )
    )
    vectors = st.lists(pool, min_size=d, max_size=d)
    x = draw(st.lists(vectors, min_size=1, max_size=8))
    c = draw(st.lists(vectors, min_size=1, max_size=6))
    return (
        torch.tensor(x, dtype=torch.float64).to(dtype),
        torch.tensor(c, dtype=torch.float64).to(c_dtype),
        draw(metrics),
    )


def check(example) -> None:
    x, c, metric = example
    check_compiled(x, c, metric)


@hypothesis.settings(max_examples=500, **COMMON)
@hypothesis.given(mixtures())
def test_random_mixtures(example):
    check(example)


@hypothesis.settings(max_examples=800, **COMMON)
@hypothesis.given(single_values())
def test_random_values(example):
    check(example)


@pytest.mark.slow
@hypothesis.settings(max_examples=8000, **COMMON)
@hypothesis.given(mixtures())
def test_many_random_mixtures(example):
    check(example)


@pytest.mark.slow
@hypothesis.settings(max_examples=4000, **COMMON)
@hypothesis.given(single_values())
def test_many_random_values(example):
    check(example)
