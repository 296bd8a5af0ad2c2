"""Sums of squares in docs/certificate.md: measured lengths (section 1), the float32 tier (4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.adversarial import GENERATORS, make
from tests.ops.assignment import check_compiled
from tests.ops.certificate_model import UNIT
from tests.ops.low_precision import add, float32, sum_in_runs, sum_of_squares
from tests.ops.truth import nearest_ids

LONG = (1024, 2048, 4096)
RUN = 16 * 32  # columns of a run: 16 chains of 32
LENGTH = 1.01 * UNIT * 54  # section 1: relative error of a squared length


def tier_bound(d: int) -> float:
    """Section 4: relative error of the float32 tier's distance."""
    return 1.02 * UNIT * (d / 16 + 47)


def swallowed(d: int) -> np.ndarray:
    """Each of the 16 chains starts just above 1; all that follows is under half a unit of it."""
    values = np.full((1, d), 2.0**-12 * 255 / 256)
    values[0, :16] = 1 + 2.0**-8
    return values


def direct(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    return sum_of_squares(add(x, -c))


@pytest.mark.parametrize("d", LONG)
def test_bounds_of_sums_are_attained(d):
    values = swallowed(d)
    exact = np.square(values).sum()
    error = abs(sum_of_squares(values)[0] - exact) / exact
    assert 0.5 <= error / tier_bound(d) <= 1.0


@pytest.mark.parametrize("d", [RUN, *LONG, 65536])
def test_lengths_do_not_err_more_where_rows_are_wider(d):
    values = np.concatenate([swallowed(RUN)] * (d // RUN), axis=1)  # every run loses the most
    exact = np.square(values).sum()
    assert 0.5 <= abs(sum_in_runs(values, RUN)[0] - exact) / exact / LENGTH <= 1.0
    # Rounded up it is a bound; of chains as long as the row it would be none.
    assert np.sqrt(exact) <= np.sqrt(sum_in_runs(values, RUN)[0]) * (1 + 2.0**-18)
    if d == 65536:
        values = swallowed(d)
        assert np.linalg.norm(values) > np.sqrt(sum_of_squares(values)[0]) * (1 + 2.0**-18)


def test_lost_squares_attain_their_bound():
    """Squares just under 2^-150 are rounded to 0; just above they are doubled."""
    for factor in (1 - 2.0**-23, 1 + 2.0**-23):
        values = np.full((1, 64), 2.0**-75 * factor)
        error = np.abs(sum_of_squares(values) - np.square(values).sum())
        assert 0.5 <= error / (64 * 2.0**-150) <= 1.0


@pytest.mark.parametrize("d", LONG)
def test_the_float32_tier_needs_its_bound(d):
    """The farther centroid's distance loses its small squares, the nearest one's has none."""
    farther = swallowed(d)
    nearest = np.zeros((1, d))
    computed, exact = sum_of_squares(farther)[0], np.square(farther).sum()
    nearest[0, :16] = float32(np.sqrt((0.2 * computed + 0.8 * exact) / 16))
    x, c = np.zeros((1, d)), np.concatenate([nearest, farther])
    assert nearest_ids(torch.from_numpy(x), torch.from_numpy(c), "euclidean")[0] == 0
    distance = direct(x, c)
    assert distance[1] < distance[0]  # a plain comparison drops the nearest
    relative = tier_bound(d)
    assert distance[0] * (1 - relative) <= distance[1] * (1 + relative)  # with the bound it stays
    x, c = torch.from_numpy(x).repeat(20, 1), torch.from_numpy(c)
    check_compiled(x.float(), c.float(), "euclidean")
    check_compiled(x + 1.0, c + 1.0, "euclidean")


@pytest.mark.parametrize("d", [1, 15, 16, 17, 100, 300, 600])
def test_no_bound_of_sums_is_exceeded(d):
    for name in GENERATORS:
        if name in {"not_finite", "scale_1e-38", "scale_1e-30", "subnormal"}:
            continue
        x, c = (t.double().numpy() for t in make(name, 30, d, 30))
        usable = (np.abs(x) < 2.0**50).all(1) & (np.abs(c) < 2.0**50).all(1)
        if not usable.any():
            continue
        x, c = x[usable], c[usable]
        lost = d * 2.0**-150
        exact = np.square(x).sum(1)
        assert (np.abs(sum_in_runs(x, RUN) - exact) <= LENGTH * exact + lost).all(), name
        exact = np.square(x - c).sum(1)
        assert (np.abs(direct(x, c) - exact) <= tier_bound(d) * exact + lost).all(), name
