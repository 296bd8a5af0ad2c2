"""The linear loss on more tokens than its programs take at a time, in both 16-bit dtypes."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops import _triton

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)

if _triton.interpreted():
    from tests.gpu import strict


def gradients(x, w, target, mask, backend):
    x, w = x.requires_grad_(), w.requires_grad_()
    loss = ops.masked_linear_cross_entropy(x, w, target, mask, backend=backend)
    return torch.autograd.grad(loss, [x, w])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_many_tokens(dtype):
    """dZ and dX are rounded to 16 bits, each by 2^-9 of it at most: 2^-7 holds in the 2-norm."""
    x, w = torch.randn(1, 700, 16).to(dtype), torch.randn(5, 16).to(dtype)
    target, mask = torch.randint(0, 5, (1, 700)), torch.rand(1, 700) < 0.8
    with strict.checked():
        got = gradients(x, w, target, mask, "triton")
    right = gradients(x.detach().double(), w.detach().double(), target, mask, "reference")
    for ours, truth in zip(got, right, strict=True):
        assert (ours.double() - truth).norm() < 2.0**-7 * truth.norm()
