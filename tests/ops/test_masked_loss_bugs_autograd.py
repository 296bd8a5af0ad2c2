"""Bugs that other packages shipped in losses like these, each as a test of ours: 16, 17,
19 to 21, 23, 24 and 27, of what autograd, autocast, compile and metrics do with a loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import ON_CUDA, assert_same, fewer
from tests.ops.linear_loss import MODES, gradients_made_in
from tests.ops.loss_bugs import problem
from tests.ops.loss_checks import BACKENDS, DTYPES, array, assert_within
from tests.ops.loss_truth import linear_truth

mce, mlce = ops.masked_cross_entropy, ops.masked_linear_cross_entropy
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
both_modes = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize("backend", BACKENDS)
@both_dtypes
@both_modes
def test_bug16_a_second_backward_is_rescaled(backend: str, dtype: torch.dtype, mode: str) -> None:
    x, w, b, t = problem(dtype=dtype)
    with gradients_made_in(mode):
        loss = mlce(x, w, t, linear_bias=b, backend=backend)
    grads = [
        torch.autograd.grad(loss, (x, w, b), torch.tensor(2.5), retain_graph=True) for _ in range(3)
    ]
    for again in grads[1:]:
        assert all(torch.equal(a, c) for a, c in zip(grads[0], again, strict=True))
    # What the first one gave is the caller's to change, and other factors do not add up.
    for factor in (1.0, 2.0, 1.0, 2.5):
        given = torch.autograd.grad(loss, (x, w, b), torch.tensor(factor), retain_graph=True)
        if factor == 2.5:
            assert_same(given, grads[0])
        for grad in given:
            grad.mul_(3.0)
    last = torch.autograd.grad(loss, (x, w, b), torch.tensor(2.5))
    assert_same(last, grads[0])
    z = torch.randn(40, 11, requires_grad=True)
    loss = mce(z, t, backend=backend)
    first = torch.autograd.grad(loss, z, torch.tensor(2.5), retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, z, torch.tensor(2.5))[0])


def _penalty_truth(x: Any, w: Any, b: Any, t: Any) -> tuple[list[Any], list[Any]]:
    """Gradients of |dX|^2 + |dW|^2 + |db|^2 by formula in float64, and what float32 may miss.

    Evaluated once more with absolute values, each factor of a term misses by at most a share of
    itself: three times the p - y of ``linear_truth``, and the sums' lengths.
    """
    rows, classes = len(x), len(w)
    d = linear_truth(x, w, b, t)
    onehot = np.eye(classes)[t]
    p = d.dz * rows + onehot

    def chain(x: Any, w: Any, dz: Any, sign: float) -> list[Any]:
        dx, dw, db = dz @ w, dz.T @ x, dz.sum(0)
        by_dz = 2 * (dx @ w.T + x @ dw.T + db)
        by_z = p * (by_dz - sign * (p * by_dz).sum(1, keepdims=True)) / rows
        return [by_z @ w + 2 * dz @ dw, by_z.T @ x + 2 * dz.T @ dx, by_z.sum(0)]

    magnitudes = chain(abs(x), abs(w), (p + onehot) / rows, -1.0)
    share = 3 * (d.dz_bound * rows / (p + onehot)).max()
    share += 2.0**-24 * 3 * (rows + classes + x.shape[1] + 8)
    return chain(x, w, d.dz, 1.0), [share * magnitude for magnitude in magnitudes]


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug17_double_backward_is_detached(backend: str) -> None:
    x, w, b, t = problem()
    loss = mlce(x, w, t, linear_bias=b, backend=backend)
    first = torch.autograd.grad(loss, (x, w, b), create_graph=True)
    assert all(g.requires_grad for g in first)
    found = torch.autograd.grad(sum((g * g).sum() for g in first), (x, w, b))
    wants, bounds = _penalty_truth(array(x), array(w), array(b), t.numpy())
    for name, got, want, bound in zip("xwb", found, wants, bounds, strict=True):
        assert_within(name, got, want, bound)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug19_autocast_mixes_dtypes(backend: str) -> None:
    for x_dtype in (torch.float32, torch.bfloat16):
        x, w, b, t = problem()
        x = x.detach().to(x_dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = mlce(x, w, t, linear_bias=b, label_smoothing=0.1, backend=backend)
        loss.backward()
        assert loss.dtype == torch.float32
        assert [v.grad.dtype for v in (x, w, b)] == [x_dtype, torch.float32, torch.float32]


class _Sharded(torch.Tensor):
    """What the check looks at in a DTensor, without a process group."""

    def full_tensor(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_bug20_shards_reach_the_kernel() -> None:
    x, w, b, t = problem()
    with pytest.raises(TypeError, match=r"linear_weight must be a plain tensor, got a DTensor"):
        mlce(x, w.detach().as_subclass(_Sharded), t)
    with pytest.raises(TypeError, match=r"input must be a plain tensor, got a DTensor"):
        mlce(x.detach().as_subclass(_Sharded), w, t, linear_bias=b)
    with pytest.raises(TypeError, match=r"logits must be a plain tensor, got a DTensor"):
        mce(torch.zeros(40, 3).as_subclass(_Sharded), t)


@pytest.mark.parametrize("backend", BACKENDS)
@both_dtypes
def test_bug21_nothing_masked_gives_nan_gradients_or_no_graph(
    backend: str, dtype: torch.dtype
) -> None:
    x, w, b, t = problem(dtype=dtype)
    loss = mlce(x, w, t, torch.zeros(40, dtype=torch.bool), linear_bias=b, backend=backend)
    assert loss.requires_grad
    loss.backward()
    assert torch.isnan(loss)
    assert all(v.grad is not None and not v.grad.any() for v in (x, w, b))


@both_dtypes
def test_bug23_sums_in_an_order_that_changes(dtype: torch.dtype) -> None:
    x, w, b, t = problem(
        rows=fewer(3000, 600), dim=40, classes=100 if ON_CUDA else 200, dtype=dtype
    )
    found = []
    for _ in range(fewer(10, 2)):
        loss = mlce(x, w, t, linear_bias=b, label_smoothing=0.1)
        found.append((loss.detach(), *torch.autograd.grad(loss, (x, w, b))))
    assert all(torch.equal(a, c) for f in found for a, c in zip(f, found[0], strict=True))


def test_bug24_target_out_of_range_under_compile() -> None:
    torch._dynamo.reset()
    x, w, _, t = problem()
    t[7] = 11
    compiled = torch.compile(lambda x, w, t: mlce(x, w, t), fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match=r"got 11 at position \(7,\)"):
        compiled(x, w, t)
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
@both_dtypes
def test_bug27_an_optional_output_changes_the_loss(backend: str, dtype: torch.dtype) -> None:
    x, w, b, t = problem(dtype=dtype)
    plain = mlce(x, w, t, linear_bias=b, backend=backend)
    loss, metrics = mlce(x, w, t, linear_bias=b, return_metrics=True, backend=backend)
    assert torch.equal(plain, loss)
    grads = (torch.autograd.grad(value, (x, w, b)) for value in (plain, loss))
    assert_same(*grads)
    assert int(metrics.histogram.sum()) == 40
    assert not metrics.histogram.requires_grad
    assert not metrics.accuracy.requires_grad


def test_bug27_ties_go_to_the_lowest_class_and_nan_to_none() -> None:
    w, x = torch.zeros(40, 8, dtype=DTYPES[0]), torch.zeros(4, 8, dtype=DTYPES[0])
    w[:, 0] = torch.tensor([1.0, 2.0, 2.0, 0.0] * 10)
    x[:, 0] = torch.tensor([1.0, 0.0, -1.0, torch.nan])
    for backend in BACKENDS:
        _, metrics = mlce(x, w, torch.tensor([1, 1, 3, 0]), return_metrics=True, backend=backend)
        want = torch.zeros(40, dtype=torch.int64)
        want[[1, 0, 3]] = 1
        assert torch.equal(metrics.histogram, want)
        assert metrics.accuracy.item() == 0.5


class _NoGradient(torch.autograd.Function):
    """Hands nothing back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:
        return None


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_of_the_loss_is_no_gradient(backend: str) -> None:
    """As torch's own, and no zeros are made for it."""
    x, w, b, t = problem(dtype=DTYPES[0])
    mine = mlce(x, w, t, linear_bias=b, backend=backend)
    torchs = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w, b), t)
    for loss in (mine, torchs):
        _NoGradient.apply(loss).backward()
        assert [v.grad for v in (x, w, b)] == [None, None, None]
