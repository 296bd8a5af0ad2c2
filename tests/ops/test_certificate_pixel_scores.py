"""Section 5 of docs/certificate.md: images on which the error of the 8-bit scores decides.

Centroids are made of floats `sigma` and integers v (largest: 127) such that the core rounds them to
just these; the scores are recomputed as the instructions give them, and the pair is searched whose
order their roundings turn round the most.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.certificate_model import UNIT
from tests.ops.harness import running
from tests.ops.low_precision import float32, fused
from tests.ops.patch_rows import Layout
from tests.ops.truth import nearest_ids

LARGEST = 127


class Scores:
    """One row of pixels [D] and centroids [K, D] in the core's frame: x' = (value - o) s."""

    def __init__(self, pixels: np.ndarray, v: np.ndarray, size: float, ulps: np.ndarray) -> None:
        step, origin = 1 / 255, 128 / 255
        usual = size * step * np.sqrt(np.square(v).sum(1)).max()
        scale = 2.0 ** -np.frexp(usual)[1]
        a = step * scale
        first = float32(size * a * a)
        sigma = first + ulps * np.spacing(np.float32(first)).astype(float)  # of one binade
        v = v.astype(float)
        sums = v @ (pixels - 128.0)
        square = np.square(sigma / a) * np.square(v).sum(1)
        self.bias = float32(-0.5 * square)
        self.exact = sigma * sums - 0.5 * square
        self.computed = fused(float32(sums), sigma, self.bias)
        self.lost = self.exact - self.computed
        shrunk = np.where(np.abs(v) == LARGEST, 1 - 2.0**-39, 1.0)  # the core rounds sigma up
        self.c = origin + (sigma / a / scale)[:, None] * v * shrunk

    def turned_round(self, least: float) -> np.ndarray:
        """The nearer one and the other one, whose computed score is better by `least` or more."""
        half = np.abs(self.lost).max() / 2
        low, high = np.flatnonzero(self.lost > half), np.flatnonzero(self.lost < -half)
        lead = self.computed[high][None, :] - self.computed[low][:, None]
        nearer = self.exact[low][:, None] > self.exact[high][None, :]
        i, j = np.unravel_index(np.argmax(np.where(nearer, lead, -np.inf)), lead.shape)
        assert nearer[i, j]
        assert lead[i, j] >= least
        return self.c[[low[i], high[j]]]


@functools.cache
def long_sums() -> tuple[np.ndarray, np.ndarray]:
    """A row near both centroids. Sums just above 2^24 are rounded to float32, and so are scores."""
    random, d, many = np.random.default_rng(0), 1101, 2000
    pixels = np.full(d, 255)
    v = np.full((many, d), 121)
    v[:, 0] = LARGEST
    v[:, 1:] += np.arange(d - 1) < random.integers(40, 48, (many, 1))
    swapped = random.integers(0, 500, (many, 1))  # pairs (120, 122): other norms, the same sum
    v[:, 100:600] += np.arange(500) < swapped
    v[:, 600:1100] -= np.arange(500) < swapped
    s = Scores(pixels, v, 1.0, random.integers(0, 60, many))
    without_dot = 2 * UNIT * 2 * np.abs(s.bias).max()
    return pixels, s.turned_round(1.1 * without_dot)


@functools.cache
def rounded_biases() -> tuple[np.ndarray, np.ndarray]:
    """A row near the origin: the bias is rounded, and what is added to it vanishes."""
    pixels = np.array([129] + 130 * [128])
    v = np.zeros((2000, 131), int)
    v[:, :4] = [1, LARGEST, 17, 0]
    v[1000:, :4] = [-1, LARGEST, 17, 1]
    size = 4030.0  # sigma is just under half a unit of the bias's last place
    s = Scores(pixels, v, size, np.tile(np.arange(1000), 2))
    without_bias = 3 * UNIT * 2 * np.abs(s.exact).max() * 2.0**-9
    return pixels, s.turned_round(1.1 * without_bias)


@pytest.mark.parametrize("path", ["avx512_vnni", "amx"])
@pytest.mark.parametrize("case", [long_sums, rounded_biases])
def test_scores_that_rounding_turns_round(case, path):
    pixels, c = case()
    images = torch.from_numpy(pixels.astype(np.uint8))[None, :, None, None].repeat(20, 1, 1, 1)
    x = torch.from_numpy(Layout(1, len(pixels)).values(pixels[None].astype(np.uint8)))
    for centroids in (c, c[::-1].copy()):
        expected = nearest_ids(x, torch.from_numpy(centroids), "euclidean")[0]
        with running(path) as backend:
            ids = ops.patch_tokens(images, torch.from_numpy(centroids), 1, backend=backend)
        assert (ids == expected).all()
