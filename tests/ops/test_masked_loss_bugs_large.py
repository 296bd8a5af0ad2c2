"""Bug 13 of those that other packages shipped in losses like these: offsets past 2^31."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from clustermim_fast.ops.masked_linear_cross_entropy import cpu
from tests.ops.harness import assert_same
from tests.ops.loss_bugs import problem, truth
from tests.ops.loss_checks import array, assert_within
from tests.ops.loss_truth import logits_truth

mce, mlce = ops.masked_cross_entropy, ops.masked_linear_cross_entropy
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.mark.slow
def test_bug13_offsets_past_two_to_the_31() -> None:
    rows, classes = 1_100_000, 2_000  # 2.2e9 logits; 4.4 GB, and as much again for their gradient
    z = torch.zeros(rows, classes, dtype=torch.bfloat16)
    last = torch.randn(classes).bfloat16()
    z[-1] = last
    z.requires_grad_()
    mask = torch.zeros(rows, dtype=torch.bool)
    mask[-1] = mask[5] = True
    loss = mce(z, torch.full((rows,), 3), mask, reduction="sum")
    loss.backward()
    want = logits_truth(array(z[[5, -1]]), np.array([3, 3]), reduction="sum")
    assert_within("loss", loss, want.loss, want.loss_bound)
    assert_within("dZ", z.grad[[5, -1]], want.dz, want.dz_bound)
    assert not z.grad[:5].any()
    assert not z.grad[6:-1].any()


@pytest.mark.slow
@both_dtypes
def test_bug13_more_logits_than_two_to_the_31_that_never_exist(dtype: torch.dtype) -> None:
    """2.2e9 of them, from two different rows: the truth of all is that of two."""
    rows, classes = 1_100_000, 2_000
    two, w, b, _ = problem(2, 8, classes, dtype)
    t = torch.tensor([3, 1999])
    which = torch.arange(rows) % 2
    x = two.detach()[which].requires_grad_()
    loss = mlce(x, w, t[which], linear_bias=b)
    loss.backward()
    # dW and db: the rows of a chunk (of tiles: 2,048) one after the other, then the chunks.
    terms = max(chunk + rows // chunk for chunk in (cpu.chunk_rows(classes, 8, 4), 2048))
    want = truth(two, w, b, t, terms=terms)
    assert_within("loss", loss, want.loss, want.loss_bound)
    assert_within("dX", x.grad[:2], want.dx * 2 / rows, want.dx_bound * 2 / rows)
    assert_within("dW", w.grad, want.dw, want.dw_bound)
    assert_within("db", b.grad, want.db, want.db_bound)
    assert torch.equal(x.grad[-2:], x.grad[:2])


def test_bug13_row_that_starts_past_two_to_the_31() -> None:
    memory = torch.empty(2**31 + 64, dtype=torch.bfloat16)  # never touched but for two rows
    z = memory.as_strided((2, 50), (2**31, 1))
    z[0], z[1] = 0.0, torch.arange(50.0)
    t = torch.tensor([3, 3])
    loss = mce(z, t, reduction="none")
    want = logits_truth(array(z), t.numpy(), reduction="none")
    assert_within("loss", loss, want.loss, want.loss_bound)
    for dtype in (torch.float32, torch.bfloat16):  # beside a bfloat16 weight: the path in tiles
        found = []
        for x in (z.detach(), z.contiguous()):
            x.requires_grad_()
            w = torch.eye(50, dtype=dtype, requires_grad=True)
            rows = mlce(x, w, t, reduction="none")
            found.append([rows.detach(), *torch.autograd.grad(rows.sum(), (x, w))])
        assert_same(*found)
        assert found[0][1][1].any()
