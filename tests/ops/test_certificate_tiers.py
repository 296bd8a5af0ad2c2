"""Section 6 of docs/certificate.md: inputs on which each bound of the tiers behind the filter is
needed: float32, float64 and exact cosines. Without it these ids would be wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.ops.assignment import check_compiled
from tests.ops.harness import fewer


def undecided(rows: list[list[float]], nearest: int, d: int, dtype: torch.dtype) -> None:
    """A row at zero and centroids so close to it, beside others of length 1, that no filter tells
    them apart."""
    c = np.zeros((len(rows) + 7, d))
    for to, row in zip(c, rows, strict=False):
        to[: len(row)] = row
    c[len(rows) :, -1] = [1, -1, 1.25, -1.25, 1.5, -1.5, 1.75]
    x = torch.zeros(fewer(20, 2), d, dtype=dtype)
    assert (check_compiled(x, torch.from_numpy(c).to(dtype), "euclidean") == nearest).all()


@pytest.mark.parametrize(
    "unit, dtype", [(2.0**-74, torch.float32), (2.0**-537, torch.float64)], ids=["32", "64"]
)
def test_squares_that_underflow(unit, dtype):
    """Of half a unit of the smallest number each: two are rounded up, one of three halves down."""
    half = math.sqrt(0.5) if dtype == torch.float32 else 1.0  # the unit itself is its square's root
    up, down = (math.sqrt(part) * unit * half for part in (0.51, 1.49))
    undecided([[up, up], [0.0, 0.0, down]], 0, 4, dtype)
    undecided([[0.0, 0.0, down], [up, up]], 1, 4, dtype)


def test_float64_sums_lose_small_squares():
    """99 squares of a quarter unit vanish one by one beside 1."""
    farther, nearest = np.zeros(800), np.zeros(800)
    farther[::8], farther[0] = 2.0**-27 * 255 / 256, 1.0
    nearest[:2] = 1.0, 3 * 2.0**-26
    for first in (True, False):
        pair = [nearest, farther] if first else [farther, nearest]
        c = torch.from_numpy(np.stack(pair)).float()
        assert (check_compiled(torch.zeros(fewer(20, 2), 800), c, "euclidean") == 1 - first).all()


def test_quotients_that_underflow():
    """The nearest's product is rounded down, its cosine to zero; the other one's the other way."""
    unit = 2.0**-1074
    x = torch.tensor([[unit, unit, 0.0]], dtype=torch.float64).repeat(fewer(20, 1), 1)
    near, far = [1.49, 1.49], [1.501, 0.501]
    c = torch.tensor(
        [[*v, math.sqrt(4.1**2 - v[0] ** 2 - v[1] ** 2)] for v in (near, far)], dtype=torch.float64
    )
    assert (check_compiled(x, c, "cosine") == 0).all()
    assert (check_compiled(x, c.flip(0), "cosine") == 1).all()


@pytest.mark.parametrize("n", [2**21 + 3, 2**22 + 5, 2**23 - 50])
def test_cosines_that_float64_cannot_compare(n):
    """Angles that differ by less than 2^-53; many, so that integers decide, of products too long
    for float64."""
    k = torch.randperm(fewer(24, 10), generator=torch.Generator().manual_seed(n)).float()
    c = torch.stack([n + k, n + k + 1], 1)
    check_compiled(torch.tensor([[8388611.0, 8388593.0]]).repeat(fewer(20, 1), 1), c, "cosine")
