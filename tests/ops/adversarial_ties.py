"""Generators of exact ties and of near ties (see ``adversarial.py``)."""

from __future__ import annotations

import numpy as np

from tests.ops.adversarial_base import ROUNDED, Arrays, Ask, float32, generator, to_bits

# ---- ties


@generator
def gaussian(ask: Ask) -> Arrays:
    return ask.normal(ask.n, ask.d), ask.normal(ask.k, ask.d)


@generator
def integer_grid(ask: Ask) -> Arrays:
    """Values -1, 0, 1: exact ties by the dozen where D is small."""
    return (
        ask.rng.integers(-1, 2, (ask.n, ask.d)).astype(float),
        ask.rng.integers(-1, 2, (ask.k, ask.d)).astype(float),
    )


@generator
def small_integers(ask: Ask) -> Arrays:
    c = ask.rng.integers(-20, 21, (ask.k, ask.d)).astype(float)
    return ask.rows_of(c) + ask.rng.integers(-1, 2, (ask.n, ask.d)), c


@generator
def duplicates(ask: Ask) -> Arrays:
    """Each centroid several times, shuffled, two of them with other signs of zero."""
    some = ask.normal(max(1, ask.k // 5), ask.d)
    c = some[ask.rng.integers(0, len(some), ask.k)]
    c[:, 0] = np.where(np.abs(c[:, 0]) < 0.5, np.copysign(0.0, ask.normal(ask.k)), c[:, 0])
    return ask.rows_of(some) + 0.5 * ask.normal(ask.n, ask.d), c


@generator
def permuted(ask: Ask) -> Arrays:
    """Centroids are permutations of one vector, rows are constant: everything ties exactly."""
    base = ask.normal(ask.d)
    c = np.stack([ask.rng.permutation(base) for _ in range(ask.k)])
    return np.repeat(ask.rng.integers(1, 50, (ask.n, 1)) / 16.0, ask.d, axis=1), c


@generator
def midpoints(ask: Ask) -> Arrays:
    """Rows exactly half-way between two centroids."""
    c = ask.rng.integers(-8, 9, (ask.k, ask.d)).astype(float)
    return (ask.rows_of(c) + c[ask.rng.integers(0, ask.k, ask.n)]) / 2, c


@generator
def beside_midpoints(ask: Ask) -> Arrays:
    """Half-way, one coordinate one unit in the last place further up or down."""
    x, c = midpoints(ask)
    column = ask.rng.integers(0, ask.d, ask.n)
    at = np.arange(ask.n), column
    ulp = np.ldexp(1.0, np.frexp(x[at])[1] - ROUNDED[ask.dtype][0])
    x[at] += ulp * ask.rng.integers(-1, 2, ask.n)
    return x, c


@generator
def rows_equal(ask: Ask) -> Arrays:
    return np.repeat(ask.normal(1, ask.d), ask.n, axis=0), ask.normal(ask.k, ask.d)


@generator
def rows_are_centroids(ask: Ask) -> Arrays:
    c = to_bits(ask.normal(ask.k, ask.d), 8)
    return ask.rows_of(c), c


@generator
def multiples(ask: Ask) -> Arrays:
    """Centroids on few rays: exact ties of the cosine, and nearly opposite ones."""
    rays = ask.rng.integers(-3, 4, (max(1, ask.k // 6), ask.d)).astype(float)
    factor = ask.rng.choice([-2.0, -1.0, 0.125, 1.0, 3.0, 5.0], ask.k)
    return ask.normal(ask.n, ask.d), rays[ask.rng.integers(0, len(rays), ask.k)] * factor[:, None]


# ---- near ties


@generator
def mirrored(ask: Ask) -> Arrays:
    """Pairs that differ in the sign of some columns, rows 2^-8 .. 2^-50 off the plane between.

    In the other columns both have the same values, all 24 bits of them used; the pair's norms are
    equal, so the rows are near ties of all three metrics.
    """
    pairs = (ask.k + 1) // 2
    a = float32(ask.normal(pairs, ask.d) * 3)
    mirrored = np.arange(ask.d) % 3 == 0
    c = np.empty((ask.k, ask.d))
    c[0::2] = a[: len(c[0::2])]
    c[1::2] = np.where(mirrored, -a, a)[: len(c[1::2])]
    x = np.where(mirrored, 0.0, ask.rows_of(a) + 0.1 * ask.normal(ask.n, ask.d))
    gap = np.ldexp(1.0, -ask.rng.integers(8, 51, ask.n)) * ask.rng.choice([-1.0, 0.0, 1.0], ask.n)
    x[:, 0] = gap
    return x, c


def _beside_the_plane(ask: Ask, x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``x`` with column 0 chosen so that a and b tie, then 2^-8 .. 2^-26 beside."""
    if ask.metric == "cosine":
        a = a / np.linalg.norm(a, axis=-1, keepdims=True)
        b = b / np.linalg.norm(b, axis=-1, keepdims=True)
    apart = a - b
    rest = (x[:, 1:] * apart[:, 1:]).sum(1)
    if ask.metric == "euclidean":
        rest = rest - ((a - b) * (a + b)).sum(1) / 2
    x = x.copy()
    x[:, 0] = -rest / apart[:, 0]
    step = np.ldexp(1.0, -ask.rng.integers(8, 27, len(x))) * ask.rng.choice([-1, 1], len(x))
    x[:, 0] += step * np.maximum(np.abs(x[:, 0]), 2.0**-10)
    return x


def _residuals(ask: Ask, of_rows: bool, of_centroids: bool, bits: int = 8) -> Arrays:
    """Near ties in which the rounding to ``bits`` bits errs by almost half a unit everywhere, each
    error with the sign that moves the score against the winner."""
    pairs = (ask.k + 1) // 2
    which = np.arange(ask.n) % pairs
    half = 0.49 * 2.0 ** (1 - bits)  # of a value in [1, 2): almost half a unit of the last bit
    sign = ask.rng.choice([-1.0, 1.0], (pairs, ask.d))
    near_one = to_bits(1 + 0.9 * ask.rng.random((2, pairs, ask.d)), bits)
    a, b = near_one * sign
    side = ask.rng.choice([-1.0, 1.0], (pairs, 1))  # whose score is lowered: not always a's
    if of_centroids:
        a, b = a + side * half * sign, b - side * half * sign
    a[:, 0], b[:, 0] = 4.0, -4.0
    x = to_bits(1 + 0.9 * ask.rng.random((ask.n, ask.d)), bits) * sign[which]
    if of_rows:
        x = x + side[which] * half * np.sign(a - b)[which]
    # Pairs far apart from each other, yet every centroid of a size: other pairs are no competition.
    c = np.empty((ask.k, ask.d))
    c[0::2], c[1::2] = a[: len(c[0::2])], b[: len(c[1::2])]
    return _beside_the_plane(ask, float32(x), float32(a)[which], float32(b)[which]), float32(c)


@generator
def residuals_of_centroids(ask: Ask) -> Arrays:
    return _residuals(ask, False, True)


@generator
def residuals_of_rows(ask: Ask) -> Arrays:
    return _residuals(ask, True, False)


@generator
def residuals_of_both(ask: Ask) -> Arrays:
    return _residuals(ask, True, True)


@generator
def residuals_of_split(ask: Ask) -> Arrays:
    """The same for a sum of two bfloat16 values: 16 bits."""
    return _residuals(ask, True, True, bits=16)


@generator
def sphere(ask: Ask) -> Arrays:
    """All centroids at one distance from every row, but for a few units in the last place of
    float32: nothing can be excluded, a list of candidates overflows."""
    c = ask.normal(ask.k, ask.d)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    c *= 1 + np.ldexp(ask.normal(ask.k, 1), -ask.rng.integers(22, 50, (ask.k, 1)))
    return np.ldexp(ask.normal(ask.n, ask.d), -ask.rng.integers(20, 60, (ask.n, 1))), c


@generator
def ever_better(ask: Ask) -> Arrays:
    """Each centroid beats the one before it by little, for every row: a running best never rests.
    The rows of the second half meet them from the other end."""
    direction = ask.rng.choice([-1.0, 1.0], ask.d)
    c = direction * (1 + np.arange(ask.k)[:, None] * 2.0**-14) + 2.0**-20 * ask.normal(ask.k, ask.d)
    x = direction * np.where(np.arange(ask.n)[:, None] % 2, 3.0, -3.0)
    return x + 2.0**-8 * ask.normal(ask.n, ask.d), c


def _few_dimensions(ask: Ask, outside: float) -> Arrays:
    """Centroids near a subspace of a quarter of the dimensions; pairs that differ only outside of
    it, rows that leave it along that difference."""
    rank = max(1, ask.d // 4)
    basis = np.linalg.qr(ask.normal(ask.d, rank))[0].T
    pairs = (ask.k + 1) // 2
    inside, side = ask.normal(pairs, rank) @ basis, outside * ask.normal(pairs, ask.d)
    c = np.empty((ask.k, ask.d))
    c[0::2], c[1::2] = (inside + side)[: len(c[0::2])], (inside - side)[: len(c[1::2])]
    which = np.arange(ask.n) % pairs
    far = ask.rng.choice([0.0, 1.0, 100.0], (ask.n, 1)) * ask.normal(ask.n, ask.d)
    far -= (far @ basis.T) @ basis
    along = np.ldexp(ask.rng.choice([-1.0, 1.0], (ask.n, 1)), -ask.rng.integers(0, 20, (ask.n, 1)))
    between = (far * side[which]).sum(1) / np.maximum(np.square(side[which]).sum(1), 1e-300)
    far -= between[:, None] * side[which]  # as near to one as to the other, before the last step
    return inside[which] + far + along * side[which], c


@generator
def few_dimensions(ask: Ask) -> Arrays:
    return _few_dimensions(ask, 2.0**-4)


@generator
def very_few_dimensions(ask: Ask) -> Arrays:
    return _few_dimensions(ask, 2.0**-12)


@generator
def around_few_dimensions(ask: Ask) -> Arrays:
    """The same kind of centroids, rows between two of them: some decided at once, some not."""
    basis = np.linalg.qr(ask.normal(ask.d, max(1, ask.d // 4)))[0].T
    c = ask.normal(ask.k, len(basis)) @ basis + 2.0**-8 * ask.normal(ask.k, ask.d)
    near, other = ask.rows_of(c), c[ask.rng.integers(0, ask.k, ask.n)]
    share = 0.5 + np.ldexp(ask.normal(ask.n, 1), -ask.rng.integers(1, 14, (ask.n, 1)))
    around = np.ldexp(ask.normal(ask.n, ask.d), -ask.rng.integers(0, 12, (ask.n, 1)))
    return share * near + (1 - share) * other + around, c


@generator
def cancelling(ask: Ask) -> Arrays:
    """Large products that cancel: the order of summation decides the last bits of a float32 sum."""
    big = ask.rng.integers(1, 64, (ask.n, ask.d)) * 1024.0
    x = big * ask.rng.choice([-1.0, 1.0], (ask.n, ask.d))
    signs = ask.rng.choice([-1.0, 1.0], (ask.k, ask.d))
    signs[:, 1::2] = -signs[:, 0 : ask.d - ask.d % 2 : 2]
    x[:, 1::2] = x[:, 0 : ask.d - ask.d % 2 : 2]
    return x + ask.normal(ask.n, ask.d), signs + 2.0**-12 * ask.normal(ask.k, ask.d)


@generator
def one_sign(ask: Ask) -> Arrays:
    """Terms of one sign and size: the errors of a running sum add up in one direction."""
    x = 1000 * (1 + ask.rng.random((ask.n, ask.d)))
    return x, 1000 * (1.5 + 2.0**-12 * ask.rng.random((ask.k, ask.d)))


@generator
def odd_significands(ask: Ask) -> Arrays:
    """Every value needs all 24 bits: 2^23 + odd."""
    c = (2.0**23 + 2 * ask.rng.integers(0, 2**22, (ask.k, ask.d)) + 1) * 2.0**-23
    x = ask.rows_of(c) + 2.0 ** (1 - ROUNDED[ask.dtype][0]) * ask.rng.integers(
        -64, 65, (ask.n, ask.d)
    )
    return x, c * ask.rng.choice([-1.0, 1.0], (ask.k, 1))
