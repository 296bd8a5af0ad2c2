"""Patches of real images on every path: near ties that made-up data does not have.

A part of each set, so that every path can be asked; the benchmarks count wrong ids on all of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clustermim_fast import ops
from tests.ops.harness import running, usable_paths
from tests.ops.patch_rows import Layout
from tests.ops.truth import nearest_ids

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def images_of(files: list[Path], side: int | None = None) -> torch.Tensor:
    """uint8 [B, 3, H, W], channels last in memory, as decoders give them."""
    pixels = []
    for file in files:
        image = Image.open(file).convert("RGB")
        if side is not None:
            scale = 256 / min(image.size)
            image = image.resize([round(scale * s) for s in image.size], Image.Resampling.BILINEAR)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        pixels.append(np.asarray(image))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def rows_of(images: torch.Tensor, p: int, mean, std) -> torch.Tensor:
    """float32 [N, p * p * 3]: the normalised patches, (row, column, channel)."""
    b, _, h, w = images.shape
    grid = images.reshape(b, 3, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)
    pixels = grid.reshape(-1, p * p * 3).numpy()
    return torch.from_numpy(Layout(p, 3).values(pixels, mean, std))


def codebook(rows: torch.Tensor, k: int, iterations: int = 3) -> torch.Tensor:
    """Some Lloyd iterations on the rows themselves: centroids that lie close to each other."""
    centroids = rows[torch.randperm(len(rows))[:k]]
    for _ in range(iterations):
        _, sums, counts, _ = ops.lloyd_step(rows, centroids)
        moved = (sums / counts.clamp(min=1)[:, None]).float()
        centroids = torch.where(counts[:, None] > 0, moved, centroids)
    return centroids


def check_every_path(images, rows, centroids, p, mean, std, metric="euclidean") -> None:
    truth = torch.from_numpy(nearest_ids(rows, centroids, metric))
    options = {"mean": mean, "std": std, "metric": metric}
    for path in usable_paths()[1:]:
        with running(path) as backend:
            ids = ops.nearest_centroid(rows, centroids, metric=metric, backend=backend)
            tokens = ops.patch_tokens(images, centroids, p, **options, backend=backend)
            floating = ops.patch_tokens(
                images.float() / 255, centroids, p, **options, backend=backend
            )
            step = ops.lloyd_step_images(images, centroids, p, **options, backend=backend)
        for name, found in (
            ("nearest_centroid", ids),
            ("patch_tokens of uint8", tokens),
            ("patch_tokens of float32", floating),
            ("lloyd_step_images", step[0]),
        ):
            wrong = int((found.flatten() != truth).sum())
            assert wrong == 0, f"{name}, {path}: {wrong} wrong of {len(truth)}"
        assert torch.equal(step[2], truth.bincount(minlength=len(centroids))), path


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("num_centroids", [50, 512])
def test_cifar_patches(unpacked, num_centroids):
    """1,000 test images, 64,000 patches."""
    images = images_of(sorted(unpacked("cifar10-test").rglob("*.jpg"))[::10])
    rows = rows_of(images, 4, *CIFAR)
    check_every_path(images, rows, codebook(rows, num_centroids), 4, *CIFAR)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("num_centroids", [100, 1000, 8192])
def test_imagenet_patches(unpacked, num_centroids):
    """100 images of 224 x 224, 19,600 patches of 16 x 16; for 8,192 centroids 20 images."""
    files = sorted(unpacked("imagenet-sample").rglob("*.jpg"))
    assert len(files) >= 100
    images = images_of(files[:: len(files) // 100][:100], 224)
    rows = rows_of(images, 16, *IMAGENET)
    centroids = codebook(rows, num_centroids, 1 if num_centroids > 1000 else 3)
    few = 20 if num_centroids > 1000 else 100
    check_every_path(images[:few], rows[: few * 196], centroids, 16, *IMAGENET)


@pytest.mark.data
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_few_patches_of_both(unpacked, metric):
    """The fast share: 60 CIFAR images in patches of 4 and 2, 6 ImageNet images in patches of 16."""
    images = images_of(sorted(unpacked("cifar10-test").rglob("*.jpg"))[:600:10])
    for p in (4, 2):
        rows = rows_of(images, p, *CIFAR)
        check_every_path(images, rows, codebook(rows, 64), p, *CIFAR, metric)
    images = images_of(sorted(unpacked("imagenet-sample").rglob("*.jpg"))[:600:100], 224)
    rows = rows_of(images, 16, *IMAGENET)
    check_every_path(images, rows, codebook(rows, 100), 16, *IMAGENET, metric)


@pytest.mark.slow
@pytest.mark.data
def test_projected_imagenet_patches(unpacked):
    """Patches times a random 768 x 384 matrix, of length 1: the stand-in for a ViT's features."""
    files = sorted(unpacked("imagenet-sample").rglob("*.jpg"))
    images = images_of(files[:: len(files) // 60][:60], 224)
    rows = rows_of(images, 16, *IMAGENET) @ torch.randn(768, 384)
    rows = torch.nn.functional.normalize(rows, dim=1)
    centroids = codebook(rows, 1000)
    for x, c in (
        (rows, centroids),
        (rows.bfloat16(), centroids.bfloat16()),
        (rows.half(), centroids),
    ):
        for metric in ("euclidean", "cosine"):
            truth = nearest_ids(x, c, metric)
            for path in usable_paths()[1:]:
                with running(path) as backend:
                    ids = ops.nearest_centroid(x, c, metric=metric, backend=backend)
                np.testing.assert_array_equal(ids.numpy(), truth, err_msg=f"{path}, {x.dtype}")
