"""lloyd_step_images: the sums of its rows, and parts that add up bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import (
    ON_TRITON,
    assert_same,
    check_compile,
    check_opcheck,
    check_refusal,
    check_threads,
    every_metric,
    every_path,
    fewer,
    running,
    usable_paths,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUANTUM = 2.0**-28  # of uint8 images: values and costs are rounded to multiples of it


def photo(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def rows_of(images: torch.Tensor, p: int, mean, std) -> torch.Tensor:
    """float32 [N, D] in (row, column, channel) order; F.unfold gives (channel, row, column)."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    patches = torch.nn.functional.unfold(pixels, p, stride=p).transpose(1, 2)
    grid = patches.reshape(*patches.shape[:2], images.shape[1], p * p)
    return grid.transpose(2, 3).reshape(-1, p * p * images.shape[1])


@every_path
@every_metric
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_images_equal_their_rows(kind, metric, path):
    """Within the rounding of each uint8 value and cost to a multiple of 2^-28."""
    images = photo(9, 3, 16, 24) if kind == "uint8" else torch.rand(9, 3, 16, 24)
    x, c = rows_of(images, 4, MEAN, STD), torch.randn(20, 48)
    with running(path) as backend:
        ids, sums, counts, inertia = ops.lloyd_step_images(
            images, c, 4, mean=MEAN, std=STD, metric=metric, backend=backend
        )
        rows = ops.lloyd_step(x, c, metric=metric, backend=backend)
    assert ids.shape == (9, 24)
    assert torch.equal(ids.flatten(), rows[0])
    assert torch.equal(counts, rows[2])
    half = 0.5 * QUANTUM if kind == "uint8" else 0.0
    assert ((sums - rows[1]).abs() <= half * counts[:, None] + 1e-13 * x.abs().sum(0)).all()
    assert (inertia - rows[3]).abs() <= half * len(x) + 1e-12 * rows[3].abs() + 1e-9 * half
    tokens = ops.patch_tokens(images, c, 4, mean=MEAN, std=STD, metric=metric, backend="reference")
    assert torch.equal(ids, tokens)


