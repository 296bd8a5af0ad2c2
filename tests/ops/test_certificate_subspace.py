"""Section 3 of docs/certificate.md against emulated roundings: coordinates in a subspace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.adversarial import GENERATORS, make
from tests.ops.assignment import check_compiled
from tests.ops.certificate_model import BFLOAT16, FLOAT32, FORMATS, UNIT, lengths
from tests.ops.certificate_subspace import Projected
from tests.ops.harness import projecting
from tests.ops.low_precision import bfloat16, float32
from tests.ops.truth import nearest_ids
from tests.ops.worst_cases import centroids_rounded_away, row_rounded_away

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
IN_FOUR = np.full((1, 4), 0.5)
MORE = 1 + 2.0**-20  # the quotients are float64's


def truth(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    return nearest_ids(torch.from_numpy(x), torch.from_numpy(c), "euclidean")


# ---- terms without which the rule drops the nearest centroid: (row, centroids, basis)

LINE = np.ones((1, 1))
NEEDED = {
    # The parts outside of the subspace point the nearest way for one, the other way for the other.
    "outside": (
        np.array([[0.0, 0.25]]), np.array([[243 / 256, 1.0], [0.0, -1.0]]), np.array([[1.0, 0.0]]),
    ),
    "rows": (*row_rounded_away(), LINE),
    "centroids": (*centroids_rounded_away(), LINE),
    # The row is exact, its coordinate 2 + 2^-7 is not.
    "coordinates'": (
        np.array([[1 + 2.0**-7, 1.0, 1 + 2.0**-7, 1.0]]), np.array([[2.0] * 4, [2.0**-7] * 4]),
        IN_FOUR,
    ),
    # A crooked basis: one axis stretched, one shortened.
    "skew": (np.ones((1, 2)), np.array([[0.0, 1.0], [1.0, 0.0]]), np.diag([1.1, 0.95])),
}  # fmt: skip
TIGHT = ("outside", "rows", "centroids", "coordinates'")


@pytest.mark.parametrize("term", NEEDED)
def test_the_term_is_needed(term):
    x, c, basis = NEEDED[term]
    assert truth(x, c) == 0
    assert Projected(x, c, basis, BFLOAT16).candidates()[0, 0]
    without = Projected(x, c, basis, BFLOAT16, without=(term,))
    assert without.candidates()[0].tolist() == [False, True]


@pytest.mark.parametrize("term", TIGHT)
def test_the_bound_is_attained(term):
    filtered = Projected(*NEEDED[term], BFLOAT16)
    assert 0.5 <= filtered.needed()[0, 0] / filtered.margins()[0, 0] <= 1.0


# ---- single terms: error of one step over its bound


def shares(f: Projected, x: np.ndarray, c: np.ndarray, basis: np.ndarray) -> dict[str, float]:
    """The largest share of each bound that any row or centroid uses."""

    def most(error, bound):
        return float(np.max(error / np.maximum(bound, 1e-300), initial=0.0))

    true_u, true_p = x @ f.orthonormal.T, c @ f.orthonormal.T
    outside2 = np.maximum(0.0, np.square(c - true_p @ f.orthonormal).sum(1))
    stored2 = -2 * f.bias - np.square(f.pr).sum(1)
    w = lengths(x - true_u @ f.orthonormal)
    skew = np.linalg.norm(basis @ basis.T - np.eye(len(basis)))
    rounding = np.linalg.norm(f.packed_basis - basis)
    tiny = 2.0**-40  # of lengths near one: float64's own
    return {
        "skew": most(lengths(x @ basis.T - true_u) - tiny, skew * lengths(x)),
        "rounding": most(
            lengths(f.xr @ (f.packed_basis - basis).T) - tiny, rounding * lengths(f.xr)
        ),
        "coordinates": most(lengths(f.y - f.xr @ f.packed_basis.T), f.computing * lengths(f.xr)),
        "rho": most(lengths(f.yr - true_u), f.rho + tiny),
        "kappa": most(lengths(f.p - true_p), f.kappa * lengths(c) + tiny),
        "r": most(lengths(f.pr - true_p), f.r + tiny),
        "moved": most(
            np.abs(stored2 - outside2) - 4 * 2.0**-24 * np.abs(f.bias), f.moved + tiny
        ),
        "w": most(w, f.w + tiny),
        "q": most(np.sqrt(outside2), f.q + tiny),
    }  # fmt: skip


def lost_coordinates(fmt, d: int):
    """A basis of one vector and a row (a centroid): a first product just above 1, the others just
    under half a unit of its last place."""
    step, large = (32, 2) if fmt is BFLOAT16 else (64, 1)
    small = 2.0**-12
    basis, x = np.zeros((1, d)), np.full((1, d), small * 255 / 256)
    basis[0, :step] = small
    basis[0, step::step] = small
    basis[0, :large] = np.sqrt((1 - np.square(basis[0, large:]).sum()) / large)
    basis = float32(basis)
    if fmt is BFLOAT16:
        basis[0, large:] = bfloat16(basis[0, large:])
    x[0, step:] *= large
    x[0, :large] = bfloat16(1.005 / basis[0, 0]) + 2.0**-7
    return x, basis


@pytest.mark.parametrize("d", [64, 256, 1024])
def test_errors_of_computed_coordinates_attain_their_bounds(d):
    for fmt in FORMATS:
        x, basis = lost_coordinates(fmt, d)
        share = shares(Projected(x, x, basis, fmt), x, x, basis)
        assert 0.5 <= share["coordinates"] <= 1.0, fmt.name
    x, basis = lost_coordinates(FLOAT32, d)
    share = shares(Projected(x, x, basis, FLOAT32), x, x, basis)
    for name in ("kappa", "moved"):
        assert 0.5 <= share[name] <= 1.0, name


def test_errors_of_the_basis_attain_their_bounds():
    x = np.ones((1, 1))
    share = shares(Projected(x, x, 0.9 * x, FLOAT32), x, x, 0.9 * x)
    assert 0.5 <= share["skew"] <= 1.0
    # A vector whose two bfloat16 parts leave the most, and a row along what they leave.
    angles = float32(np.random.default_rng(0).uniform(0.2, 1.3, 2000))
    vectors = float32(np.stack([np.cos(angles), np.sin(angles)], 1))
    left = vectors - bfloat16(vectors) - bfloat16(vectors - bfloat16(vectors))
    basis = vectors[[np.argmax(lengths(left))]]
    x = bfloat16(left[[np.argmax(lengths(left))]] * 2.0**20)
    share = shares(Projected(x, x, basis, BFLOAT16), x, x, basis)
    assert 0.5 <= share["rounding"] <= 1.0


# ---- random search


@every_format
@pytest.mark.parametrize("d, n", [(3, 1), (17, 5), (40, 33), (64, 16)])
def test_no_bound_is_exceeded(fmt, d, n):
    random = np.random.default_rng(d)
    for name in GENERATORS:
        if name in {"not_finite", "subnormal"} or name.startswith(("scale", "outlier", "mixed_c")):
            continue
        x, c = (t.double().numpy() for t in make(name, 20, d, 24))
        size = np.ldexp(1.0, np.frexp(np.median(np.abs(c[c != 0])))[1])
        centre = np.median(c / size, axis=0)
        x, c = x / size - centre, c / size - centre
        x = x[(np.abs(x) < 2.0**20).all(1)]
        if len(x) == 0 or np.abs(c).max() > 2.0**20:
            continue
        _, _, leading = np.linalg.svd(c + 1e-9 * random.standard_normal(c.shape))
        crooked = random.choice([0.0, 1e-7, 1e-3]) * random.standard_normal((n, d))
        basis = float32(leading[:n] + crooked)
        f = Projected(x, c, basis, fmt)
        for term, share in shares(f, x, c, basis).items():
            assert share <= MORE, f"{name}: {term} uses {share} of its bound"
        kept = f.candidates()[np.arange(len(x)), truth(x, c)]
        assert kept.all(), f"{name}: row {np.flatnonzero(~kept)[0]} loses its nearest centroid"


# ---- in the core


def test_coordinates_that_decide():
    """In float32, a basis of one block of 1024 columns and of single ones: the row's coordinate in
    the block loses 78 times almost half a unit of its last place, which turns its order round."""
    block, d = 1024, 1055
    c = np.zeros((64, d))
    c[0, :block] = -1 / 32  # the nearest: one step back along the block
    c[1, :block] = c[3, :block] = 1 / 32  # one step forth, and one to either side
    c[1, block], c[3, block] = 1.0, -1.0
    for i in range(31):
        c[2 + 2 * i, block + i] = 1.5
        if i < 30:
            c[5 + 2 * i, block + i] = -1.5
    coordinate = 0.25 + 18 * UNIT  # more than 1/4, less than it with what is lost
    x = np.zeros((20, d))
    x[:, 1:64] = x[:, 64:block:64] = -32 * UNIT / 4 * 255 / 256
    x[:, 0] = 32 * coordinate
    assert truth(x[:1], c)[0] == 0
    x, c = torch.from_numpy(x).float(), torch.from_numpy(c).float()
    with projecting("always"):
        check_compiled(x, c, "euclidean")
