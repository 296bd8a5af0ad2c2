"""Narrow rows as 16-bit integers: their certificate emulated, its terms attained and needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend
from tests.ops.adversarial import GENERATORS, make
from tests.ops.assignment import check_compiled
from tests.ops.certificate_integers import MOST_CENTROID, ZERO, Integers
from tests.ops.certificate_model import UNIT, lengths
from tests.ops.harness import fewer, running, usable_paths
from tests.ops.low_precision import float32
from tests.ops.truth import nearest_ids

INTEGER_PATHS = [p for p in usable_paths()[1:] if p != "amx"]  # which has tiles for such rows
LARGEST = MOST_CENTROID - 8  # of all centroids: then a unit of the integers is the core's


def truth(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    return nearest_ids(torch.from_numpy(x), torch.from_numpy(c), "euclidean")


def anchored(x, c, axes=20):
    """With as many centroids more, far away, each on an axis of its own: the centre is zero and
    the largest norm is known."""
    x, c = (np.pad(np.asarray(v, float), ((0, 0), (0, axes))) for v in (x, c))
    far = np.zeros((axes, c.shape[1]))
    far[:, -axes:] = LARGEST * np.eye(axes)
    return x, np.vstack([c, far])


def rounded_apart():
    """The row lies between two centroids; rounding takes the nearest away from it and brings the
    other one closer, by almost half a unit in each of 64 columns."""
    d, size = 64, 1000.0
    c = np.full((2, d), size + 0.51)
    c[1] = -(size - 0.51)
    c[1, 0] = -(size + 4.0)
    return anchored(np.full((1, d), 0.49), c)


def columns_in_the_last_bits():
    """The row is its nearest centroid; the last one is 11 units away and has a larger mark. Groups
    on three axes keep the centre at zero."""
    size = next(v for v in range(4000, 4100) if 200 <= v * v // 2 % 256 < 230)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
    c = np.zeros((194, 10))
    c[0, 0] = size
    c[1, 9] = LARGEST
    for group in range(3):
        some = c[2 + 64 * group : 66 + 64 * group]
        some[:, 2 - group] = size - 4
        some[:, 3 + 2 * group : 5 + 2 * group] = grid
    c[-64:-1, 0] -= 1000.0
    return c[:1].copy(), c


CASES = {"rows": rounded_apart, "centroids": rounded_apart, "marks": columns_in_the_last_bits}


@pytest.mark.parametrize("name", CASES)
def test_the_bound_is_attained(name):
    x, c = CASES[name]()
    assert truth(x, c)[0] == 0
    f = Integers(x, c)
    assert f.candidates()[0, 0]
    if name == "marks":  # of a pair's bound marks alone use no more than a half
        assert 0.5 <= np.abs(f.marked - f.scores).max() / f.marks <= 1.0
    else:
        assert 0.5 <= f.needed()[0, 0] / f.margins()[0] <= 1.0


@pytest.mark.parametrize("name", CASES)
def test_the_term_is_needed(name):
    f = Integers(*CASES[name](), without=(name,))
    assert not f.candidates()[0, 0]


def test_two_roundings_before_the_last():
    """x - m and its product with a factor are rounded too: a value can move by more than a half."""
    random = np.random.default_rng(0)
    x = float32(random.uniform(4, 8, 200_000))
    centre = float32(random.uniform(-3, -1, 200_000))
    factor = float32(MOST_CENTROID / np.array(0.75))
    exact = (x - centre) * factor  # of float32 values, so all but exact
    moved = np.abs(exact - float32(float32(x - centre) * factor)) / np.abs(exact)
    assert 0.5 <= moved.max() / (2.03 * UNIT) <= 1.0
    half = np.array([[20000.5 + 2.0**-11]])
    assert np.abs(half - Integers(half, np.ones((1, 1))).x_int) > 0.5


@pytest.mark.parametrize("name", CASES)
def test_the_core_is_right_on_the_same_input(name):
    x, c = (torch.from_numpy(v) for v in CASES[name]())
    for offset in (0.0, 1.0, -64.0):
        rows = x.repeat(fewer(20, 2), 1)
        check_compiled((rows + offset).float(), (c + offset).float(), "euclidean")


@pytest.mark.parametrize("path", INTEGER_PATHS)
@pytest.mark.parametrize("name", CASES)
def test_the_core_without_its_margins_errs_as_the_emulation_says(name, path):
    x, c = (torch.from_numpy(v).float() for v in CASES[name]())
    expected = Integers(x.double().numpy(), c.double().numpy()).marked.argmax(1)
    assert expected[0] != 0
    core = _backend.core()
    with running(path) as backend:
        core.set_certified(certified=False)
        try:
            ids = ops.nearest_centroid(x.repeat(40, 1), c, backend=backend)
        finally:
            core.set_certified(certified=True)
    assert (ids.numpy() == expected).all()


@pytest.mark.parametrize("d", [1, 3, 17, 48, 100, 128])
def test_no_bound_is_exceeded(d):
    for name in GENERATORS:
        if name in {"not_finite", "subnormal"} or name.startswith("scale"):
            continue
        x, c = (t.double().numpy() for t in make(name, 24, d, 40))
        centre = np.median(c, axis=0)
        x, c = x - centre, c - centre  # rounded to float64: the values are what they are
        largest = lengths(c).max()
        if not 0.0 < largest < 1e30:
            continue
        x, c = x * (LARGEST / largest), c * (LARGEST / largest)
        x = x[lengths(x) < 31_900]
        f = Integers(x, c)
        assert (2 * (f.scores - ZERO) - f.exact2 >= 0).all()
        assert (2 * (f.scores - ZERO) - f.exact2 <= 1).all()
        assert (f.scores > 2**23).all()
        assert (f.scores < 2**31 - 2**23).all()
        assert (lengths(x - f.x_int) <= f.rho).all(), name
        assert f.candidates()[np.arange(len(x)), truth(x, c)].all(), name


# ---- sizes and rows at the edges of what the kernels handle


@pytest.mark.parametrize("d", [1, 2, 3, 7, 15, 16, 17, 31, 33, 47, 48, 127, 128])
@pytest.mark.parametrize("k", [1, 2, 3, 13, 16, 17, 50])
def test_sizes(d, k):
    random = torch.Generator().manual_seed(d * 1000 + k)
    c = torch.randn(k, d, generator=random)
    for n in (5, 31, 33)[: fewer(3, 1)]:
        check_compiled(torch.randn(n, d, generator=random), c, "euclidean")


@pytest.mark.parametrize("k", [1023, 1024, 1025, 4096, 4097])
def test_many_columns(k):
    random = torch.Generator().manual_seed(k)
    c = torch.randn(k, 48, generator=random)
    x = torch.cat([torch.randn(40, 48, generator=random), (c[-20:] + c[:20]) / 2, c[-5:]])
    check_compiled(x, c, "euclidean")


@pytest.mark.parametrize("d", [1, 5, 48, 100])
def test_strided_rows(d):
    random = torch.Generator().manual_seed(d)
    c = torch.randn(40, d, generator=random)
    wide = torch.randn(70, 2 * d + 3, generator=random)
    check_compiled(wide[:, 1 : d + 1], c, "euclidean")
    check_compiled(wide[::3, :d], c, "euclidean")
    check_compiled(wide[:1, :d].expand(37, d), c, "euclidean")


@pytest.mark.parametrize("d", [1, 3, 48, 127])
def test_rows_out_of_range(d):
    """Far from all centroids by every power of two, or not finite, alone and in runs."""
    random = torch.Generator().manual_seed(d)
    c = torch.randn(fewer(30, 9), d, generator=random)
    x = torch.randn(130, d, generator=random)
    x *= (2.0 ** (torch.arange(130.0) - 5))[:, None].clamp(max=3e37)
    for bad in (float("nan"), float("inf"), -float("inf"), 3e38, -3e38):
        x[10::17, d // 2] = bad
        check_compiled(x[:: fewer(1, 40)], c, "euclidean")
        order = torch.randperm(130, generator=random)
        check_compiled(x[order[: fewer(130, 4)]], c, "euclidean")


def test_a_row_at_the_edge_of_the_range():
    """Values that saturate 16 bits, and norms around the largest one that is used."""
    for d in (1, 2, 48, 128):
        c = anchored(np.zeros((1, d)), 10.0 * np.eye(2, d))[1]
        size = np.concatenate([np.linspace(31_990, 32_010, 41), np.linspace(32_766, 32_770, 17)])
        one = np.zeros((len(size), c.shape[1]))
        one[:, 0] = size
        for x in (one, -one, one[:, :1] / np.sqrt(c.shape[1]) + 0 * one):
            check_compiled(torch.from_numpy(x).float(), torch.from_numpy(c).float(), "euclidean")