@every_path
@pytest.mark.parametrize("order", ["hwc", "chw"])
@pytest.mark.parametrize("per_patch_norm", [False, True])
def test_image_options(order, per_patch_norm, path):
    """Every option means what it means to patch_tokens; a permuted codebook permutes the sums."""
    images, c = photo(6, 3, 16, 16), torch.randn(11, 48)
    options = {"mean": MEAN, "std": STD, "per_patch_norm": per_patch_norm, "patch_order": order}
    with running(path) as backend:
        ids, sums, counts, _ = ops.lloyd_step_images(images, c, 4, **options, backend=backend)
    assert torch.equal(ids, ops.patch_tokens(images, c, 4, **options))
    x = rows_of(images, 4, MEAN, STD)
    if per_patch_norm:
        x = x.double()
        x = ((x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt()).float()
    if order == "chw":
        x = x.reshape(-1, 16, 3).transpose(1, 2).reshape(-1, 48)
    expected = torch.zeros(11, 48, dtype=torch.float64).index_add_(0, ids.flatten(), x.double())
    # A row's value is off by half a quantum; per_patch_norm sums in another order here, which may
    # flip the last bit of a value below 8.
    a_row = 2.0**-29 + (2.0**-21 if per_patch_norm else 0.0)
    torch.testing.assert_close(sums, expected, rtol=0, atol=float(counts.max()) * a_row)
    assert torch.equal(counts, ids.flatten().bincount(minlength=11))


@every_path
@every_metric
@pytest.mark.parametrize("per_patch_norm", [False, True])
def test_uint8_parts_add_up_bit_for_bit(per_patch_norm, metric, path):
    """Any split, any order: the sums are integers in units of 2^-28."""
    images, c = photo(fewer(31, 17), 3, 16, 16), torch.randn(13, 48)
    options = {"mean": MEAN, "std": STD, "per_patch_norm": per_patch_norm, "metric": metric}
    with running(path) as backend:
        whole = ops.lloyd_step_images(images, c, 4, **options, backend=backend)
        for size in (7, 16) if backend == "triton" else (1, 7, 30):
            parts = [
                ops.lloyd_step_images(part, c, 4, **options, backend=backend)
                for part in images.split(size)
            ]
            added = [sum(p[i] for p in reversed(parts)) for i in (1, 2, 3)]
            assert_same(added, whole[1:])
    assert torch.equal(whole[1] / QUANTUM, (whole[1] / QUANTUM).round())


@pytest.mark.parametrize(("patch", "images", "k"), [(4, 20, 50), (8, 90, 40), (16, 9, 700)])
def test_uint8_sums_are_the_same_on_every_path(patch, images, k):
    """Ids from pixels or from float rows, each centroid's rows gathered or in shards."""
    side = 32 if ON_TRITON else 160  # the interpreter is slow
    images, c = photo(images, 3, side, side), torch.randn(k, 3 * patch**2)
    expected = ops.patch_tokens(images, c, patch, mean=MEAN, std=STD)
    results = []
    for path in usable_paths():
        with running(path) as backend:
            results.append(
                ops.lloyd_step_images(images, c, patch, mean=MEAN, std=STD, backend=backend)[:3]
            )
    for result in results:
        assert_same(result, results[0])
    assert torch.equal(results[0][0], expected)


def test_images_at_every_thread_count(threads):
    c = torch.randn(50, 48)
    for images in (photo(40, 3, 32, 32), torch.rand(40, 3, 32, 32)):
        check_threads(threads, lambda i=images: ops.lloyd_step_images(i, c, 4, mean=MEAN, std=STD))


def test_sums_of_large_values_do_not_overflow():
    """65,536 values of 1e6 in units of 2^-28 are beyond 2^63."""
    images = torch.full((1, 1, 256, 256), 255, dtype=torch.uint8)
    for path in usable_paths():
        with running(path) as backend:
            _, sums, counts, inertia = ops.lloyd_step_images(
                images, torch.zeros(1, 1), 1, mean=0.0, std=1e-6, backend=backend
            )
        assert counts.item() == 65536
        np.testing.assert_allclose(sums.item(), 65536e6, rtol=1e-6, err_msg=path)
        np.testing.assert_allclose(inertia.item(), 65536e12, rtol=1e-6, err_msg=path)


@every_path
def test_float_images_leave_out_spoilt_patches(path):
    images, c = torch.rand(2, 3, 8, 8), torch.randn(4, 48)
    images[1, 0, 0, 5] = float("nan")
    with running(path) as backend:
        ids, sums, counts, inertia = ops.lloyd_step_images(images, c, 4, backend=backend)
    assert ids.flatten().tolist().count(-1) == 1
    assert ids[1, 1] == -1
    assert counts.sum() == 7
    assert sums.isfinite().all()
    assert inertia.isfinite()


@every_path
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 8)])
def test_no_images(shape, path):
    with running(path) as backend:
        ids, sums, counts, inertia = ops.lloyd_step_images(
            torch.zeros(shape, dtype=torch.uint8), torch.randn(4, 48), 4, backend=backend
        )
    assert ids.shape == (shape[0], shape[2] // 4 * 2)
    assert not sums.any()
    assert not counts.any()
    assert inertia == 0


# ---- the standard checks


def test_refusals():
    images, c, call = photo(2, 3, 8, 10), torch.randn(5, 48), ops.lloyd_step_images
    for wrong, error, words in (
        (lambda: call(images, c, 4), ValueError, ("patch_size = 4", "W = 10")),
        (lambda: call(images[..., :8], c[:, 1:], 4), ValueError, ("centroids", "= 48")),
        (lambda: call(images[..., :8].int(), c, 4), TypeError, ("images", "uint8", "int32")),
        (lambda: call(images[..., :8], c, 4, std=[0.0]), ValueError, ("std", "> 0")),
        (lambda: call(images[..., :8], c, 4, patch_order="x"), ValueError, ("patch_order",)),
    ):
        check_refusal(wrong, error, "lloyd_step_images: ", *words)


@every_path
def test_opcheck(path):
    with running(path) as backend:
        opcheck(backend)


def opcheck(backend):
    overload = torch.ops.clustermim.lloyd_step_images.default
    options = (4, list(MEAN), list(STD), False, "hwc", "euclidean", backend)
    check_opcheck(overload, photo(2, 3, 8, 12), torch.randn(5, 48), *options)


def test_compile_fullgraph():
    def patches(images, c):
        return ops.lloyd_step_images(images, c, 4, mean=MEAN, std=STD)

    check_compile(patches, photo(2, 3, 8, 8), torch.randn(5, 48))


def test_large_values_are_summed_the_same_by_both_backends():
    """Where a pixel may pass 64 sums are plain float64; the reference once quantised them too."""
    images, c = torch.full((2, 1, 8, 8), 100, dtype=torch.uint8), torch.zeros(1, 4)
    # One float32 step off the pixel: values of -3e-5, whose last bits are far below 2^-28.
    mean = float(torch.nextafter(torch.tensor(100.0) / 255, torch.tensor(1.0)))
    truth = rows_of(images, 2, [mean], [1e-3]).double().sum(0)
    assert not torch.equal(truth, (truth * 2.0**28).round() * 2.0**-28)
    for backend in ("cpu", "reference"):
        sums = ops.lloyd_step_images(images, c, 2, mean=[mean], std=[1e-3], backend=backend)[1]
        assert torch.equal(sums[0], truth)
