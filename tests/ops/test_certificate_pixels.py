"""The certificate of the uint8 filter against emulated roundings: pixels in 8 and 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend
from tests.ops.adversarial_patches import PATCH_GENERATORS, make_patches
from tests.ops.certificate_pixels import COARSE, FINE, Pixels
from tests.ops.harness import running, usable_paths
from tests.ops.low_precision import float32
from tests.ops.patch_rows import Layout
from tests.ops.truth import nearest_ids

LINE = np.arange(256) - 128.0  # a table whose values are the pixels themselves


def table_of(mean: float | None, std: float | None) -> np.ndarray:
    pixels = np.arange(256, dtype=np.uint8)[:, None]
    norm = [None if v is None else [v] for v in (mean, std)]
    return Layout(1, 1).values(pixels, *norm)[:, 0].astype(np.float64)


def truth(pixels: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    return nearest_ids(torch.from_numpy(table[pixels]), torch.from_numpy(c), "euclidean")


# ---- cases: pixels [1, D], centroids [2, D] (the nearest first), table, largest |v|


def rounded_in_coarse_steps():
    """The nearest is rounded away by half a step, the other one lies on the grid."""
    return [[255, 128, 128]], [[127.0, 3.51, 0.0], [127.0, 3.0, 2.0]], LINE, COARSE, None


def rounded_in_fine_steps():
    g = 127.0 / FINE
    c = [[127.0, 3.51 * g, 0.0], [127.0, 3 * g, 170 * g]]
    return [[255, 28, 128]], c, LINE, FINE, None


def value_off_the_line():
    """At a mean of 1e4 float32 keeps 10 bits of a pixel: its value lies an eighth of a step off."""
    table = table_of(1e4, None)
    step = (table[255] - table[0]) / 255
    off = table - table[0] - step * np.arange(256)
    at = int(np.argmax(np.abs(off)))
    side = np.sign(off[at]) * 20 * step
    return [[at]], [[table[at] + side], [table[at] - side]], table, COARSE, None


def long_sums():
    """Sums just above 2^24: rounded to float32, times sigma and plus the bias, each time by almost
    half a unit, down for the nearest and up for the other."""
    random, d, many = np.random.default_rng(0), 1100, 6000
    v = np.full((many, d), 121)
    v[np.arange(d) < random.integers(40, 48, (many, 1))] += 1
    swapped = random.integers(0, 500, (many, 1))  # pairs (120, 122): other norms, the same sum
    v[:, 100:600] += np.arange(500) < swapped
    v[:, 600:1100] -= np.arange(500) < swapped
    sigma = 2.0**-6 * (1 + random.integers(0, 300, many) * 2.0**-23)
    pixels, c = np.full((1, d), 255), sigma[:, None] * v
    f = Pixels(pixels, c, LINE, sigma=sigma)
    lost = (f.exact - f.computed)[0] * 2.0**6  # in half units
    low, high = np.flatnonzero(lost > 2.1), np.flatnonzero(lost < -2.1)
    lead = (f.computed[0, high][None, :] - f.computed[0, low][:, None]) * 2.0**6
    i, j = np.argwhere(lead == 4.0)[0]
    pair = [low[i], high[j]]
    return pixels, c[pair], LINE, COARSE, sigma[pair]


def rounded_bias():
    """A row near the origin: the bias is rounded, and all that is added to it vanishes."""
    sigma = float32(2046.5 * (1 + np.arange(1, 3000) * 2.0**-22))
    pixels = np.array([[129, 128, 128, 128]])
    near, far = (sigma[:, None] * np.array(v) for v in ([1.0, 127, 17, 0], [-1.0, 127, 17, 1]))
    f, g = (Pixels(pixels, c, LINE, sigma=sigma) for c in (near, far))
    low, high = (f.exact - f.computed)[0], (g.exact - g.computed)[0]
    unit = 2.0**12
    lead = g.computed[0][None, :] - f.computed[0][:, None]
    found = (lead == unit) & (low[:, None] > 0.8 * unit) & (high[None, :] < -0.8 * unit)
    i, j = np.argwhere(found)[0]
    return pixels, np.stack([near[i], far[j]]), LINE, COARSE, sigma[[i, j]]


def best_rounded_towards_the_row():
    c = [[127.0, 2.0, 2.0, 2.0], [127.0, 3.49, 0.0, 0.0]]
    return [[255, 128, 128, 128]], c, LINE, COARSE, None


def best_rounded_onto_the_row():
    """The best is rounded onto the row by almost half a step in 59 columns; the nearest lies on the
    grid, as far from the row but for a little."""
    row, nearest = np.full((1, 60), 138), np.full(60, 10.0)
    best = nearest + 0.49
    row[0, 0], best[0], nearest[0] = 255, 127.0, 127.0
    nearest[1:14] -= 1.0
    return row, [nearest, best], LINE, COARSE, None


def nearest_rounded_away():
    """The nearest is rounded away from the row in 59 columns; the other one lies on the grid."""
    row, other = np.full((1, 60), 138), np.full(60, 10.0)
    nearest = other + 0.51
    row[0, 0], nearest[0], other[0] = 255, 127.0, 127.0
    other[1:17] -= 1.0
    return row, [nearest, other], LINE, COARSE, None


def one_rounded_onto_the_row_and_one_away():
    row, best = np.full((1, 60), 138), np.full(60, 10.499)
    nearest = np.full(60, 10.0)
    nearest[1:56] -= 0.51
    row[0, 0], nearest[0], best[0] = 255, 127.0, 127.0
    return row, [nearest, best], LINE, COARSE, None


CASES = {
    "best, 8 bits": ("best", best_rounded_towards_the_row),
    "square of the best": ("square of the best", best_rounded_onto_the_row),
    "own square": ("own square", nearest_rounded_away),
    "both": ("both", one_rounded_onto_the_row_and_one_away),
    "centroids, 8 bits": ("centroids", rounded_in_coarse_steps),
    "centroids, 16 bits": ("centroids", rounded_in_fine_steps),
    "pixels": ("pixels", value_off_the_line),
    "dot": ("dot", long_sums),
    "bias": ("bias", rounded_bias),
}


def filtered(name, without=()):
    pixels, c, table, largest, sigma = CASES[name][1]()
    pixels, c = np.asarray(pixels), np.asarray(c, np.float64)
    assert truth(pixels, c, table)[0] == 0
    return Pixels(pixels, c, table, largest, without, sigma)


@pytest.mark.parametrize("name", CASES)
def test_the_bound_is_attained(name):
    f = filtered(name)
    assert f.candidates()[0, 0]
    if name == "bias":  # scores are whole units: of a pair's bound only a half or all can be used
        share = np.abs(f.computed - f.exact) / f.error
        assert 0.5 <= share.max() <= 1.0
    else:
        assert 0.5 <= f.needed()[0, 0] / f.margins()[0, 0] <= 1.0


@pytest.mark.parametrize("name", CASES)
def test_the_term_is_needed(name):
    kept = filtered(name, without=(CASES[name][0],)).candidates()[0]
    assert kept.tolist() == [False, True]


def for_the_core(name):
    """The case as 20 patches of one pixel, with 130 more channels in which nothing differs: narrow
    rows may go another way. Cases of the line itself become cases of p / 255."""
    pixels, c, table, *_ = CASES[name][1]()
    pixels, c = np.asarray(pixels, np.uint8), np.asarray(c, np.float64)
    pixels = np.pad(pixels, ((0, 0), (0, 130)), constant_values=128)
    c = np.pad(c, ((0, 0), (0, 130)), constant_values=table[128])
    mean = [1e4] * c.shape[1] if name == "pixels" else None
    c = torch.from_numpy(c if mean else (c + 128) / 255)
    images = torch.from_numpy(pixels.T[None, :, None, :].copy()).repeat(20, 1, 1, 1)
    x = torch.from_numpy(Layout(1, len(pixels.T)).values(pixels, mean))
    return images, c, mean, nearest_ids(x, c, "euclidean")[0]


@pytest.mark.parametrize("name", [name for name in CASES if name not in {"dot", "bias"}])
def test_the_core_is_right_on_the_same_input(name):
    images, c, mean, expected = for_the_core(name)
    for path in usable_paths()[1:]:
        with running(path) as backend:
            ids = ops.patch_tokens(images, c, 1, mean=mean, std=mean and 1.0, backend=backend)
        assert (ids == expected).all(), path


@pytest.mark.parametrize("path", ["avx512_vnni", "amx"])
@pytest.mark.parametrize(
    "name", ["square of the best", "own square", "both", "centroids, 8 bits", "pixels"]
)
def test_the_core_without_its_margins_errs_as_the_emulation_says(name, path):
    images, c, mean, expected = for_the_core(name)
    core = _backend.core()
    with running(path) as backend:
        core.set_certified(certified=False)
        try:
            ids = ops.patch_tokens(images, c, 1, mean=mean, std=mean and 1.0, backend=backend)
        finally:
            core.set_certified(certified=True)
    assert expected == 0
    assert (ids == 1).all()


TABLES = (
    (None, None),
    (0.485, 0.229),
    (0.5, 0.5),
    (-3.0, 1.0),
    (0.1, 1e-3),
    (40.0, 2.0),
    (1e4, None),
)


@pytest.mark.parametrize("largest", [COARSE, FINE])
@pytest.mark.parametrize("mean, std", TABLES)
def test_no_bound_is_exceeded(mean, std, largest):
    table = table_of(mean, std)
    norm = {"mean": None if mean is None else [mean], "std": None if std is None else [std]}
    for name in PATCH_GENERATORS:
        if name in {"not_finite", "one_far_centroid"}:
            continue
        for p in (1, 3, 8, 16):
            pixels, c = make_patches(name, 18, 20, Layout(p, 1), **norm)
            c = c.astype(np.float64)
            f = Pixels(pixels, c, table, largest)
            assert (np.abs(f.computed - f.exact) <= f.error).all(), name
            moved = np.sqrt(np.square(f.x - f.x_line).sum(1))
            assert (moved <= f.rho * (1 + 2.0**-30) + 2.0**-40).all(), name
            kept = f.candidates()[np.arange(len(pixels)), truth(pixels, c, table)]
            assert kept.all(), f"{name}: row {np.flatnonzero(~kept)[0]} loses its nearest centroid"
