"""nearest_centroid on the adversarial set, on every path of this machine: no id may be wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.adversarial import GENERATORS, make
from tests.ops.assignment import check_compiled, check_ids
from tests.ops.harness import DTYPES, METRICS, every_metric, fewer, running, usable_paths
from tests.ops.truth import nearest_ids

WIDTHS = (1, 3, 7, 15, 16, 17, 31, 33, 48, 100, 384, 511, 513, 768, 1000, 1024)
CODEBOOKS = (1, 2, 7, 50, 100, 257, 1000)
NAMES = tuple(GENERATORS)
F64, F32, F16, BF16 = DTYPES
# Half the cases are float32 throughout; of the other pairs of dtypes each comes up in turn.
PAIRS = (
    (F32, F32), (BF16, BF16), (F32, F32), (F64, F64), (F32, F32), (BF16, F32), (F32, F32),
    (F16, F16), (F32, F32), (F32, F64), (F32, F32), (F64, F32), (F32, F32), (F16, BF16),
    (F32, BF16),
)  # fmt: skip


def covering(per_generator: int) -> list[tuple[str, int, int, int, str, torch.dtype, torch.dtype]]:
    """Each generator at ``per_generator`` shapes, so that each width, codebook size, metric and
    pair of dtypes meets many generators; a grid of all would take hours."""
    cases = []
    for i, j in itertools.product(range(len(NAMES)), range(per_generator)):
        turn = per_generator * i + j
        d, k = WIDTHS[(5 * turn + i) % 16], CODEBOOKS[(3 * turn + j) % 7]
        n = (127, 129)[turn % 2] if d * k < 200_000 else 33
        cases.append((NAMES[i], n, d, k, METRICS[(i + j) % 3], *PAIRS[(turn + i) % len(PAIRS)]))
    return cases


def describe(case) -> str:
    return "-".join(str(part).removeprefix("torch.") for part in case)


@pytest.mark.parametrize("case", covering(6), ids=describe)
def test_adversarial(case):
    name, n, d, k, metric, dtype, c_dtype = case
    check_compiled(*make(name, n, d, k, metric, dtype, c_dtype), metric)


@pytest.mark.parametrize("name", NAMES)
def test_adversarial_patch_widths(name):
    """The widths of real patches and features, for which a path may have a kernel of its own."""
    for (d, k), metric in zip(((48, 50), (48, 257), (384, 100)), METRICS, strict=True):
        check_compiled(*make(name, 129, d, k, metric), metric)
    check_compiled(*make(name, 65, 768, 100), "euclidean")


@pytest.mark.parametrize("name", NAMES)
def test_adversarial_large_codebook(name):
    """K = 8192 at D = 17: more centroids than any list of candidates, few rows."""
    metric = METRICS[NAMES.index(name) % 3]
    check_compiled(*make(name, fewer(9, 3), 17, fewer(8192, 1030), metric), metric)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_adversarial_large_codebook_and_width(name):
    for (n, d), turn in zip(((5, 768), (17, 1), (17, 48), (9, 100)), range(4), strict=True):
        metric = METRICS[(NAMES.index(name) + turn) % 3]
        check_compiled(*make(name, n, d, 8192, metric), metric)


@pytest.mark.slow
@every_metric
@pytest.mark.parametrize("name", NAMES)
def test_adversarial_every_width_and_size(name, metric):
    """A third of the grid for each, so that the three metrics share it."""
    first = (NAMES.index(name) + METRICS.index(metric)) % 3
    grid = list(enumerate(itertools.product(WIDTHS, CODEBOOKS)))[first::3]
    for i, (d, k) in grid:
        n = (0, 1, 127, 129)[i % 4] if d * k < 20_000 else 5 + i % 4
        dtype, c_dtype = PAIRS[i % len(PAIRS)]
        check_compiled(*make(name, n, d, k, metric, dtype, c_dtype), metric)


@pytest.mark.slow
@every_metric
@pytest.mark.parametrize("name", NAMES)
def test_adversarial_reference(name, metric):
    for d, k, dtype in itertools.product((3, 48), (7, 50), DTYPES):
        check_ids(*make(name, 17, d, k, metric, dtype), metric, "reference")


@every_metric
@pytest.mark.parametrize("n", [0, 1])
def test_no_row_and_one_row(n, metric):
    for i, name in enumerate(NAMES):
        check_compiled(*make(name, n, WIDTHS[i % 16], CODEBOOKS[i % 7], metric), metric)


@every_metric
@pytest.mark.parametrize("d", [1, 16, 17, 48, 130])
def test_every_bit_pattern_that_is_not_a_number(d, metric):
    """Adding to the bits of a NaN, as rounding to 16 bits does, may make a number of it."""
    patterns = (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000, 0x7F80FFFF, 0x7F800000)
    x, c = torch.randn(40, d), torch.randn(30, d)
    bits = torch.tensor(patterns, dtype=torch.int64).to(torch.int32)
    for values, every in ((x, 3), (c, 4)):
        for turn, row in enumerate(values[::every]):
            row.view(torch.int32)[turn % d] = bits[turn % len(bits)]
    expected = check_compiled(x, c, metric)
    assert (expected[::3] == -1).all()
    assert (expected[1::3] >= 0).all()


# ---- several kinds in one call


def mixture(names: tuple[str, ...], d: int, metric: str, n: int = 40, k: int = 20):
    """Rows and centroids of several generators in one call, in random order."""
    made = [make(name, n, d, k, metric) for name in names]
    x, c = torch.cat([x for x, _ in made]), torch.cat([c for _, c in made])
    return x[torch.randperm(len(x))], c[torch.randperm(len(c))]


MIXTURES = {
    "ties": ("integer_grid", "duplicates", "midpoints", "rows_are_centroids", "zeros"),
    "near ties": ("mirrored", "residuals_of_both", "sphere", "cancelling", "beside_midpoints"),
    "sizes": ("gaussian", "offset_1e+06", "outlier_1e+09", "mixed_row_scales", "scale_1e-22"),
    "extremes": ("scale_1e+37", "subnormal", "huge_rows_tiny_centroids", "not_finite", "zeros"),
    "all": tuple(name for name in NAMES if name != "permuted"),
}


@every_metric
@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("d", [1, 17, 48, 100])
def test_mixtures(kind, d, metric):
    n, k = (6, fewer(6, 2)) if kind == "all" else (fewer(40, 4), fewer(20, 5))
    check_compiled(*mixture(MIXTURES[kind], d, metric, n, k), metric)


@every_metric
@pytest.mark.parametrize("kind", ["ties", "near ties", "sizes"])
def test_threads_splits_and_order(kind, metric, threads):
    """Ids of a row do not depend on threads, on the rows around it, or on where it stands."""
    x, c = mixture(MIXTURES[kind], 48, metric, n=fewer(150, 3), k=fewer(20, 4))
    expected = check_compiled(x, c, metric)
    order = torch.randperm(len(x))
    for name in usable_paths()[1:]:
        with running(name) as backend:

            def ids(rows, backend=backend):
                return ops.nearest_centroid(rows, c, metric=metric, backend=backend).numpy()

            for count in (2, 3, 1)[: fewer(3, 1)]:
                threads(count)
                np.testing.assert_array_equal(ids(x), expected, err_msg=f"{name}: {count} threads")
            for size in (1, 15, 33, 250) if name != "triton" else (7, 8):
                parts = np.concatenate([ids(part) for part in x[:300].split(size)])
                np.testing.assert_array_equal(parts, expected[:300], err_msg=f"{name}: by {size}")
            np.testing.assert_array_equal(ids(x[order]), expected[order], err_msg=name)


@every_metric
@pytest.mark.parametrize("kind", MIXTURES)
def test_lloyd_step_assigns_alike(kind, metric):
    """lloyd_step decides with the same engine, inside another loop."""
    x, c = mixture(MIXTURES[kind], 48, metric, n=fewer(12, 3), k=fewer(20, 4))
    x, c = x.clamp(-1e15, 1e15), c.clamp(-1e15, 1e15)  # sums and inertia stay finite
    expected = nearest_ids(x, c, metric)
    for name in usable_paths()[1:]:
        with running(name) as backend:
            ids, _, counts, _ = ops.lloyd_step(x, c, metric=metric, backend=backend)
        np.testing.assert_array_equal(ids.numpy(), expected, err_msg=name)
        assert counts.sum() == (expected >= 0).sum()


# ---- more than 2^31 elements


@pytest.mark.slow
def test_more_than_2_to_31_elements_of_different_rows():
    """bfloat16 rows, 4 GiB: the first, the last and 10,000 random rows against the truth."""
    n, d = 2**21 + 77, 1024
    x = torch.empty(n, d, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    small = torch.empty(2**15, d, dtype=torch.int8)
    for part in x.split(2**15):
        part.copy_(small[: len(part)].random_(-100, 100))
    c = torch.randint(-30, 31, (7, d)).float() / 8
    which = torch.cat([torch.tensor([0, 1, n - 2, n - 1]), torch.randint(n, (10_000,))])
    expected = nearest_ids(x[which], c, "euclidean")
    assert np.bincount(expected).min() > 100
    ids = ops.nearest_centroid(x, c, backend="cpu")
    assert ids.shape == (n,)
    np.testing.assert_array_equal(ids[which].numpy(), expected)


@pytest.mark.slow
def test_more_than_2_to_31_elements_by_overlapping_rows():
    """Rows that start 3 elements after each other: 2^31 elements in 25 MiB, all different."""
    n, d = 2**21 + 5, 1024
    x = torch.randint(-9, 10, (3 * n + d,)).to(torch.float32).as_strided((n, d), (3, 1))
    assert x.numel() > 2**31
    c = torch.randn(5, d)
    which = torch.cat([torch.tensor([0, n - 1]), torch.randint(n, (10_000,))])
    ids = ops.nearest_centroid(x, c, backend="cpu")
    np.testing.assert_array_equal(ids[which].numpy(), nearest_ids(x[which], c, "euclidean"))
