"""The exact tier of the Triton kernels, on its own, against fractions."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.ops import truth
from tests.ops.harness import GPU, METRICS, ON_TRITON, every_metric

pytestmark = pytest.mark.skipif(
    not ON_TRITON, reason="Triton: has a run of its own (make check-triton)"
)

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
MIXES = [(F32, F32), (BF16, F32), (F16, BF16), (F64, F64), (F32, F64), (F64, BF16)]
SMALLEST_BIT = {F64: -1074, F32: -149, F16: -24, BF16: -133}
HIGHEST_BIT = {F64: 1023, F32: 127, F16: 15, BF16: 127}


def decide(
    x, c, metric, candidates=None, upper=None, alive=None, rows=None, untouched=0, programs=3
):
    """Ids of the listed rows (all of them), and what the interpreter saw.

    candidates: for each row a list of ids, or None for a row whose candidates are all centroids.
    untouched: entries at the list's end that its count leaves out; their ids stay -7.
    """
    from clustermim_fast.ops.nearest_centroid import triton_exact
    from clustermim_fast.ops.nearest_centroid.triton_rows import matrix_rows

    N, K = len(x), len(c)
    rows = range(N) if rows is None else rows
    if candidates is None:
        candidates = [torch.randperm(K).tolist() for _ in range(N)]
    none = triton_exact.NO_CENTROID.value
    slots = [[-1] * 8 if ks is None else (ks + [none] * 8)[:8] for ks in candidates]
    ids = torch.full((N,), -7)
    context = nullcontext()
    if not GPU:
        from tests.gpu import strict

        context = strict.checked()
    device = GPU or "cpu"
    ids = ids.to(device)
    with context as seen:
        triton_exact.decide_exactly(
            matrix_rows(x.to(device)),
            matrix_rows(c.to(device)),
            metric,
            norm=c.double().norm(dim=1).to(device),
            alive=torch.ones(K).to(torch.int8).to(device) if alive is None else alive.to(device),
            exact_rows=torch.tensor(list(rows), dtype=torch.int32, device=device),
            number=torch.tensor([N - untouched], dtype=torch.int32, device=device),
            exact_slots=torch.tensor(slots, dtype=torch.int32, device=device),
            exact_upper=torch.full((N,), float("inf"), dtype=F64, device=device)
            if upper is None
            else upper.to(device),
            ids=ids,
            programs=programs,
        )
    return ids.cpu(), seen


def scores(row, c, metric):
    return [truth.exact_score(row, k, metric) for k in truth.to_numpy(c)]


def expected(x, c, metric, among=None):
    """The id of the smallest exact score of each row, the lowest of equal ones."""
    among = range(len(c)) if among is None else among
    found = []
    for row in truth.to_numpy(x):
        s = scores(row, c, metric)
        found.append(min(among, key=lambda k: (s[k], k)))
    return found


def check(x, c, metric):
    assert decide(x, c, metric)[0].tolist() == expected(x, c, metric)


def tied(D, metric, x_dtype, c_dtype):
    """A row and three centroids that tie, all of small integers."""
    x = torch.full((1, D), 3.0)
    first = torch.randint(1, 6, (D,)).float()
    if metric == "euclidean":
        c = [first, 6.0 - first, first.flip(0)]
    elif metric == "dot":
        c = [first, first.flip(0), first.roll(1)]
    else:
        c = [2 * first, first.flip(0), 4 * first]
    return x.to(x_dtype), torch.stack(c).to(c_dtype)


def one_ulp_longer(values, k, d):
    """``values`` with the magnitude of one of them one unit in the last place larger."""
    values = values.clone()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    values.view(whole)[k, d] += 1
    return values


@every_metric
@pytest.mark.parametrize("D", [1, 2, 3, 16, 48, 100, 384, 769])
def test_random(metric, D):
    x_dtype, c_dtype = MIXES[(D + METRICS.index(metric)) % len(MIXES)]
    check(torch.randn(2, D).to(x_dtype), torch.randn(3, D).to(c_dtype), metric)


@every_metric
@pytest.mark.parametrize("dtypes", MIXES, ids=str)
def test_the_lowest_id_of_equal_ones(metric, dtypes):
    x, c = tied(5, metric, *dtypes)
    c = torch.cat([c, c[:1]])  # and the same one again
    assert len(set(scores(truth.to_numpy(x)[0], c, metric))) == 1
    assert decide(x.expand(2, -1), c, metric, [[3, 1, 2], [3, 0]])[0].tolist() == [1, 0]


@every_metric
@pytest.mark.parametrize(
    "dtypes, D", list(zip(MIXES, [2, 3, 48, 5, 16, 100], strict=True)), ids=str
)
def test_one_unit_in_the_last_place_decides(metric, dtypes, D):
    x, c = tied(D, metric, *dtypes)
    c = one_ulp_longer(c, D % 3, D // 2)
    assert len(set(scores(truth.to_numpy(x)[0], c, metric))) > 1
    check(torch.cat([x, one_ulp_longer(x, 0, D // 2)]), c, metric)


@every_metric
@pytest.mark.parametrize("dtypes", [(F32, F32), (F64, F64), (BF16, F32), (F16, F16)], ids=str)
def test_the_smallest_and_the_largest_numbers(metric, dtypes):
    """Two centroids that differ by their dtype's last subnormal bit, beside its largest powers."""
    x_dtype, c_dtype = dtypes
    large, small = 2.0 ** (HIGHEST_BIT[c_dtype] - 1), 2.0 ** SMALLEST_BIT[c_dtype]
    c = torch.tensor([[large, -large, 0.0], [large, -large, small]], dtype=F64).to(c_dtype)
    huge = 2.0 ** HIGHEST_BIT[x_dtype]
    # cosine: the products add up, so that neither sign nor leading limbs tell the squares apart
    x = torch.tensor([[huge, -huge if metric == "cosine" else huge, 1.0]], dtype=F64).to(x_dtype)
    assert expected(x, c, metric) == [1]
    assert decide(x, c, metric, [[1, 0]])[0].tolist() == [1]


