"""nearest_centroid with its filter in a subspace, where sizes alone would not choose one."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend
from tests.ops.adversarial import GENERATORS, make
from tests.ops.assignment import check_compiled
from tests.ops.harness import projecting, running, usable_paths

NAMES = tuple(GENERATORS)
# At least 64 rows and columns each, or there is no subspace; not multiples of a tile or a step.
SHAPES = ((100, 257), (130, 70), (384, 100), (65, 1000), (511, 129))
ROWS = (torch.float32, torch.bfloat16, torch.float32, torch.float64, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_adversarial_in_a_subspace(name):
    first = NAMES.index(name)
    for turn in (first, first + 1):
        d, k = SHAPES[turn % 5]
        x, c = make(name, 33, d, k, "euclidean", ROWS[turn % 5], torch.float32)
        with projecting("always"):
            check_compiled(x, c, "euclidean")


@pytest.mark.parametrize("name", ["few_dimensions", "very_few_dimensions", "around_few_dimensions"])
@pytest.mark.parametrize("d, k", SHAPES)
def test_centroids_that_lie_in_a_subspace(name, d, k):
    x, c = make(name, 127, d, k)
    for when in ("always", "auto", "never"):
        with projecting(when):
            check_compiled(x, c, "euclidean")
            check_compiled(x + 3.0, c + 3.0, "euclidean")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_adversarial_in_a_subspace_at_every_shape(name):
    with projecting("always"):
        for d, k in (*SHAPES, (768, 257), (1024, 200), (96, 2000)):
            for dtype in ROWS[:4]:
                x, c = make(name, 40, d, k, "euclidean", dtype, torch.float32)
                check_compiled(x, c, "euclidean")


def test_enough_rows_choose_the_subspace_themselves():
    """20,000 rows of 256 dimensions: the choice that sizes make, against the whole space."""
    x, c = make("few_dimensions", 20_000, 256, 512)
    ids = {}
    for when in ("auto", "always", "never"):
        with projecting(when):
            ids[when] = check_compiled(x[:200], c, "euclidean"), _ids(x, c)
    assert torch.equal(ids["auto"][1], ids["never"][1])
    assert torch.equal(ids["always"][1], ids["never"][1])


def _ids(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return ops.nearest_centroid(x, c, backend="cpu")


@pytest.mark.parametrize("path", usable_paths()[1:])
def test_the_set_has_teeth(path):
    """Without the margins of the certificate, in the whole space and in a subspace, many of these
    ids are wrong: a bound that is too small on this path would show."""
    core = _backend.core()
    for when, name, d in (
        ("never", "residuals_of_both", 130),
        ("never", "residuals_of_both", 48),  # narrow rows have kernels of their own
        ("never", "residuals_of_split", 130),
        ("always", "few_dimensions", 130),
        ("always", "residuals_of_both", 130),
    ):
        x, c = make(name, 127, d, 70)
        with running(path), projecting(when):
            right = _ids(x, c)
            core.set_certified(certified=False)
            try:
                rounded = _ids(x, c)
            finally:
                core.set_certified(certified=True)
        assert (right != rounded).sum() > 12, name
