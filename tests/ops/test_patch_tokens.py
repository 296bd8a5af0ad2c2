"""patch_tokens: the ids of the patch rows that torchvision and a plain patchify would make."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import (
    every_metric,
    every_path,
    running,
    usable_paths,
)
from tests.ops.patch_rows import MEAN, STD, photo
from tests.ops.truth import nearest_ids

ORDERS = ("hwc", "chw")


def rows_by_loops(pixels: np.ndarray, p: int, order: str) -> torch.Tensor:
    """[B, C, H, W] to [B, L, p p C], one value at a time: the definition of both orders."""
    batch, channels, height, width = pixels.shape
    grid_height, grid_width = height // p, width // p
    rows = np.empty((batch, grid_height * grid_width, p * p * channels), pixels.dtype)
    for top, left, i, j, c in itertools.product(
        range(grid_height), range(grid_width), range(p), range(p), range(channels)
    ):
        d = (i * p + j) * channels + c if order == "hwc" else (c * p + i) * p + j
        rows[:, top * grid_width + left, d] = pixels[:, c, top * p + i, left * p + j]
    return torch.from_numpy(rows)


def normalized(images: torch.Tensor, mean, std) -> np.ndarray:
    """``(u8 / 255 - mean) / std`` in numpy float32, each step rounded once."""
    pixels = images.float().numpy()
    if images.dtype == torch.uint8:
        pixels = pixels / np.float32(255)
    shape = (-1, 1, 1)
    if mean is not None:
        pixels = pixels - np.array(mean, np.float32).reshape(shape)
    if std is not None:
        pixels = pixels / np.array(std, np.float32).reshape(shape)
    return pixels


def near_rows(rows: torch.Tensor, k: int) -> torch.Tensor:
    """Centroids among the rows' own values, so that neighbouring pixels' order matters."""
    flat = rows.flatten(0, 1)
    return flat[torch.randint(len(flat), (k,))] + 0.3 * torch.randn(k, flat.shape[1])


def check(images, p, k=13, *, mean=None, std=None, order="hwc", metric="euclidean", path=None):
    rows = rows_by_loops(normalized(images, mean, std), p, order)
    centroids = near_rows(rows, k)
    expected = nearest_ids(rows, centroids, metric)
    for name in [path] if path else usable_paths():
        with running(name) as backend:
            ids = ops.patch_tokens(
                images, centroids, p, mean=mean, std=std, patch_order=order, metric=metric,
                backend=backend,
            )  # fmt: skip
        assert ids.dtype == torch.int64
        assert ids.shape == (len(images), images.shape[2] // p * (images.shape[3] // p))
        np.testing.assert_array_equal(ids.numpy(), expected, err_msg=name)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("shape", "p"),
    [
        ((3, 3, 32, 32), 4),
        ((2, 3, 32, 32), 16),
        ((2, 3, 24, 40), 8),  # not square
        ((2, 1, 28, 28), 7),  # grey, odd patch
        ((2, 4, 12, 6), 3),
        ((2, 5, 10, 10), 1),  # a patch is one pixel
        ((1, 3, 14, 14), 14),  # a patch is the image
        ((2, 2, 15, 5), 5),
        ((300, 3, 4, 4), 4),  # more images than one block of rows
    ],
)
def test_shapes_and_orders(shape, p, order):
    channels = shape[1]
    mean, std = [0.4, 0.5, 0.45, 0.1, 0.9][:channels], [0.2, 0.25, 0.3, 0.1, 1.5][:channels]
    check(photo(*shape), p, mean=mean, std=std, order=order)


@every_path
@every_metric
def test_metrics(path, metric):
    check(photo(2, 3, 32, 32), 4, mean=MEAN, std=STD, metric=metric, path=path)


ONES, ZEROS = (1.0,) * 3, (0.0,) * 3


@pytest.mark.parametrize("mean, std", [(None, None), (MEAN, ONES), (ZEROS, STD), (MEAN, STD)])
def test_mean_and_std_are_optional(mean, std):
    check(photo(2, 3, 16, 16), 4, mean=mean, std=std)


@pytest.mark.parametrize("std", [(0.1, 1.0, 1.6), (0.1, 1.0, 1.7), (2e-38, 1.0, 1e38), (1e-30,)])
@pytest.mark.parametrize("mean", [MEAN, (1e-3, 3.0, -1e6)])
def test_means_and_deviations_far_from_usual_ones(mean, std):
    images = photo(4, 3, 10, 10)
    check(images, 5, mean=mean, std=std * (3 // len(std)))
    check(images.contiguous(memory_format=torch.channels_last), 5, mean=MEAN, std=STD)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floating_images(dtype):
    """Taken as float32, not divided by 255; float64 is rounded first."""
    check(torch.rand(2, 3, 16, 16).to(dtype), 4, mean=MEAN, std=STD)
    check((torch.rand(2, 3, 16, 16, dtype=torch.float64) * 3 - 1).to(dtype), 8)


def test_bit_for_bit_torchvision():
    """Centroids one float32 step from a pixel's value tell apart every other way to normalise.

    One pixel a patch, each of the 256 values in each channel; two centroids, the value itself and
    the next float: a product with 1 / std, or a division of (u8 - 255 mean), picks the second.
    """
    transforms = pytest.importorskip("torchvision.transforms")
    for mean, std in ((MEAN, STD), ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))):
        ramp = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).repeat(1, 1, 3)
        values = transforms.Normalize(mean, std)(transforms.ToTensor()(ramp.numpy()))
        images = ramp.permute(2, 0, 1)[None]
        for channel in range(3):
            one = images[:, channel : channel + 1]
            pixels = values[channel].flatten()
            for other in (float("inf"), -float("inf")):
                centroids = torch.cat([pixels.nextafter(torch.tensor(other)), pixels])[:, None]
                for path in usable_paths():
                    with running(path) as backend:
                        ids = ops.patch_tokens(
                            one, centroids, 1, mean=mean[channel], std=std[channel],
                            backend=backend,
                        )  # fmt: skip
                    assert torch.equal(centroids[ids[0], 0], pixels), path


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_per_patch_norm(kind, order):
    """MAE's normalisation in float64: mean, unbiased variance + 1e-6, one rounding to float32."""
    images = photo(2, 3, 16, 24) if kind == "uint8" else torch.rand(2, 3, 16, 24)
    images[0, :, :8, :8] = images[0, 0, 0, 0]  # a flat patch: variance 0
    rows = rows_by_loops(normalized(images, MEAN, STD), 8, order).double()
    centred = rows - rows.mean(2, keepdim=True)
    rows = centred / (centred.square().sum(2, keepdim=True) / (rows.shape[2] - 1) + 1e-6).sqrt()
    rows = rows.float()
    biased = rows[1] * (192 / 191) ** 0.5  # what the variance without Bessel's correction gives
    centroids = torch.cat([near_rows(rows, 20), biased, rows[1]])
    expected = nearest_ids(rows, centroids, "euclidean")
    for path in usable_paths():
        with running(path) as backend:
            ids = ops.patch_tokens(
                images, centroids, 8, mean=MEAN, std=STD, per_patch_norm=True, patch_order=order,
                backend=backend,
            )  # fmt: skip
        np.testing.assert_array_equal(ids.numpy(), expected, err_msg=path)


def test_per_patch_norm_agrees_to_the_last_bit_between_back_ends():
    """Rows that are their own centroids: an id differs as soon as one value differs by one bit."""
    images = torch.rand(8, 3, 32, 32)
    from clustermim_fast.ops.patch_tokens.reference import patch_rows_reference

    rows = patch_rows_reference(images, 4, MEAN, STD, True, "hwc").flatten(0, 1)
    up = rows.nextafter(torch.tensor(float("inf")))
    centroids = torch.cat([torch.where(torch.rand_like(rows) < 0.5, up, rows), rows])
    for path in usable_paths():
        with running(path) as backend:
            ids = ops.patch_tokens(
                images, centroids, 4, mean=MEAN, std=STD, per_patch_norm=True, backend=backend
            )
        assert torch.equal(centroids[ids.flatten()], rows), path