@every_metric
@pytest.mark.parametrize("dtype, exponent", [(F32, 100), (F64, 1000)], ids=str)
def test_magnitudes_far_apart(metric, dtype, exponent):
    powers = torch.tensor([2.0**-exponent, 1.0, 2.0 ** min(exponent, 63)], dtype=dtype)
    values = powers[torch.randint(3, (3, 6))] * torch.randn(3, 6).to(dtype)
    check(values[:1], values[1:], metric)


def test_subnormal_numbers_are_what_they_are():
    """Two halves of the smallest normal number tie with the whole."""
    whole = torch.finfo(F64).smallest_normal
    c = torch.tensor([[whole / 2, whole / 2], [whole, 0.0]], dtype=F64)
    x = torch.full((1, 2), 3 * whole, dtype=F64)
    for order in ([0, 1], [1, 0]):
        assert expected(x, c[order], "dot") == [0]
        assert decide(x, c[order], "dot")[0].tolist() == [0]


def test_cosine_of_sums_longer_than_any_product():
    """40 products of 70 bits: |c|^2 and x.c have more bits than the 72 of their windows."""
    ones = torch.full((40,), 2.0**12 - 2.0**-12)
    ones[-1] = 1.0
    halves = ones.clone()
    halves[:10] = 1.0
    c = torch.stack([halves, ones])
    assert int((ones.double() ** 2 * 2.0**46).sum()).bit_length() > 72
    for order in ([0, 1], [1, 0]):
        assert decide(ones[None], c[order], "cosine")[0].tolist() == expected(
            ones[None], c[order], "cosine"
        )


def test_cosine_of_multiples():
    """Multiples tie whatever their size; negative cosines; zero vectors have cosine 0."""
    c = torch.randint(-9, 9, (1, 7)).float()
    c = torch.cat([c * 3, c * 2.0**60, 0 * c, -c])
    x = torch.cat([c[:1], -c[:1], 0 * c[:1]])
    check(x, c, "cosine")
    assert expected(x, c, "cosine") == [0, 3, 0]
    assert decide(-c[:1], c[:2], "cosine", [[1, 0]])[0].tolist() == [0]


@every_metric
def test_every_centroid(metric):
    """Rows without a list of their own: all that may win, but for those that float64 excludes."""
    x, c = torch.randn(2, 20), torch.randn(21, 20)
    c[15] = c[3]
    alive = torch.ones(21, dtype=torch.int8)
    (best, _) = expected(x, c, metric)
    alive[best] = 0
    c[20] = float("nan")
    alive[20] = 0
    among = [k for k in range(21) if alive[k]]
    x[1] = x[0] + 0.01 * x[1]
    wanted = expected(x, c.nan_to_num(), metric, among)
    if metric == "cosine":
        best_scores = -torch.cosine_similarity(x[:, None].double(), c[None, among].double(), dim=2)
    elif metric == "dot":
        best_scores = -(x.double() @ c[among].double().T)
    else:
        best_scores = (x[:, None].double() - c[None, among].double()).square().sum(2)
    if metric == "cosine":  # float64 scores are x.c / |c|
        best_scores = best_scores * x.double().norm(dim=1)[:, None]
    upper = best_scores.amin(1)
    upper += 1e-12 * upper.abs()
    ids, seen = decide(x, c, metric, [None, None], upper, alive)
    assert ids.tolist() == wanted
    ids, few = decide(x, c, metric, [among[:8], among[:8]], None, alive)
    assert ids.tolist() == expected(x, c.nan_to_num(), metric, among[:8])
    if not GPU:  # three blocks of float64 scores cost less than comparisons with all
        assert seen.operations < few.operations


def test_only_the_rows_of_the_list():
    x, c = torch.randn(5, 3), torch.randn(4, 3)
    wanted = expected(x, c, "euclidean")
    ids, _ = decide(x, c, "euclidean", rows=[3, 1, 4, 0, 2], untouched=2, programs=2)
    assert ids.tolist() == [-7, wanted[1], -7, wanted[3], wanted[4]]


def test_rows_of_any_stride():
    x, c = torch.randn(6, 8).T[::2], torch.randn(6, 3).T
    check(x, c, "euclidean")
