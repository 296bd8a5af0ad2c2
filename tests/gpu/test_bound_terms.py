"""For each term of the Triton filter's bound an input that needs it: certificate.md, section 8.

Ids: without the term the other centroid would win; tools/gpu_mutations.py takes each out. In all
of them the nearest centroid is number 0, and rounding hides that.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _triton
from tests.ops.truth import nearest_ids

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)

if _triton.interpreted():
    import triton
    import triton.language as tl

    from clustermim_fast.ops.nearest_centroid import triton_filter, triton_probe, triton_sizes
    from clustermim_fast.ops.nearest_centroid.triton_rows import matrix_rows
    from tests.gpu import strict, tensor_cores

    ARCHS = list(tensor_cores.MODELS)

    @triton.jit
    def _limits(given, out, accumulation, factor, METRIC: tl.constexpr, N: tl.constexpr):
        at = tl.arange(0, N)
        best, length = tl.load(given + at), tl.load(given + N + at)
        moved, R = tl.load(given + 2 * N + at), tl.load(given + 3 * N + at)
        C = tl.load(given + 4 * N + at)
        limit, nearest = triton_filter.limit_of(
            best, length, moved, factor, accumulation, R, C, METRIC
        )
        tl.store(out + at, limit)
        tl.store(out + N + at, nearest)

    @triton.jit
    def _measured(x, D, frame, power, out, factor, tiny, N: tl.constexpr, BLOCK: tl.constexpr):
        rows = tl.arange(0, N)
        squares, rests = tl.zeros([N], tl.float32), tl.zeros([N], tl.float32)
        _, squares, rests = triton_filter.round_rows(
            x, rows.to(tl.int64) * D, rows < N, 0, D, frame, tl.load(power), squares, rests,
            "matrix", "euclidean", False, True, False, BLOCK,
        )  # fmt: skip
        length, moved = triton_filter.lengths(squares, rests, factor, tiny)
        tl.store(out + rows, length)
        tl.store(out + N + rows, moved)


def check(x, c, metric: str) -> None:
    assert (nearest_ids(x, c, metric) == 0).all()
    with strict.checked():
        assert not ops.nearest_centroid(x, c, metric=metric, backend="triton").any()


def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64)).float()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "any other"])
def test_accumulation(arch):
    """Every product but two is just under the unit to which a tensor core cuts it: lost, of the
    nearest what is positive, of the other one what is negative."""
    d, small = 1024, 2.0**-12
    _, bits = tensor_cores.MODELS[arch]
    unit = 2.0 ** (1 - bits)
    x, c = torch.full((3, d), small), torch.zeros(2, d)
    x[:, 0], x[:, 1] = 1.0, 2.0**-6
    c[:, 0] = 1 + 2.0**-7
    c[:, 2:] = torch.tensor([[1.0], [-1.0]]) * unit / small * 255 / 256
    c[1, 1] = (0.97 * 2 * (d - 2) * unit / x[0, 1]).half()
    assert (nearest_ids(x, c, "dot") == 0).all()
    with strict.checked(), tensor_cores.emulated(arch):
        assert not ops.nearest_centroid(x, c, metric="dot", backend="triton").any()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "any other"])
def test_the_probe_comes_near_what_tensor_cores_may_lose(arch):
    with strict.checked(), tensor_cores.emulated(arch):
        worst = triton_probe.worst_product(torch.device("cpu"), arch)
    assert 0.45 < worst <= 1.0


def test_biases():
    """A tie, and biases that are rounded apart; the row is so short that no product matters."""
    rest = torch.tensor([1024.0, 1100, 1205, 1300, 1410, 1503, 1600, 1700, 1800, 1900, 2001, 2047])
    c = torch.stack([torch.cat([torch.tensor([1501.0, 1498]), rest, torch.zeros(2)]),
                     torch.cat([torch.tensor([1500.0, 1499]), -rest, torch.zeros(2)])])  # fmt: skip
    x = torch.zeros(3, 16)
    x[:, 0] = 2.0**-7
    while True:
        halves = c.double().square().sum(1) / 2
        if halves[0] % 4 == 3:
            break
        c[:, 14] += 1
    assert halves.tolist() == [halves[1] + 2, halves[1]]
    others = -c  # so that the frame is none of them
    others[:, 15] = 2047
    check(x, torch.cat([c, others]) / 256, "euclidean")


def test_the_square_of_the_roundings():
    """The smallest numbers: float16's subnormal ones have few bits, and row and farther centroid
    are rounded to one point."""
    c = torch.tensor([[9.49, 10], [10.49, 10.49], [-20, -20], [-20, 20], [20, -20]]).double()
    x = torch.full((3, 2), 10.0, dtype=torch.float64)
    unit = 2.0**-150
    check((x * unit).float(), c * unit, "euclidean")


def test_roundings_of_centroids_in_products():
    small = 2.0**-11
    nearest = 1 + small
    x = torch.tensor([[1 + 2 * small, 1.0]]).expand(3, 2)
    check(x, diagonal(nearest, (1 + 2 * small) * nearest - 2.0**-22), "dot")


def test_roundings_of_rows_in_products():
    small = 2.0**-11
    x = torch.tensor([[1 + small, 1 + 3 * small]]).expand(3, 2)
    check(x, diagonal(1.0, 1 - 2 * small), "dot")


def test_a_far_centroid_that_is_nearest():
    """Far ones are rounded by more than the bound for the near ones knows."""
    c = torch.tensor([999.75, 6 + 38 / 256, 5, -5, -7])[:, None]
    check(torch.full((3, 1), 503.0), c, "euclidean")


# ---- bounds: what no id can show, and that nothing is looser than it says


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
def test_limits_are_those_of_the_equations(metric):
    """(14) and (15) in float64; of the kernels' roundings the subtraction's is in (14)."""
    n, unit = 2**14, 2.0**-24
    draw = np.random.default_rng(0)
    accumulation, factor = 34 * unit, 1 + 2.02 * 33 * unit
    length = 2.0 ** draw.uniform(-10, 10, n)
    C = length * 2.0 ** draw.uniform(-10, 10, n)
    moved, R = length * 2.0 ** draw.uniform(-23, -5, n), C * 2.0 ** draw.uniform(-40, -5, n)
    best = length**2 / 2 * (1 - 2.0 ** draw.uniform(-24, 12, n))
    given = np.stack([best, length, moved, R, C]).astype(np.float32)
    out = torch.empty(2, n)
    with strict.checked():
        _limits[(1,)](torch.from_numpy(given), out, accumulation, factor, metric, n)
    limit, nearest = out.double().numpy()
    best, length, moved, R, C = given.astype(np.float64)
    eps = accumulation * length * C
    if metric == "euclidean":
        eps += 2.0**-22 * C**2
        S = moved + R
        distance = np.sqrt(np.maximum(length**2 - 2 * best + 4 * eps, 0))
        largest = np.sqrt(distance**2 + 2 * (factor - 1) * length**2)
        margin, most = (2 * (eps + S * (d + S)) for d in (distance, largest))
        assert (nearest >= distance + S).all()
        assert (nearest <= (largest + S) * (1 + 2.0**-11)).all()
    else:
        margin = most = 2 * (eps + length * R + moved * (C + R))
    rounding = unit * np.abs(best - most) * (1 + 2.0**-10)
    assert (limit <= best - margin + rounding).all()
    assert (limit >= best - most * (1 + 2.0**-11) - rounding).all()
    allowed = 2 * unit * length * C + (6 * unit * C**2 if metric == "euclidean" else 0)
    possible = np.abs(best) <= length * C + (C**2 / 2 if metric == "euclidean" else 0)
    assert (rounding - unit * most <= allowed + 1e-30)[possible].all()


def rows_that_hide_their_roundings(n, d):
    """(rows, frame): usual ones; ones whose difference from the frame float32 rounds to what
    float16 holds; ones of which float16 holds nothing, and those whose squares underflow."""
    x, frame = torch.randn(n, d), torch.randn(d)
    frame[: d // 2] = 0.125 + 2.0**-26
    x[n // 4 : n // 2, : d // 2] = 1.125
    x[n // 4 : n // 2, d // 2 :] = frame[d // 2 :]
    x[n // 2 :] = frame
    frame[d // 2 :] = x[n // 2 :, d // 2 :] = 0.0
    x[n // 2 :, d // 2 :] = 2.0**-26 * torch.rand(n // 2, d // 2)
    x[3 * n // 4 :, d // 2 :] = 2.0**-76
    return x, frame


def test_measured_lengths_are_upper_bounds():
    n, d = 64, 64
    x, frame = rows_that_hide_their_roundings(n, d)
    sizes = triton_sizes.choose(_triton.INTERPRETED, matrix_rows(x), 10)
    factor, tiny = 1 + 2.02 * (sizes.filter.values + 1 + 16) * 2.0**-24, math.sqrt(d) * 2.0**-60
    out, power = torch.empty(2, n), torch.ones(1, dtype=torch.float64)
    with strict.checked():
        _measured[(1,)]((x, d, 1), d, frame, power, out, factor, tiny, N=n, BLOCK=d)
    exact = x.double() - frame.double()
    half = (x - frame).half().double()
    length, moved = out.double()
    assert (length >= half.norm(dim=1)).all()
    assert (moved >= (exact - half).norm(dim=1)).all()
    assert (moved <= (exact - half).norm(dim=1) * 1.001 + 2.0**-22 * length + 2 * tiny).all()
