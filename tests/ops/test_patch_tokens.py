"""patch_tokens: the ids of the patch rows that torchvision and a plain patchify would make."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import (
    check_compile,
    check_opcheck,
    check_refusal,
    check_threads,
    every_metric,
    every_path,
    run_python,
    running,
    usable_paths,
)
from tests.ops.truth import nearest_ids

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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


def photo(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


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


# ---- values


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


# ---- memory formats


@every_path
def test_memory_formats(path):
    images = photo(4, 3, 32, 48)
    centroids = torch.randn(20, 48)
    expected = ops.patch_tokens(images, centroids, 4, mean=MEAN, std=STD, backend="reference")
    padded = photo(4, 5, 40, 70)
    padded[:, 1:4, 4:36, 11:59] = images
    same = {
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "sliced": padded[:, 1:4, 4:36, 11:59],
        "transposed": images.transpose(2, 3).contiguous().transpose(2, 3),
        "every second": images.repeat_interleave(2, 3)[:, :, :, ::2],
        "offset": torch.cat([photo(5), images.flatten()])[5:].view_as(images),
    }
    with running(path) as backend:
        for name, view in same.items():
            ids = ops.patch_tokens(view, centroids, 4, mean=MEAN, std=STD, backend=backend)
            assert torch.equal(ids, expected), name
        expanded = images[:1].expand(4, 3, 32, 48)
        ids = ops.patch_tokens(expanded, centroids, 4, mean=MEAN, std=STD, backend=backend)
        assert torch.equal(ids, expected[:1].expand(4, 96))
        strided = torch.randn(48, 20).T
        ids = ops.patch_tokens(images, strided, 4, backend=backend)
        again = ops.patch_tokens(images, strided.contiguous(), 4, backend="reference")
        assert torch.equal(ids, again)


@every_path
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0), (0, 3, 0, 0)])
def test_size_0(path, shape):
    with running(path) as backend:
        ids = ops.patch_tokens(torch.zeros(shape), torch.randn(5, 48), 4, backend=backend)
    assert ids.shape == (shape[0], shape[2] // 4 * (shape[3] // 4))
    assert ids.dtype == torch.int64


@every_path
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("per_patch_norm", [False, True])
def test_a_pixel_that_is_not_finite_spoils_its_patch_only(path, value, per_patch_norm):
    images, centroids = torch.rand(2, 3, 16, 16), torch.randn(7, 48)
    options = {"mean": MEAN, "std": STD, "per_patch_norm": per_patch_norm}
    with running(path) as backend:
        before = ops.patch_tokens(images, centroids, 4, **options, backend=backend)
        images[1, 2, 5, 14] = value  # patch row 1, column 3
        after = ops.patch_tokens(images, centroids, 4, **options, backend=backend)
    assert after[1, 7] == -1
    before[1, 7] = -1
    assert torch.equal(after, before)


@pytest.mark.slow
def test_more_than_2_to_31_elements():
    images = photo(1, 3, 1024, 1024)
    images = images.expand(700, 3, 1024, 1024)
    assert images.numel() > 2**31
    centroids = torch.randn(2, 3 * 64 * 64)
    ids = ops.patch_tokens(images, centroids, 64, mean=MEAN, std=STD, backend="cpu")
    assert torch.equal(
        ids, ops.patch_tokens(images[:1], centroids, 64, mean=MEAN, std=STD).expand_as(ids)
    )


PEAK = """
import resource, torch
from clustermim_fast import ops
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
images = torch.randint(0, 256, (512, 3, 224, 224), dtype=torch.uint8)
centroids = torch.randn(100, 768)
ops.patch_tokens(images[:2], centroids, 16, mean=[0.5] * 3, std=[0.2] * 3, backend="cpu")
before = peak()
ops.patch_tokens(images, centroids, 16, mean=[0.5] * 3, std=[0.2] * 3, backend="cpu")
ops.lloyd_step_images(images, centroids, 16, mean=[0.5] * 3, std=[0.2] * 3, backend="cpu")
print((peak() - before) / 1024)
"""


@pytest.mark.slow
def test_the_patch_matrix_is_never_made():
    """512 images of 224 x 224: their float32 patch matrix alone would be 294 MiB."""
    done = run_python(PEAK)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 32, "MiB above the images"


# ---- the standard checks


def test_thread_counts(threads):
    images, centroids = photo(40, 3, 32, 32), torch.randn(50, 48)
    check_threads(threads, lambda: ops.patch_tokens(images, centroids, 4, mean=MEAN, std=STD))


def test_assignment_stats():
    with ops.record_stats():
        ops.patch_tokens(photo(3, 3, 8, 8), torch.randn(5, 48), 4)
    assert ops.assignment_stats().rows == 12


def test_inputs_that_require_grad():
    ids = ops.patch_tokens(
        torch.rand(1, 3, 8, 8, requires_grad=True), torch.randn(5, 48, requires_grad=True), 4
    )
    assert not ids.requires_grad


def test_refusals():
    images, c = photo(2, 3, 8, 12), torch.randn(5, 48)
    call = ops.patch_tokens
    for wrong, error, words in (
        (
            lambda: call(photo(2, 3, 8, 10), c, 4),
            ValueError,
            ("multiples of patch_size = 4", "H = 8, W = 10"),
        ),
        (lambda: call(photo(2, 3, 9, 12), c, 4), ValueError, ("images", "H = 9", "crop or resize")),
        (
            lambda: call(images.permute(0, 2, 3, 1), c, 4),
            ValueError,
            ("images", "H = 12, W = 3", "channels seem to stand last", ".permute(0, 3, 1, 2)"),
        ),
        (
            lambda: call(torch.zeros(2, 8, 8, 4), torch.randn(5, 64), 4),
            ValueError,
            ("centroids", "= 128, got (5, 64)", "stand last, pass images.permute(0, 3, 1, 2)"),
        ),
        (
            lambda: call(images[0], c, 4),
            ValueError,
            ("images must be 4-dimensional [B, C, H, W]", "(3, 8, 12)"),
        ),
        (lambda: call(images.int(), c, 4), TypeError, ("images must be of dtype uint8", "int32")),
        (lambda: call(images.numpy(), c, 4), TypeError, ("images", "ndarray", "from_numpy")),
        (lambda: call(images, c, 2), ValueError, ("centroids must be [K, D]", "= 12", "(5, 48)")),
        (lambda: call(images, c[:0], 4), ValueError, ("centroids", "K >= 1")),
        (lambda: call(images, c, 0), ValueError, ("patch_size must be an int >= 1", "got 0")),
        (lambda: call(images, c, 4.0), ValueError, ("patch_size must be an int >= 1", "4.0")),
        (
            lambda: call(images, c, 4, mean=[0.5, 0.5]),
            ValueError,
            ("mean must be 3 values", "2 values"),
        ),
        (
            lambda: call(images, c, 4, mean=object()),
            TypeError,
            ("mean must be a sequence", "object"),
        ),
        (
            lambda: call(images, c, 4, mean=[0.5, float("nan"), 0]),
            ValueError,
            ("mean must be finite", "nan"),
        ),
        (
            lambda: call(images, c, 4, std=[0.2, 0.0, 0.2]),
            ValueError,
            ("std must be finite and > 0", "0.0"),
        ),
        (lambda: call(images, c, 4, mean=0.5), ValueError, ("std must be given", "pass std=1.0")),
        (lambda: call(images, c, 4, std=0.5), ValueError, ("mean must be given", "pass mean=0.0")),
        (
            lambda: call(images, c, 4, patch_order="whc"),
            ValueError,
            ("patch_order", "'hwc', 'chw'", "'whc'"),
        ),
        (lambda: call(images, c, 4, metric="l1"), ValueError, ("metric", "'cosine'", "'l1'")),
        (
            lambda: call(images[:, :1], c[:, :1], 1, per_patch_norm=True),
            ValueError,
            ("per_patch_norm",),
        ),
        (lambda: call(images, c.to("meta"), 4), ValueError, ("centroids must be on cpu", "meta")),
    ):
        check_refusal(wrong, error, "patch_tokens: ", *words)


def test_one_value_stands_for_every_channel():
    images, c = photo(2, 3, 8, 8), torch.randn(5, 48)
    three = ops.patch_tokens(images, c, 4, mean=[0.5] * 3, std=[0.25] * 3)
    assert torch.equal(ops.patch_tokens(images, c, 4, mean=0.5, std=torch.tensor([0.25])), three)
    assert torch.equal(ops.patch_tokens(images, c, 4, mean=np.full(3, 0.5), std=[0.25]), three)


@every_path
def test_opcheck(path):
    with running(path) as backend:
        opcheck(backend)


def opcheck(backend):
    overload = torch.ops.clustermim.patch_tokens.default
    common = (list(MEAN), list(STD), False, "hwc", "euclidean", backend)
    check_opcheck(overload, photo(2, 3, 8, 12), torch.randn(5, 48), 4, *common)
    check_opcheck(overload, torch.rand(0, 3, 8, 8), torch.randn(5, 48), 4, *common)
    check_opcheck(
        overload, photo(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),
        torch.randn(5, 48), 4, None, None, True, "chw", "cosine", backend,
    )  # fmt: skip


def test_compile_fullgraph():
    def call(images, c):
        return ops.patch_tokens(images, c, 4, mean=MEAN, std=STD) + 1

    check_compile(call, photo(2, 3, 8, 8), torch.randn(5, 48))
