"""What only the Triton back-end of nearest_centroid has: its traffic, its assumption, its tiers."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _backend
from tests.ops.harness import ON_TRITON, every_metric, running
from tests.ops.truth import nearest_ids

pytestmark = pytest.mark.skipif(
    not ON_TRITON, reason="Triton: has a run of its own (make check-triton)"
)


def _apart(n, d, k, dtype=torch.float32):
    """Rows that are so near their centroid that the filter decides all."""
    c = torch.randn(k, d)
    return (c[torch.randint(k, (n,))] + 0.01 * torch.randn(n, d)).to(dtype), c


@pytest.mark.parametrize(
    "n, d, k, dtype",
    [
        (256, 768, 100, torch.float32),  # one block of columns
        (512, 384, 300, torch.bfloat16),  # rounded rows in scratch
        (512, 48, 300, torch.float32),  # in registers
    ],
)
def test_rows_are_read_once(n, d, k, dtype):
    """Bytes of x, and the products, are what benchmarks count: rows once, each pair once."""
    from clustermim_fast.ops._triton import interpreted
    from tests.gpu import strict

    if not interpreted():
        pytest.skip("Triton: traffic is counted where it is interpreted")
    x, c = _apart(n, d, k, dtype)
    with strict.checked() as seen, ops.record_stats():
        ids = ops.nearest_centroid(x, c, backend="triton")
    assert ops.assignment_stats().filter == n
    assert (ids.numpy() == nearest_ids(x, c, "euclidean")).all()
    assert seen.bytes_of(x) == n * d * x.element_size()
    padded = -(-k // 128) * 128
    assert seen.dot_flops == 2 * n * padded * d


def test_products_hold_what_the_bound_assumes():
    from clustermim_fast.ops import _triton
    from clustermim_fast.ops.nearest_centroid.triton_probe import worst_product

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    worst = worst_product(device, _triton.properties(device).arch)
    assert 0.0 < worst <= 1.0


@every_metric
def test_a_far_centroid_does_not_loosen_the_others_bounds(metric):
    x, c = _apart(200, 48, 60)
    c[7] *= 1e4
    with running("triton") as backend, ops.record_stats():
        ids = ops.nearest_centroid(x, c, metric=metric, backend=backend)
    assert (ids.numpy() == nearest_ids(x, c, metric)).all()
    if metric == "euclidean":
        assert ops.assignment_stats().filter > 180


@every_metric
@pytest.mark.parametrize("many", [False, True])
def test_rows_with_few_and_with_many_candidates(metric, many):
    """Up to 8 candidates are written down; rows with more go another way."""
    x, c = torch.randn(40, 33), torch.randn(60, 33)
    near = 12 if many else 3
    c[20 : 20 + near] = c[20] * (1 + 2.0**-20 * torch.randn(near, 33))
    x[:30] = c[20] + 0.001 * torch.randn(30, 33)
    with running("triton") as backend, ops.record_stats():
        ids = ops.nearest_centroid(x, c, metric=metric, backend=backend)
    assert (ids.numpy() == nearest_ids(x, c, metric)).all()
    assert ops.assignment_stats().filter <= 10 + 1


def test_rows_too_wide_for_the_exact_tier_are_refused(monkeypatch):
    """Its integers are proved for 2^19 values; chosen by device, the reference takes wider rows."""
    from clustermim_fast.ops.nearest_centroid import op

    c = torch.zeros(1, 2**19 + 1)
    images, of_images = torch.zeros(1, 3, 512, 512), torch.zeros(1, 3 * 512**2)
    for call in (
        lambda **kw: ops.nearest_centroid(c, c, **kw),
        lambda **kw: ops.lloyd_step(c, c, **kw),
        lambda **kw: ops.patch_tokens(images, of_images, 512, **kw),
        lambda **kw: ops.lloyd_step_images(images, of_images, 512, **kw),
    ):
        with pytest.raises(ValueError, match=r'centroids must be .* D <= 524288.*"reference"'):
            call(backend="triton")
        with _backend.use_backend("triton"), pytest.raises(ValueError, match="D <= 524288"):
            call()
    # Only on a GPU is Triton chosen where nobody named it.
    monkeypatch.setattr(op._backend, "resolve", lambda *_: "triton")

    def chosen(centroids):
        gpu = torch.device("cuda")
        return op.choose_backend("nearest_centroid", None, gpu, centroids, op.IMPLEMENTED)

    assert chosen(c) == "reference"
    assert chosen(c[:, 1:]) == "triton"
    with _backend.use_backend("triton"), pytest.raises(ValueError, match='backend "triton"'):
        chosen(c)
