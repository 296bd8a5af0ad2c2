"""patch_tokens as it is called: memory formats, sizes, threads, refusals, the standard checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import (
    check_compile,
    check_opcheck,
    check_refusal,
    check_threads,
    every_path,
    run_python,
    running,
)
from tests.ops.patch_rows import MEAN, STD, photo


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
