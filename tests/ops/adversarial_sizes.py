"""Generators of extreme sizes, and of what is not a plain number (see ``adversarial.py``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tests.ops.adversarial_base import GENERATORS, Arrays, Ask, float32, generator
from tests.ops.adversarial_ties import gaussian

# ---- sizes


def _offset(amount: float) -> Callable[[Ask], Arrays]:
    def offset(ask: Ask) -> Arrays:
        return ask.normal(ask.n, ask.d) + amount, ask.normal(ask.k, ask.d) + amount

    return offset


def _scale(amount: float) -> Callable[[Ask], Arrays]:
    def scale(ask: Ask) -> Arrays:
        return ask.normal(ask.n, ask.d) * amount, ask.normal(ask.k, ask.d) * amount

    return scale


def _outlier(amount: float) -> Callable[[Ask], Arrays]:
    def outlier(ask: Ask) -> Arrays:
        x, c = ask.normal(ask.n, ask.d), ask.normal(ask.k, ask.d)
        c[ask.k // 3] *= amount
        x[::7] = 0.7 * c[ask.k // 3]
        return x, c

    return outlier


for _amount in (30.0, 1e3, 1e5, 1e6):
    GENERATORS[f"offset_{_amount:.0e}"] = _offset(_amount)
for _amount in (1e-38, 1e-30, 1e-22, 1e-18, 1e-8, 1e8, 1e18, 1e30, 1e37):
    GENERATORS[f"scale_{_amount:.0e}"] = _scale(_amount)
for _amount in (1e4, 1e9, 1e30):
    GENERATORS[f"outlier_{_amount:.0e}"] = _outlier(_amount)


@generator
def subnormal(ask: Ask) -> Arrays:
    info = torch.finfo(ask.dtype)
    smallest = info.smallest_normal * info.eps
    x = ask.rng.integers(-5, 6, (ask.n, ask.d)) * smallest
    return x, ask.rng.integers(-5, 6, (ask.k, ask.d)) * smallest


@generator
def far_offset_of_few_columns(ask: Ask) -> Arrays:
    """One column at 1e6 with all the variance in the others."""
    x, c = gaussian(ask)
    x[:, ask.d // 2] += 1e6
    c[:, ask.d // 2] += 1e6
    return x, c


@generator
def constant_columns(ask: Ask) -> Arrays:
    """Most columns hold one value of 24 bits in all rows and centroids."""
    x, c = gaussian(ask)
    fixed = ask.rng.random(ask.d) < 0.8
    value = float32(1234.567 * ask.normal(ask.d))
    return np.where(fixed, value, x), np.where(fixed, value, c)


@generator
def mixed_row_scales(ask: Ask) -> Arrays:
    x, c = gaussian(ask)
    return x * 10.0 ** ask.rng.integers(-36, 37, (ask.n, 1)), c


@generator
def mixed_centroid_scales(ask: Ask) -> Arrays:
    x, c = gaussian(ask)
    factor = 10.0 ** ask.rng.integers(-18, 19, (ask.k, 1))
    return ask.rows_of(c * factor) * (1 + 0.1 * x), c * factor


@generator
def mixed_column_scales(ask: Ask) -> Arrays:
    x, c = gaussian(ask)
    factor = 10.0 ** ask.rng.integers(-9, 10, ask.d)
    return x * factor, c * factor


@generator
def huge_rows_tiny_centroids(ask: Ask) -> Arrays:
    return 1e20 * ask.normal(ask.n, ask.d), 1e-20 * ask.normal(ask.k, ask.d)


@generator
def tiny_rows_huge_centroids(ask: Ask) -> Arrays:
    return 1e-20 * ask.normal(ask.n, ask.d), 1e20 * ask.normal(ask.k, ask.d)


# ---- what is not a plain number


@generator
def zeros(ask: Ask) -> Arrays:
    """Zero rows, zero centroids, zeros of both signs."""
    x, c = gaussian(ask)
    x[::3] *= 0.0
    c[1::4] *= 0.0
    return x, c


@generator
def not_finite(ask: Ask) -> Arrays:
    """NaN and Inf in every third row and every third centroid, in the first and last column too."""
    x, c = gaussian(ask)
    bad = np.array([np.nan, np.inf, -np.inf])
    for values in (x[::3], c[1::3]):
        column = ask.rng.choice([0, ask.d - 1, ask.d // 2], len(values))
        values[np.arange(len(values)), column] = bad[ask.rng.integers(0, 3, len(values))]
    return x, c


@generator
def squares_near_the_largest_float(ask: Ask) -> Arrays:
    """All squared distances within some units of the largest float32: some overflow."""
    c = ask.normal(ask.k, ask.d)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    length = np.sqrt(np.finfo(np.float32).max.astype(float))
    c *= length * (1 + 2.0**-21 * ask.normal(ask.k, 1))
    return np.ldexp(length * ask.normal(ask.n, ask.d), -ask.rng.integers(22, 60, (ask.n, 1))), c
