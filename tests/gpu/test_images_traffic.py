"""Interpreted kernels that read images in place: each byte once a sweep."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _triton

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)
OPTIONS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "backend": "triton"}


@pytest.mark.parametrize("patch", [4, 16])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_byte_is_read_once_by_the_filter_and_once_by_the_sums(patch, dtype):
    """Patches that are dark or bright: the filter leaves none of them open."""
    from tests.gpu import strict

    size = 4 * patch
    bright = torch.rand(6, 1, 4, 4).gt(0.5).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    images = 20.0 + 200 * bright + torch.rand(6, 3, size, size)
    images = images.to(torch.uint8) if dtype == torch.uint8 else images / 255
    centroids = torch.tensor([-1.5, 1.5])[:, None] + 0.1 * torch.rand(2, 3 * patch**2)
    everything = images.numel() * images.element_size()
    with strict.checked() as seen:
        ids = ops.patch_tokens(images, centroids, patch, **OPTIONS)
    assert torch.equal(ids.flatten(), bright[:, 0, ::patch, ::patch].flatten().long())
    assert seen.bytes_of(images) == everything
    with strict.checked() as seen:
        ops.lloyd_step_images(images, centroids, patch, **OPTIONS)
    assert seen.bytes_of(images) == 2 * everything
    rows = 16 * len(images)
    assert seen.load_bytes < 2 * everything + 64 * rows + 8 * centroids.numel() * 40
