"""The compiled kernels that read images in place hold what they should, on every target."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from tests.gpu.targets import ARCHS, TENSOR_CORES, compiled_only

pytestmark = compiled_only

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# pixels, patch size, centroids, memory format
CASES = {
    "uint8-16": (torch.uint8, 16, 100, torch.contiguous_format),
    "uint8-16-channels_last": (torch.uint8, 16, 100, torch.channels_last),
    "uint8-4": (torch.uint8, 4, 512, torch.contiguous_format),
    "bfloat16-16": (torch.bfloat16, 16, 100, torch.contiguous_format),
    "float32-16": (torch.float32, 16, 100, torch.contiguous_format),
    "float32-4": (torch.float32, 4, 512, torch.contiguous_format),
}
# Kernels that every pixel passes; the others see few rows.
STREAMING = ("_filter_kernel", "_parts_kernel")
QUICK = 90  # the architecture of the ordinary run; the others are slow
EACH_ARCH = [pytest.param(arch, marks=[] if arch == QUICK else pytest.mark.slow) for arch in ARCHS]


def pixels(case):
    """Images of a case, centroids for them, and the patch size."""
    dtype, patch, k, memory = CASES[case]
    side = 224 if patch == 16 else 32
    images = torch.zeros(4, 3, side, side, dtype=dtype).contiguous(memory_format=memory)
    return images, torch.zeros(k, 3 * patch**2), patch


@pytest.mark.parametrize("arch", EACH_ARCH)
@pytest.mark.parametrize("case", CASES)
def test_nothing_spills_and_loads_are_wide(arch, case):
    from tests.gpu import static

    images, centroids, patch = pixels(case)
    with static.offline(arch) as rows:
        ops.lloyd_step_images(images, centroids, patch, mean=MEAN, std=STD, backend="triton")
    print(static.table(rows))
    assert not [r.kernel for r in rows if not r.clean]
    streaming = [r for r in rows if r.kernel in STREAMING]
    assert len(streaming) == 2
    for row in streaming:
        assert row.counts["G128"] > 0
        # A line of a patch is 16 bytes of uint8, and more of other pixels. Pixels one by one would
        # be 16 loads or more; the filter has up to 8 of its own.
        if patch == 16:
            assert row.counts["Gnarrow"] <= 8, row.kernel
        if row.kernel != "_parts_kernel":
            assert row.counts[TENSOR_CORES[arch]] > 0


@pytest.mark.parametrize("arch", EACH_ARCH)
def test_per_patch_norm(arch):
    from tests.gpu import static

    images = torch.zeros(4, 3, 224, 224, dtype=torch.uint8)
    with static.offline(arch) as rows:
        ops.patch_tokens(
            images, torch.zeros(100, 768), 16, mean=MEAN, std=STD, per_patch_norm=True,
            backend="triton",
        )  # fmt: skip
    own = [r for r in rows if r.kernel in ("_statistics_kernel", "_normalise_kernel")]
    print(static.table(own))
    assert len(own) == 2
    assert all(r.clean for r in own)


@pytest.mark.parametrize("arch", EACH_ARCH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_lloyd_step(arch, dtype):
    from clustermim_fast.ops.lloyd_step import triton_sums
    from clustermim_fast.ops.lloyd_step.triton_costs import Inertia
    from clustermim_fast.ops.nearest_centroid.triton_rows import matrix_rows
    from tests.gpu import static

    ids, c64 = torch.zeros(300, dtype=torch.int64), torch.float64
    with static.offline(arch) as rows:
        for d in (48, 384, 768):
            c = torch.zeros(100, d)
            for weights in (None, torch.zeros(300, dtype=c64)):
                counts = torch.zeros(100, dtype=torch.int64 if weights is None else c64)
                costs = triton_sums.add_rows(
                    triton_sums.Totals(torch.zeros(100, d, dtype=c64), counts),
                    matrix_rows(torch.zeros(300, d, dtype=dtype)), ids, c, weights,
                    quantised=False, want_costs=True,
                )  # fmt: skip
                Inertia(c, "euclidean", False).add(costs, ids, weights)
    print(static.table(rows))
    assert not [r.kernel for r in rows if not r.clean]
    assert all(r.counts["G128"] > 0 for r in rows if r.kernel == "_parts_kernel")
