"""Patches of real images on every path: near ties that made-up data does not have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clustermim_fast import ops
from tests.ops.harness import running, usable_paths
from tests.ops.truth import nearest_ids

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("num_centroids", [50, 512])
def test_cifar_patches(unpacked, num_centroids):
    """1,000 test images, 64,000 patches; the benchmark counts all 3.2 million."""
    files = sorted(unpacked("cifar10-test").rglob("*.jpg"))[::10]
    pixels = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # channels last in memory
    values = (images.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    grid = values.reshape(-1, 3, 8, 4, 8, 4).permute(0, 2, 4, 3, 5, 1)
    rows = grid.reshape(-1, 48)
    centroids = rows[torch.randperm(len(rows))[:num_centroids]]
    for _ in range(3):
        ids, sums, counts, _ = ops.lloyd_step(rows, centroids)
        centroids = (sums / counts.clamp(min=1)[:, None]).float()
    truth = torch.from_numpy(nearest_ids(rows, centroids, "euclidean"))
    for path in usable_paths()[1:]:
        with running(path) as backend:
            ids = ops.nearest_centroid(rows, centroids, backend=backend)
            tokens = ops.patch_tokens(images, centroids, 4, mean=MEAN, std=STD, backend=backend)
            step = ops.lloyd_step_images(images, centroids, 4, mean=MEAN, std=STD, backend=backend)
        assert torch.equal(ids, truth), path
        assert torch.equal(tokens.flatten(), truth), path
        assert torch.equal(step[0].flatten(), truth), path
        assert torch.equal(step[2], truth.bincount(minlength=num_centroids)), path
