"""Scores in a subspace of the centroids (docs/certificate.md, section 3): ids stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend
from tests.ops.harness import check_refusal, every_cpu_path, running
from tests.ops.truth import nearest_ids


@contextmanager
def projecting(when: str) -> Iterator[None]:
    core = _backend.core()
    core.set_projection(when=when)
    try:
        yield
    finally:
        core.set_projection(when="auto")


def low_rank(
    rows: int, dim: int, k: int, rank: int, *, noise: float = 0.02, offset: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows near centroids that lie near a subspace of ``rank`` dimensions."""
    draw = torch.Generator().manual_seed(rows + dim + k + rank)
    basis = torch.randn(rank, dim, generator=draw)
    c = torch.randn(k, rank, generator=draw) @ basis + offset
    c += noise * torch.randn(k, dim, generator=draw)
    x = c[torch.randint(k, (rows,), generator=draw)]
    x = x + 0.5 * torch.randn(rows, rank, generator=draw) @ basis
    return x + 5 * noise * torch.randn(rows, dim, generator=draw), c


@every_cpu_path
@pytest.mark.parametrize(
    ("dim", "k", "rank"),
    [(768, 257, 60), (384, 300, 384), (100, 257, 20), (48, 128, 48), (1000, 100, 10)],
)
def test_ids_with_a_projection(path, dim, k, rank):
    x, c = low_rank(700, dim, k, rank)
    # Rows between two centroids: some exact ties, some a hair beside.
    x[:100] = (c[:100] + c[100 : 200 % k or None][:100]) / 2 if k >= 200 else x[:100]
    x[100:150] = torch.nextafter(x[:50], torch.tensor(torch.inf))
    x[150, 3], x[151, 5] = torch.nan, torch.inf
    with running(path) as backend, projecting("always"), ops.record_stats():
        ids = ops.nearest_centroid(x, c, backend=backend)
        stats = ops.assignment_stats()
    np.testing.assert_array_equal(ids.numpy(), nearest_ids(x, c, "euclidean"))
    assert stats.invalid == 2


@every_cpu_path
def test_centroids_outside_of_the_subspace(path):
    """A few centroids that the sampled subspace misses: their own bounds keep them in the race."""
    x, c = low_rank(600, 256, 320, 12, noise=0.0)
    draw = torch.Generator().manual_seed(5)
    c[7::40] += 4.0 * torch.randn(8, 256, generator=draw)
    x[::6] = c[7::40].repeat(13, 1)[:100] + 0.3 * torch.randn(100, 256, generator=draw)
    with running(path) as backend, projecting("always"):
        ids = ops.nearest_centroid(x, c, backend=backend)
    np.testing.assert_array_equal(ids.numpy(), nearest_ids(x, c, "euclidean"))


@every_cpu_path
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e15, 1e30])
def test_any_scale(path, scale):
    x, c = low_rank(200, 96, 80, 8)
    x, c = x * scale, c * scale
    with running(path) as backend, projecting("always"):
        ids = ops.nearest_centroid(x, c, backend=backend)
    np.testing.assert_array_equal(ids.numpy(), nearest_ids(x, c, "euclidean"))


@every_cpu_path
def test_equal_and_dependent_centroids(path):
    """No basis of the wanted size exists: the whole rows are used."""
    x, c = low_rank(200, 128, 200, 3, noise=0.0)
    c[50:100] = c[:50]
    c[100:] = c[100] * torch.linspace(-1, 1, 100)[:, None]
    with running(path) as backend, projecting("always"):
        ids = ops.nearest_centroid(x, c, backend=backend)
    np.testing.assert_array_equal(ids.numpy(), nearest_ids(x, c, "euclidean"))


@pytest.mark.slow
@every_cpu_path
def test_chosen_when_it_pays(path):
    """Many rows and centroids near a subspace: far fewer rows stay open than with a bad one."""
    x, c = low_rank(60_000, 256, 2048, 16, noise=0.001)
    with running(path) as backend:
        projected = ops.nearest_centroid(x, c, backend=backend)
        with projecting("never"):
            whole = ops.nearest_centroid(x, c, backend=backend)
    assert torch.equal(projected, whole)


def test_the_switch_names_its_choices():
    check_refusal(
        lambda: _backend.core().set_projection(when="often"),
        ValueError,
        "auto, always or never",
        "'often'",
    )
