"""replace_patches: pixels by definition, rounding, what is kept, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import (
    assert_same,
    check_compile,
    check_opcheck,
    check_refusal,
    check_threads,
    every_path,
    running,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ONES, ZEROS = (1.0,) * 3, (0.0,) * 3
IMAGE_DTYPES = (torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16)
every_order = pytest.mark.parametrize("order", ["hwc", "chw"])


def by_loops(images, ids, centroids, where, p, mean, std, order) -> torch.Tensor:
    """The definition, one pixel at a time."""
    out = images.clone(memory_format=torch.contiguous_format)
    channels, width = images.shape[1], images.shape[3]
    one, zero = [1.0] * channels, [0.0] * channels
    scale = np.array(one if std is None else std, np.float32)
    shift = np.array(zero if mean is None else mean, np.float32)
    for b, patch in torch.nonzero(where).tolist():
        token = int(ids[b, patch])
        if token < 0:
            continue
        top, left = patch // (width // p) * p, patch % (width // p) * p
        for d, value in enumerate(centroids[token].float().numpy()):
            if order == "hwc":
                i, j, c = d // channels // p, d // channels % p, d % channels
            else:
                i, j, c = d // p % p, d % p, d // p // p
            pixel = value * scale[c] + shift[c]
            if images.dtype == torch.uint8:
                pixel = min(max(round(float(pixel * np.float32(255))), 0), 255)  # half to even
            out[b, c, top + i, left + j] = float(pixel)
    return out


def case(dtype=torch.uint8, shape=(3, 3, 12, 8), p=4, k=7):
    if dtype == torch.uint8:
        images = torch.randint(0, 256, shape, dtype=dtype)
    else:
        images = torch.rand(shape, dtype=torch.float64).to(dtype)
    patches = (shape[2] // p) * (shape[3] // p)
    ids = torch.randint(-1, k, (shape[0], patches))
    return images, ids, torch.randn(k, p * p * shape[1]), torch.rand(shape[0], patches) < 0.5


@every_path
@every_order
@pytest.mark.parametrize("dtype", IMAGE_DTYPES)
@pytest.mark.parametrize("mean, std", [(None, None), (MEAN, STD), (MEAN, ONES), (ZEROS, STD)])
def test_pixels(dtype, mean, std, order, path):
    images, ids, c, where = case(dtype)
    with running(path) as backend:
        out = ops.replace_patches(
            images, ids, c, where, 4, mean=mean, std=std, patch_order=order, backend=backend
        )
    assert out.is_contiguous()
    assert_same(out, by_loops(images, ids, c, where, 4, mean, std, order))


@every_path
@every_order
@pytest.mark.parametrize(
    ("shape", "p"),
    [
        ((2, 1, 9, 6), 3),
        ((2, 4, 8, 8), 4),
        ((1, 3, 5, 5), 5),
        ((2, 2, 3, 4), 1),
        ((1, 3, 16, 48), 8),
    ],
)
def test_shapes(shape, p, order, path):
    images, ids, c, where = case(shape=shape, p=p)
    with running(path) as backend:
        out = ops.replace_patches(images, ids, c, where, p, patch_order=order, backend=backend)
    assert_same(out, by_loops(images, ids, c, where, p, None, None, order))


@every_path
def test_uint8_rounds_half_to_even_and_clamps(path):
    values = torch.tensor([0.5, 1.5, 2.5, 254.5, -0.5, -7.0, 255.4, 255.5, 300.0, 1e30]) / 255
    values = torch.cat([values, torch.tensor([float("inf"), -float("inf")])])
    on_half = (values[:4] * 255).tolist()
    assert on_half == [0.5, 1.5, 2.5, 254.5]  # float32 keeps these halves
    images, ids = torch.full((1, 1, 1, 12), 9, dtype=torch.uint8), torch.arange(12)[None]
    with running(path) as backend:
        out = ops.replace_patches(
            images, ids, values[:, None], torch.ones(1, 12, dtype=torch.bool), 1, backend=backend
        )
    assert out.flatten().tolist() == [0, 2, 2, 254, 0, 0, 255, 255, 255, 255, 255, 0]


@every_path
def test_patches_without_an_id_stay(path):
    images, ids, c, where = case()
    with running(path) as backend:
        ids[:] = -1
        assert_same(ops.replace_patches(images, ids, c, where, 4, backend=backend), images)
        where[:] = False
        ids[:] = 10**9  # not looked at where `where` is False
        assert_same(ops.replace_patches(images, ids, c, where, 4, backend=backend), images)


@every_path
def test_the_images_are_not_written_and_the_result_is_new(path):
    images, ids, c, where = case()
    before = images.clone()
    with running(path) as backend:
        out = ops.replace_patches(images, ids, c, where, 4, backend=backend)
        kept = ops.replace_patches(images, ids, c, where & False, 4, backend=backend)
    assert_same(images, before)
    assert not torch.equal(out, before)
    assert kept.data_ptr() != images.data_ptr()


@every_path
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float16])
def test_where_of_another_dtype_means_not_zero(dtype, path):
    images, ids, c, where = case()
    other = (where * torch.randint(1, 5, where.shape)).to(dtype)
    if dtype.is_floating_point:
        other = -other / 8
    with running(path) as backend:
        expected = ops.replace_patches(images, ids, c, where, 4, backend=backend)
        assert_same(ops.replace_patches(images, ids, c, other, 4, backend=backend), expected)


@every_path
def test_int32_ids_and_strided_inputs(path):
    images, ids, c, where = case(shape=(4, 3, 12, 8))
    with running(path) as backend:
        expected = ops.replace_patches(images, ids, c, where, 4, backend=backend)
        for i, t, k, w in (
            (images, ids.int(), c, where),
            (images.contiguous(memory_format=torch.channels_last), ids.T.contiguous().T, c, where),
            (images.transpose(2, 3).contiguous().transpose(2, 3), ids, c.T.contiguous().T, where),
            (images, ids, c, where.repeat_interleave(2, 1)[:, ::2]),
        ):
            assert_same(ops.replace_patches(i, t, k, w, 4, backend=backend), expected)
        one = images[:1].expand(4, 3, 12, 8)
        expected = ops.replace_patches(one.contiguous(), ids, c, where, 4, backend=backend)
        assert_same(ops.replace_patches(one, ids, c, where, 4, backend=backend), expected)


@every_path
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_centroid_dtypes(dtype, path):
    images, ids, c, where = case(torch.float32)
    pixels = {"mean": MEAN, "std": 1.0}
    with running(path) as backend:
        out = ops.replace_patches(images, ids, c.to(dtype), where, 4, **pixels, backend=backend)
    assert_same(out, by_loops(images, ids, c.to(dtype), where, 4, MEAN, None, "hwc"))


@every_path
def test_tokens_of_the_result_are_the_ids(path):
    """Round trip through patch_tokens with the same settings."""
    images, ids, c, _ = case(torch.float32, k=30)
    ids = ids.clamp(min=0)
    where = torch.ones_like(ids)
    options = {"mean": MEAN, "std": STD, "patch_order": "chw"}
    with running(path) as backend:
        out = ops.replace_patches(images, ids, c, where, 4, **options, backend=backend)
        assert torch.equal(ops.patch_tokens(out, c, 4, **options, backend=backend), ids)


@every_path
def test_ids_out_of_range(path):
    images, ids, c, where = case()
    with running(path) as backend:
        for value in (7, 10**12, 2**62):
            bad = ids.clone()
            bad[1, 2], where[1, 2] = value, True
            check_refusal(
                lambda bad=bad: ops.replace_patches(images, bad, c, where, 4, backend=backend),
                IndexError, "replace_patches", "ids", "K = 7", str(value),
            )  # fmt: skip
        bad[1, 2] = -(2**62)
        ops.replace_patches(images, bad, c, where, 4, backend=backend)


@every_path
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)])
def test_size_0(shape, path):
    images, ids, c, where = case(shape=shape)
    with running(path) as backend:
        assert ops.replace_patches(images, ids, c, where, 4, backend=backend).shape == shape


def test_thread_counts(threads):
    images, ids, c, where = case(shape=(20, 3, 32, 32))
    check_threads(
        threads, lambda: ops.replace_patches(images, ids, c, where, 4, mean=MEAN, std=STD)
    )


def test_inputs_that_require_grad():
    images, ids, c, where = case(torch.float32)
    out = ops.replace_patches(images.requires_grad_(), ids, c.requires_grad_(), where, 4)
    assert not out.requires_grad


def test_refusals():
    images, ids, c, where = case()
    call = ops.replace_patches
    for wrong, error, words in (
        (lambda: call(images[..., :7], ids, c, where, 4), ValueError, ("patch_size = 4", "W = 7")),
        (lambda: call(images.int(), ids, c, where, 4), TypeError, ("images", "int32")),
        (lambda: call(images, ids.float(), c, where, 4), TypeError, ("ids", "int64", "float32")),
        (lambda: call(images, ids[:, 1:], c, where, 4), ValueError, ("ids", "(3, 6)", "(3, 5)")),
        (lambda: call(images, ids, c, where[:2], 4), ValueError, ("where", "(3, 6)", "(2, 6)")),
        (lambda: call(images, ids[0], c, where, 4), ValueError, ("ids must be 2-dimensional",)),
        (lambda: call(images, ids, c[:, 1:], where, 4), ValueError, ("centroids", "= 48")),
        (lambda: call(images, ids, c[:0], where, 4), ValueError, ("centroids", "K >= 1")),
        (lambda: call(images, ids, c, where.tolist(), 4), TypeError, ("where", "list")),
        (lambda: call(images, ids, c, where, 4, std=[1, 2]), ValueError, ("std", "3 values")),
        (lambda: call(images, ids, c, where, 4, patch_order="?"), ValueError, ("patch_order",)),
        (lambda: call(images, ids, c, where.to("meta"), 4), ValueError, ("where must be on cpu",)),
    ):
        check_refusal(wrong, error, "replace_patches: ", *words)
    with pytest.raises(RuntimeError, match="cuda"):
        call(images, ids, c, where, 4, backend="cuda")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck(backend):
    overload = torch.ops.clustermim.replace_patches.default
    for dtype in (torch.uint8, torch.float16):
        images, ids, c, where = case(dtype)
        check_opcheck(overload, images, ids, c, where, 4, list(MEAN), list(STD), "hwc", backend)
    images = images.contiguous(memory_format=torch.channels_last)
    check_opcheck(overload, images, ids, c, where, 4, None, None, "chw", backend)


def test_compile_fullgraph():
    images, ids, c, where = case(torch.float32)

    def call(images, ids, c, where):
        return ops.replace_patches(images, ids, c, where != 0, 4, mean=MEAN, std=STD) * 2

    check_compile(call, images, ids, c, where)


def test_patch_size_of_numpy():
    images, centroids = torch.zeros(1, 1, 4, 4), torch.ones(1, 4)
    tokens = ops.patch_tokens(images, centroids, np.int64(2))
    where = torch.ones(1, 4, dtype=torch.bool)
    out = ops.replace_patches(images, tokens, centroids, where, np.int64(2))
    assert bool((out == 1).all())
