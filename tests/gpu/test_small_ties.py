"""Exact ties small enough to be interpreted; those of the ops' own tests are left to a GPU."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _triton

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)

if _triton.interpreted():
    from tests.gpu import strict


def ids_of(x: torch.Tensor, c: torch.Tensor, metric: str) -> torch.Tensor:
    with strict.checked():
        return ops.nearest_centroid(x, c, metric=metric, backend="triton")


@pytest.mark.parametrize("k, metric", [(3, "euclidean"), (3, "dot"), (10, "euclidean")])
def test_permuted_centroids(k, metric):
    """k = 10: more than the slots for candidates."""
    one = torch.randn(20)
    c = torch.stack([one[torch.randperm(20)] for _ in range(k)])
    x = torch.randn(5, 1).expand(5, 20)
    assert not ids_of(x, c, metric).any()


def test_one_is_nearer_by_the_lowest_bit():
    """Halves exchanged: ties, but for one bit, 2^60 below the largest value."""
    half, other = torch.randn(2, 6) * 2.0 ** -torch.tensor([0, 12, 24, 36, 48, 60])
    c = torch.stack([torch.cat([half, other]), torch.cat([other, half])]).repeat(2, 1)
    x = torch.randn(5, 6).repeat(1, 2)
    assert not ids_of(x, c, "euclidean").any()
    c[1, 5] = torch.nextafter(c[1, 5], torch.tensor(torch.inf))
    assert torch.equal(ids_of(x, c, "euclidean"), ops.nearest_centroid(x, c))
    nearer = (x[:, 5] > c[1, 5]).long()
    assert torch.equal(ids_of(x, c, "euclidean"), nearer)


def test_centroids_that_float16_cannot_tell_apart():
    """Rows are exact in it: only what rounding moved in the centroids keeps them open."""
    about = torch.randint(-4, 5, (8, 32)).repeat(8, 1)
    c = about + torch.randn(64, 32) * 2.0**-12
    x = torch.randint(-4, 5, (60, 32)).bfloat16()
    assert torch.equal(ids_of(x, c, "euclidean"), ops.nearest_centroid(x, c))
