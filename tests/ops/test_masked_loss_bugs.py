"""Bugs that other packages shipped in losses like these, each as a test of ours.

The numbers are those of the survey that collected them. Here are those by which a loss or gradient
is simply another one; test_masked_loss_bugs_precision.py has 4 to 9 and 22, _large.py 13,
_autograd.py 16, 17, 19 to 21, 23, 24 and 27, _work.py 18, 28 and 30.

25, a launch whose size follows the next power of two above K, is the GPU kernels':
tests/gpu/test_masked_losses_launch.py.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops import loss_truth
from tests.ops.linear_loss import MODES, gradients_made_in
from tests.ops.loss_bugs import problem, truth
from tests.ops.loss_checks import BACKENDS, array, assert_within

mce, mlce = ops.masked_cross_entropy, ops.masked_linear_cross_entropy
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.mark.parametrize("backend", BACKENDS)
@both_dtypes
def test_bug01_scalar_load_of_grad_output(backend: str, dtype: torch.dtype) -> None:
    x, w, b, t = problem(dtype=dtype)
    grad = torch.randn(40)
    mlce(x, w, t, linear_bias=b, reduction="none", backend=backend).backward(grad)
    want = truth(x, w, b, t, backend, reduction="none", grad_output=grad.numpy())
    assert_within("dX", x.grad, want.dx, want.dx_bound)
    assert_within("dW", w.grad, want.dw, want.dw_bound)
    z = torch.randn(40, 11).to(dtype).requires_grad_()
    mce(z, t, reduction="none", backend=backend).backward(grad)
    rows = loss_truth.logits_truth(array(z), t.numpy(), reduction="none", grad_output=grad.numpy())
    assert_within("dZ", z.grad, rows.dz, rows.dz_bound)


@both_dtypes
def test_bug02_output_compared_with_itself(dtype: torch.dtype) -> None:
    """The reference shares no code with the ops, and a wrong value or gradient is seen."""
    source = inspect.getsource(loss_truth)
    assert "import torch" not in source
    assert "clustermim_fast" not in source
    x, w, b, t = problem(dtype=dtype)
    loss = mlce(x, w, t, linear_bias=b)
    loss.backward()
    want = truth(x, w, b, t)
    for got, value, bound in (
        (loss.detach(), want.loss, want.loss_bound),
        (x.grad, want.dx, want.dx_bound),
        (w.grad, want.dw, want.dw_bound),
        (b.grad, want.db, want.db_bound),
    ):
        assert_within("as it is", got, value, bound)
        # Off by a twentieth: the largest element of each is far outside of what rounding explains.
        with pytest.raises(AssertionError, match="over by"):
            assert_within("wrong", got * 1.05, value, bound)


@pytest.mark.parametrize("backend", BACKENDS)
@both_dtypes
def test_bug03_mean_over_all_rows_instead_of_counted_ones(backend: str, dtype: torch.dtype) -> None:
    """Five of forty count: the loss and all gradients are those of these five alone."""
    x, w, b, t = problem(dtype=dtype)
    mask = torch.arange(40) < 10
    t[:5] = -100
    loss = mlce(x, w, t, mask, linear_bias=b, backend=backend)
    loss.backward()
    five = truth(x[5:10], w, b, t[5:10], backend)
    assert_within("loss", loss, five.loss, five.loss_bound)
    assert_within("dX", x.grad[5:10], five.dx, five.dx_bound)
    assert_within("dW", w.grad, five.dw, five.dw_bound)
    assert_within("db", b.grad, five.db, five.db_bound)


@pytest.mark.parametrize("backend", BACKENDS)
@both_dtypes
def test_bug10_outputs_that_are_not_written(backend: str, dtype: torch.dtype) -> None:
    """With every new tensor filled with NaN, nothing of it comes out."""
    x, w, b, t = problem(dtype=dtype)
    t[::3] = -100
    mask = torch.arange(40) % 2 == 0
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        for reduction in ("mean", "none"):
            x3 = x.detach().reshape(2, 20, 8).requires_grad_()
            loss = mlce(
                x3, w, t.reshape(2, 20)[:, 2:], mask.reshape(2, 20)[:, 2:], linear_bias=b,
                num_prefix_tokens=2, label_smoothing=0.1, reduction=reduction, backend=backend,
            )  # fmt: skip
            loss.sum().backward()
            z = torch.randn(40, 11).to(dtype).requires_grad_()
            rows = mce(z, t, mask, reduction=reduction, backend=backend)
            rows.sum().backward()
            for value in (loss, rows, x3.grad, w.grad, b.grad, z.grad):
                assert torch.isfinite(value).all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("classes", [1, 3, 15, 16, 17, 31, 33, 100])
@both_dtypes
def test_bug11_padded_columns_count_in_the_sum(classes: int, dtype: torch.dtype) -> None:
    """Logits far below zero: a padding of 0 would own the softmax."""
    z = torch.full((4, classes), -50.0, dtype=dtype, requires_grad=True)
    t = torch.zeros(4, dtype=torch.int64)
    loss = mce(z, t)
    loss.backward()
    rows = loss_truth.logits_truth(array(z), t.numpy())
    assert_within("loss", loss, rows.loss, rows.loss_bound)
    assert_within("dZ", z.grad, rows.dz, rows.dz_bound)
    x, w = torch.ones(4, 8, dtype=dtype), torch.zeros(classes, 8, dtype=dtype)
    b = torch.full((classes,), -50.0, requires_grad=True)
    loss = mlce(x, w, t, linear_bias=b)
    loss.backward()
    want = truth(x, w, b, t)
    assert_within("loss", loss, want.loss, want.loss_bound)
    assert_within("db", b.grad, want.db, want.db_bound)


@pytest.mark.parametrize("backend", BACKENDS)
@both_dtypes
def test_bug12_columns_of_minus_infinity(backend: str, dtype: torch.dtype) -> None:
    x, w, b, t = problem(classes=70, dtype=dtype)
    with torch.no_grad():
        b[:40] = -torch.inf
    t = t % 30 + 40
    loss = mlce(x, w, t, linear_bias=b, backend=backend)
    loss.backward()
    want = truth(x, w, b, t, backend)
    assert_within("loss", loss, want.loss, want.loss_bound)
    assert_within("dX", x.grad, want.dx, want.dx_bound)
    assert not w.grad[:40].any()
    assert not b.grad[:40].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug14_sliced_targets(backend: str) -> None:
    z, x, w = torch.randn(4, 10, 7), torch.randn(4, 10, 5), torch.randn(7, 5)
    targets = torch.randint(0, 7, (4, 23))
    for sliced in (targets[:, 1:11], targets[:, 1:21:2], targets.int()[:, 3:13]):
        whole = sliced.clone().contiguous().long()
        assert torch.equal(mce(z, sliced, backend=backend), mce(z, whole, backend=backend))
        assert torch.equal(mlce(x, w, sliced, backend=backend), mlce(x, w, whole, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@both_dtypes
def test_bug15_the_callers_tensors_are_never_written(
    backend: str, mode: str, dtype: torch.dtype
) -> None:
    x, w, b, t = problem(dtype=dtype)
    z = torch.randn(40, 11).to(dtype).requires_grad_()
    mask, weight = torch.rand(40) < 0.5, torch.rand(40)
    given = (x, w, b, t, z, mask, weight)
    before = [v.detach().clone() for v in given]
    with gradients_made_in(mode):
        loss = mlce(
            x, w, t, mask, linear_bias=b, token_weight=weight, label_smoothing=0.1, backend=backend
        )
    loss.backward()
    mce(z, t, mask, token_weight=weight, label_smoothing=0.1, backend=backend).backward()
    assert all(torch.equal(a, v) for a, v in zip(before, given, strict=True))
    assert all(v._version == 0 for v in given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug26_another_formula_for_label_smoothing(backend: str) -> None:
    """The target of class k is (1 - alpha) [k = y] + alpha / K."""
    z, t = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([1])
    log_p = np.log(np.exp([2.0, 0.0, -1.0]) / np.exp([2.0, 0.0, -1.0]).sum())
    want = np.asarray(-(0.7 + 0.1) * log_p[1] - 0.1 * log_p[0] - 0.1 * log_p[2])
    got = mce(z, t, label_smoothing=0.3, backend=backend)
    bound = loss_truth.logits_truth(array(z), t.numpy(), label_smoothing=0.3).loss_bound
    assert_within("loss", got, want, bound)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@both_dtypes
def test_bug29_bias_without_a_test(
    backend: str, label_smoothing: float, dtype: torch.dtype
) -> None:
    """(Every flag with every other: test_every_pair_of_flags of both losses.)"""
    x, w, b, t = problem(dtype=dtype)
    with torch.no_grad():
        b += 5 * torch.randn(11)
    loss = mlce(x, w, t, linear_bias=b, label_smoothing=label_smoothing, backend=backend)
    loss.backward()
    want = truth(x, w, b, t, backend, label_smoothing=label_smoothing)
    assert_within("loss", loss, want.loss, want.loss_bound)
    assert_within("dX", x.grad, want.dx, want.dx_bound)
    assert_within("db", b.grad, want.db, want.db_bound)
    assert loss.item() >= 0
