"""Every way in which CUDA C++ reads rows, emulated on the CPU behind the ops (emulated.py).

All the ops' own tests run so in `make check-cuda`.
"""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from tests.gpu import emulated
from tests.ops.harness import running
from tests.ops.truth import nearest_ids


@pytest.fixture
def kinds(monkeypatch):
    """The kinds of launches that a test makes, in turn."""
    seen = []
    launch = emulated.launch

    def note(kind, *arguments):
        seen.append(kind)
        launch(kind, *arguments)

    monkeypatch.setattr(emulated, "launch", note)
    return seen


def _misaligned(dtype):
    return torch.randn(140, 49).to(dtype)[:, 1:]


@pytest.mark.parametrize(
    "rows, K, metric, source, cluster",
    [
        (lambda: torch.randn(300, 48), 100, "euclidean", "Float32,true,true", 2),
        (lambda: torch.randn(100, 40).half(), 20, "cosine", "Float16,true,false", 1),
        (lambda: torch.randn(130, 72).bfloat16(), 150, "euclidean", "Bfloat16,true,true", 2),
        (lambda: torch.randn(9, 300).T, 130, "euclidean", "Float32,false,true", 2),
        (lambda: _misaligned(torch.float16), 30, "dot", "Float16,false,false", 2),
        (lambda: torch.randn(20, 3).bfloat16(), 300, "euclidean", "Bfloat16,false,true", 1),
    ],
    ids=["aligned", "half", "deep", "columns apart", "misaligned", "narrow"],
)
def test_rows(kinds, rows, K, metric, source, cluster):
    x = rows()
    c = torch.randn(K, x.shape[1])
    with running("cuda") as backend:
        ids = ops.nearest_centroid(x, c, metric=metric, backend=backend)
    assert (ids.numpy() == nearest_ids(x, c, metric)).all()
    assert [(k.source, k.cluster, k.one_tile) for k in kinds] == [
        (f"MatrixRows<{source}>", cluster, K <= 128)
    ]


def _cropped(images):
    return images[:, :, 1:, 3:-2]


@pytest.mark.parametrize(
    "size, patch, change, K, source",
    [
        (32, 8, lambda images: images, 40, "ImageRows<false,true,8,3,4,16>"),
        (32, 8, "channels_last", 140, "ImageRows<true,true,8,3,4,16>"),
        (25, 4, _cropped, 40, "ImageRows<false,false,4,3,5,30>"),
        (24, 3, "channels_last", 20, "ImageRows<true,false,3,3,8,64>"),
    ],
    ids=["planes", "side by side", "cropped", "small patches"],
)
def test_images(kinds, size, patch, change, K, source):
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    if change == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        images = change(images)
    c = torch.randn(K, 3 * patch**2)
    arguments = dict(patch_size=patch, mean=(0.5, 0.4, 0.45), std=(0.2, 0.25, 0.22))
    with running("cuda") as backend:
        ids = ops.patch_tokens(images, c, backend=backend, **arguments)
    assert torch.equal(ids, ops.patch_tokens(images, c, backend="reference", **arguments))
    assert [k.source for k in kinds] == [source]


def test_what_cuda_does_not_take_is_left_to_triton_by_name():
    c = torch.zeros(3, 4, dtype=torch.float64)
    with emulated.running(), pytest.raises(ValueError, match=r'for backend "cuda".*"triton"'):
        ops.nearest_centroid(c, c, backend="cuda")
