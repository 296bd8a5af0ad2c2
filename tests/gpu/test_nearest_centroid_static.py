"""The compiled kernels of nearest_centroid hold what they should, on every target."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from tests.gpu.targets import ARCHS, TENSOR_CORES, compiled_only

pytestmark = compiled_only

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# D, K, dtype of the rows, metric: every way the filter works, every type, every metric.
QUICK = [(384, 1000, BF16, "euclidean")]
SHAPES = [
    *QUICK,
    (768, 100, F32, "euclidean"),
    (768, 50, BF16, "cosine"),
    (768, 8192, F16, "dot"),
    (768, 1000, F32, "cosine"),
    (48, 512, F32, "euclidean"),
    (48, 512, BF16, "euclidean"),
    (64, 7, F16, "dot"),
    (100, 257, F32, "euclidean"),  # tiles do not divide it
    (48, 100, F64, "euclidean"),
    (384, 1000, F64, "cosine"),
]


def _compiled(arch, d, k, dtype, metric):
    from tests.gpu import static

    with static.offline(arch) as rows:
        x = torch.zeros(4096, d, dtype=dtype)
        ops.nearest_centroid(
            x, torch.zeros(k, d), metric=metric, return_distance=True, backend="triton"
        )
    print(static.table(rows))
    return {row.kernel: row for row in rows}


def _check(arch, shape):
    kernels = _compiled(arch, *shape)
    for name, row in kernels.items():
        assert row.clean, name
        products = name in ("_filter_kernel", "_candidates_kernel")
        assert (row.counts[TENSOR_CORES[arch]] > 0) == products, name
    in_loops = [loop for loop in kernels["_filter_kernel"].loops if loop[TENSOR_CORES[arch]]]
    assert in_loops
    assert all(loop["G128"] > 0 for loop in in_loops)


@pytest.mark.parametrize("arch", ARCHS)
def test_filter_of_features(arch):
    _check(arch, QUICK[0])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_every_configuration(arch, shape):
    _check(arch, shape)
