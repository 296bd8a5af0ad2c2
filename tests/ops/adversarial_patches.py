"""uint8 patches and centroids on which a wrong token is likely (see ``adversarial.py``).

A filter may work on the raw pixels 0..255; then the centroids are what gets rounded, sums of
products may overflow, and the float32 value of a pixel is not quite linear in it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ops.patch_rows import Layout

Patches = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PatchAsk:
    rng: np.random.Generator
    n: int
    k: int
    layout: Layout
    mean: Any
    std: Any

    def pixels(self, n: int, low: int = 0, high: int = 255) -> np.ndarray:
        return self.rng.integers(low, high + 1, (n, self.layout.d)).astype(np.uint8)

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """The float32 values of uint8 pixels."""
        return self.layout.values(pixels, self.mean, self.std).astype(np.float64)

    def linear(self, pixels: np.ndarray) -> np.ndarray:
        """The values without their roundings, of any real pixels."""
        channel = self.layout.places()[2]
        mean = 0.0 if self.mean is None else np.asarray(self.mean, np.float32)[channel]
        std = 1.0 if self.std is None else np.asarray(self.std, np.float32)[channel]
        return (pixels / 255.0 - np.float64(mean)) / np.float64(std)

    def turns(self, pool: np.ndarray) -> np.ndarray:
        return pool[np.arange(self.n) % len(pool)]

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)


PATCH_GENERATORS: dict[str, Callable[[PatchAsk], Patches]] = {}


def generator(function: Callable[[PatchAsk], Patches]) -> Callable[[PatchAsk], Patches]:
    PATCH_GENERATORS[function.__name__] = function
    return function


def make_patches(
    name: str, n: int, k: int, layout: Layout, mean: Any = None, std: Any = None
) -> Patches:
    """uint8 rows [n, D] and float32 centroids [k, D], equal at every call."""
    seed = zlib.crc32(f"{name} {n} {k} {layout} {mean} {std}".encode())
    pixels, c = PATCH_GENERATORS[name](
        PatchAsk(np.random.default_rng(seed), n, k, layout, mean, std)
    )
    assert pixels.shape == (n, layout.d), name
    assert pixels.dtype == np.uint8, name
    assert c.shape == (k, layout.d), name
    with np.errstate(over="ignore", under="ignore"):
        return pixels, c.astype(np.float32)


@generator
def plain(ask: PatchAsk) -> Patches:
    c = ask.values(ask.pixels(ask.k))
    return ask.pixels(ask.n), c + 0.2 * c.std() * ask.normal(*c.shape)


@generator
def their_own_centroids(ask: PatchAsk) -> Patches:
    """Centroids that are patches, next to copies one float32 step away in some columns."""
    pool = ask.pixels((ask.k + 1) // 2)
    c = np.repeat(ask.values(pool), 2, axis=0)[: ask.k].astype(np.float32)
    step = ask.rng.choice([-np.inf, np.inf], c.shape).astype(np.float32)
    moved = np.where(ask.rng.random(c.shape) < 0.3, np.nextafter(c, step), c)
    c[1::2] = moved[1::2]
    return ask.turns(pool), c


@generator
def between_integers(ask: PatchAsk) -> Patches:
    """Two centroids the same number of grey levels away from a patch, to either side: near ties
    that only the roundings of the pixels' values decide."""
    pool = ask.pixels((ask.k + 1) // 2, 40, 215)
    away = ask.rng.integers(0, 41, pool.shape)
    c = np.empty((ask.k, ask.layout.d))
    c[0::2] = ask.values((pool + away).astype(np.uint8))[: len(c[0::2])]
    c[1::2] = ask.values((pool - away).astype(np.uint8))[: len(c[1::2])]
    return ask.turns(pool), c


@generator
def between_reals(ask: PatchAsk) -> Patches:
    """The same with centroids of 24 bits, 2^-8 .. 2^-26 nearer on one side."""
    pool = ask.pixels((ask.k + 1) // 2)
    away = 30.0 * ask.normal(*pool.shape)
    nearer = 1 - np.ldexp(ask.normal(len(pool), 1), -ask.rng.integers(8, 27, (len(pool), 1)))
    c = np.empty((ask.k, ask.layout.d))
    c[0::2] = ask.linear(pool + away)[: len(c[0::2])]
    c[1::2] = ask.linear(pool - away * nearer)[: len(c[1::2])]
    return ask.turns(pool), c


@generator
def exact_ties(ask: PatchAsk) -> Patches:
    """Patches that are the same in both columns of a pair, centroids with the pair exchanged."""
    pool = ask.pixels((ask.k + 1) // 2)
    half = ask.layout.d // 2
    channel = ask.layout.places()[2]
    partner = np.arange(ask.layout.d)
    for value in np.unique(channel):  # of one channel, hence of one mean and std
        own = np.flatnonzero(channel == value)
        own = own[: len(own) // 2 * 2].reshape(-1, 2)[: half + 1]
        partner[own[:, 0]], partner[own[:, 1]] = own[:, 1], own[:, 0]
    first = np.minimum(np.arange(ask.layout.d), partner)
    c = np.empty((ask.k, ask.layout.d))
    one = ask.values(ask.pixels(len(pool)))
    c[0::2], c[1::2] = one[: len(c[0::2])], one[:, partner][: len(c[1::2])]
    return ask.turns(pool[:, first]), c


def _grid(bits: int) -> Callable[[PatchAsk], Patches]:
    def residuals(ask: PatchAsk) -> Patches:
        """Centroids almost half a step of ``bits`` bits of the largest away from a multiple of it,
        all to the side that harms the one that wins by 2^-10 .. 2^-24."""
        pool = ask.pixels((ask.k + 1) // 2, 128)
        x = ask.linear(pool)
        largest = 2.0 ** np.ceil(np.log2(np.abs(x).max() * 2))
        step = largest / 2.0 ** (bits - 1)
        towards = np.sign(x - x.mean(1, keepdims=True)) * ask.rng.choice([-1, 1], (len(x), 1))
        a, b = (
            np.rint((x + 0.1 * np.abs(x).max() * ask.normal(*x.shape)) / step) * step
            for _ in range(2)
        )
        a, b = a + 0.49 * step * towards, b - 0.49 * step * towards
        # The last column of b makes it tie with a at the patch, then a little nearer or further.
        rest = np.square(x - a).sum(1) - np.square(x - b)[:, :-1].sum(1)
        shift = np.ldexp(1.0, -ask.rng.integers(10, 25, len(x))) * ask.rng.choice([-1, 1], len(x))
        b[:, -1] = x[:, -1] + np.sqrt(np.maximum(rest, 0.0)) * (1 + shift)
        c = np.empty((ask.k, ask.layout.d))
        c[0::2], c[1::2] = a[: len(c[0::2])], b[: len(c[1::2])]
        c[0, 0] = largest
        return ask.turns(pool), c

    return residuals


for _bits in (7, 8, 12, 14, 15, 16):
    PATCH_GENERATORS[f"residuals_of_{_bits}_bits"] = _grid(_bits)


@generator
def saturated(ask: PatchAsk) -> Patches:
    """Pixels 0 and 255, centroids at one size: the largest sums that integer products can give."""
    pixels = 255 * ask.rng.integers(0, 2, (ask.n, ask.layout.d))
    pixels[::3], pixels[1::3] = 255, 0
    c = ask.rng.choice([-1.0, 1.0], (ask.k, ask.layout.d))
    c[::4], c[1::4] = 1.0, -1.0
    return pixels.astype(np.uint8), c * (1 + 2.0**-12 * ask.normal(ask.k, 1))


@generator
def black_and_white(ask: PatchAsk) -> Patches:
    """Constant patches: nothing to normalise by, and centroids that tie on them."""
    grey = ask.rng.integers(0, 256, (ask.n, 1)).astype(np.uint8)
    return np.repeat(grey, ask.layout.d, axis=1), ask.values(ask.pixels(ask.k))


@generator
def one_pixel_decides(ask: PatchAsk) -> Patches:
    base = ask.pixels(1)
    pixels = np.repeat(base, ask.n, axis=0)
    column = ask.rng.integers(0, ask.layout.d, ask.n)
    pixels[np.arange(ask.n), column] ^= 1
    others = np.repeat(base, ask.k, axis=0)
    others[np.arange(ask.k), ask.rng.integers(0, ask.layout.d, ask.k)] ^= 1
    return pixels, ask.values(others)


@generator
def crowded(ask: PatchAsk) -> Patches:
    """All centroids around one patch, 2^-10 .. 2^-24 of its size apart."""
    pool = ask.pixels(1)
    apart = np.ldexp(ask.normal(ask.k, ask.layout.d), -ask.rng.integers(10, 25, (ask.k, 1)))
    near = pool.astype(int) + ask.rng.integers(-2, 3, (ask.n, ask.layout.d))
    return np.clip(near, 0, 255).astype(np.uint8), ask.values(pool) * (1 + apart)


@generator
def far_from_the_images(ask: PatchAsk) -> Patches:
    c = ask.values(ask.pixels(ask.k))
    return ask.pixels(ask.n), 1e5 + c


@generator
def one_far_centroid(ask: PatchAsk) -> Patches:
    pixels, c = plain(ask)
    c[ask.k // 2] *= 1e9
    return pixels, c


@generator
def tiny_centroids(ask: PatchAsk) -> Patches:
    pixels, c = plain(ask)
    return pixels, 1e-30 * c


@generator
def duplicates(ask: PatchAsk) -> Patches:
    pixels, c = plain(ask)
    return pixels, c[ask.rng.integers(0, (ask.k + 2) // 3, ask.k)]


@generator
def not_finite(ask: PatchAsk) -> Patches:
    pixels, c = plain(ask)
    c[::3, ask.layout.d // 2] = np.nan
    c[1::3, -1] = ask.rng.choice([np.inf, -np.inf], len(c[1::3]))
    return pixels, c


@generator
def smooth(ask: PatchAsk) -> Patches:
    """Low contrast around one grey, as in skies: all distances are small beside the norms."""
    c = ask.values(ask.pixels(ask.k, 198, 203)) + 1e-3 * ask.normal(ask.k, ask.layout.d)
    return ask.pixels(ask.n, 199, 202), c
