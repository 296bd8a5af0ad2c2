"""Mass ties: every centroid as near as every other, exactly; one of them nearer by a last bit."""

from __future__ import annotations

import pytest
import torch

from tests.ops.assignment import check_ids
from tests.ops.harness import fewer, usable_paths

# More candidates than a filter keeps of a row, so that all of them are decided together.
K = fewer(300, 9)
PATHS = [path for path in usable_paths() if path != "reference"]


def permuted(d: int, scale: float, k: int = K) -> torch.Tensor:
    """[k, d]: permutations of one centroid."""
    one = torch.randn(d) * scale
    return torch.stack([one[torch.randperm(d)] for _ in range(k)])


def spread(n: int, d: int, bits: int) -> torch.Tensor:
    """[n, d] of 24-bit values whose sizes are up to 2^bits apart."""
    return torch.randn(n, d) * 2.0 ** -torch.randint(0, bits + 1, (n, d)).float()


@pytest.mark.parametrize("metric", ["euclidean", "dot", "cosine"])
@pytest.mark.parametrize("scale", [1e-41, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("d", [7, 48, 100])
def test_rows_of_one_value_and_permuted_centroids(d, scale, metric):
    n = fewer(35, 3)
    if metric == "cosine":  # whose exact comparison is several times as long
        n = fewer(35, 1)
    x = (torch.randn(n, 1) * scale).expand(n, d)
    c = permuted(d, scale)
    for path in PATHS:
        check_ids(x, c, metric, path=path)


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
def test_one_centroid_is_nearer_by_a_last_bit(metric):
    n, one = fewer(33, 6), K - 2
    x, c = torch.randn(n, 1).expand(n, 64), permuted(64, 1.0)
    up = torch.nextafter(c[one], torch.tensor(torch.inf))
    c[one, 5] = up[5]
    winners = check_ids(x, c, metric, path=PATHS[-1])
    assert {0, one} == set(winners.tolist())  # rows on either side of that value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_grids_and_one_hot_centroids(dtype):
    d = fewer(160, 6)
    one_hot = torch.cat([torch.eye(d), -torch.eye(d)]).to(dtype)
    grid = torch.randint(-1, 2, (K, 20)).to(dtype)
    for path in PATHS:
        check_ids(torch.zeros(fewer(5, 2), d, dtype=dtype), one_hot, path=path)
        check_ids(torch.full((fewer(5, 2), d), 0.5, dtype=dtype), one_hot, path=path)
        check_ids(torch.randint(-1, 2, (fewer(40, 4), 20)).to(dtype), grid, path=path)


@pytest.mark.parametrize("bits", [10, 18, 24, 60])
def test_every_bit_counts(bits):
    """Values exchanged between two equal halves of a row: ties of values of very unequal size."""
    x = spread(fewer(6, 1), 24, bits).repeat(1, 2)
    c = spread(1, 48, bits).repeat(K, 1)
    exchanged = torch.rand(K, 24) < 0.5
    c = torch.cat(
        [
            torch.where(exchanged, c[:, 24:], c[:, :24]),
            torch.where(exchanged, c[:, :24], c[:, 24:]),
        ],
        dim=1,
    )
    for metric in ("euclidean", "dot", "cosine"):
        assert not check_ids(x, c, metric, path=PATHS[-1]).any()
    c[K // 2] = torch.nextafter(c[K // 2], torch.tensor(torch.inf))
    check_ids(x, c, path=PATHS[-1])
