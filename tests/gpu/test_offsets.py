"""What the ops' own tests cannot give kernels: offsets beyond 32 bits, ids that are refused."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _triton

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)

if _triton.interpreted():
    from clustermim_fast.ops.replace_patches import triton_kernel
    from tests.gpu import strict

FAR = 2**30  # elements; a third one begins where 32 bits end


def far_apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same with its first dimension's items 2^30 elements apart; the gaps take no memory."""
    last = (len(tensor) - 1) * FAR
    storage = torch.empty(last + tensor[0].numel(), dtype=tensor.dtype)
    out = storage.as_strided(tensor.shape, (FAR, *tensor[0].contiguous().stride()))
    return out.copy_(tensor)


def test_replace_patches():
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    ids, c = torch.randint(0, 5, (3, 4)), torch.rand(5, 4)
    where = torch.rand(3, 4) < 0.5
    expected = ops.replace_patches(images, ids, c, where, 2)
    with strict.checked(races=False):  # their record has a place for each byte of the gaps
        got = ops.replace_patches(far_apart(images), ids, c, where, 2, backend="triton")
    assert torch.equal(got, expected)


def test_ids_beyond_the_last_centroid():
    """On a GPU nothing checks them beforehand; such a patch is left alone."""
    images = torch.randint(0, 256, (1, 1, 4, 4), dtype=torch.uint8)
    pixels = torch.randint(0, 256, (5, 2, 2, 1), dtype=torch.uint8)
    ids = torch.tensor([[4, 5, 2**40, -1]])
    with strict.checked():
        out = triton_kernel.replace_patches(images, ids, pixels, torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(out[0, 0, :2, :2], pixels[4, :, :, 0])
    assert torch.equal(out[0, 0, :, 2:], images[0, 0, :, 2:])
    assert torch.equal(out[0, 0, 2:], images[0, 0, 2:])


def test_nearest_centroid():
    x, c = torch.randn(3, 16).half(), torch.randn(5, 16).half()
    with strict.checked(races=False):
        ids = ops.nearest_centroid(far_apart(x), c, backend="triton")
    assert torch.equal(ids, ops.nearest_centroid(x, c))


def test_nearest_centroid_of_strided_columns():
    x, c = torch.randn(20, 2 * 24), torch.randn(24, 2 * 7)
    x, c = x[:, ::2], c[:, ::2].T
    with strict.checked():
        ids = ops.nearest_centroid(x, c, backend="triton")
    assert torch.equal(ids, ops.nearest_centroid(x.contiguous(), c.contiguous()))


def test_masked_cross_entropy():
    z, target = torch.randn(3, 4, 5).half(), torch.randint(0, 5, (3, 4))
    mask = torch.rand(3, 4) < 0.7
    expected = ops.masked_cross_entropy(z, target, mask, reduction="none")
    with strict.checked(races=False):
        loss = ops.masked_cross_entropy(far_apart(z), target, mask, reduction="none",
                                        backend="triton")  # fmt: skip
    assert torch.allclose(loss, expected, atol=1e-5)  # rows of the same samples


@pytest.mark.parametrize("classes", [3, 256, 384])
def test_masked_linear_cross_entropy_of_a_weight_of_far_rows(classes):
    """A view whose last rows begin beyond 2^31 elements."""
    x, target = torch.randn(2, 4, 16).half(), torch.randint(0, classes, (2, 4))
    weight = torch.randn(classes, 16).half()
    apart = (2**31 // (classes - 1) // 16 + 1) * 16
    storage = torch.empty(classes * apart, dtype=weight.dtype)
    far = storage.as_strided(weight.shape, (apart, 1)).copy_(weight)
    expected = ops.masked_linear_cross_entropy(x, weight, target, backend="triton")
    with strict.checked(races=False):
        loss = ops.masked_linear_cross_entropy(x, far, target, backend="triton")
    assert torch.equal(loss, expected)


def test_masked_linear_cross_entropy_of_a_weight_too_large():
    weight = torch.empty(1, 1).expand(2**15 + 1, 2**15)
    x, target = torch.zeros(1, 1, 2**15), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="linear_weight: expected at most"):
        ops.masked_linear_cross_entropy(x, weight, target, backend="triton")


@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 48)], ids=["samples", "rows"])
def test_masked_cross_entropy_of_strides_that_fit_32_bits_only_divided(shape):
    """2^31 elements, of which the kernels are handed the 16th part."""
    z, target = torch.randn(shape).half(), torch.randint(0, 16, shape[:-1])
    memory = torch.empty(2 * FAR + z[0].numel(), dtype=z.dtype)
    far = memory.as_strided(shape, (2 * FAR, *z[0].stride())).copy_(z)
    found = []
    for logits in (z, far):
        leaf = logits.detach().requires_grad_()
        with strict.checked(races=False):
            loss = ops.masked_cross_entropy(leaf, target, reduction="none", backend="triton")
            loss.sum().backward()
        found.append((loss.detach(), leaf.grad))
    assert torch.equal(found[1][0], found[0][0])
    assert torch.equal(found[1][1], found[0][1])
