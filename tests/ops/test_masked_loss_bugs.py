"""Bugs that other packages shipped in losses like these, each as a test of ours: 1 to 15.

The numbers are those of the survey that collected them. 16 to 30 are in
test_masked_loss_bugs_autograd.py.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import ops
from clustermim_fast.ops.masked_linear_cross_entropy import cpu
from tests.ops import loss_truth
from tests.ops.harness import assert_same, running
from tests.ops.linear_loss import MODES, gradients_made_in
from tests.ops.loss_bugs import problem, relative_error, truth
from tests.ops.loss_checks import BACKENDS, UNIT, array, assert_within

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
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bug04_count_in_sixteen_bits(backend: str, dtype: torch.dtype) -> None:
    rows = 70_001  # float16 ends at 65,504 and bfloat16 has 8 bits
    t = torch.zeros(rows, dtype=torch.int64)
    logits = torch.zeros(rows, 2, dtype=dtype, requires_grad=True)
    loss = mce(logits, t, reduction="mean", backend=backend)
    assert loss.item() == pytest.approx(np.log(2), rel=1e-6)
    loss.backward(torch.tensor(float(rows)))
    want = torch.tensor([-0.5, 0.5], dtype=dtype)
    assert torch.equal(logits.grad, want.expand(rows, 2))
    x = torch.zeros(rows, 1, dtype=dtype)
    b = torch.zeros(2, requires_grad=True)
    loss = mlce(x, torch.zeros(2, 1, dtype=dtype), t, linear_bias=b, backend=backend)
    assert loss.item() == pytest.approx(np.log(2), rel=1e-6)
    loss.backward()
    torch.testing.assert_close(b.grad, want.float(), rtol=rows * 2.0**-24, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["generic", "avx512", "amx"])
def test_bug05_weight_gradient_summed_in_sixteen_bits(
    dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 rows a chunk, or 2,048 in tiles: the error must not grow with the number of chunks."""
    x, w, b, t = problem(rows=6400, dim=16, classes=20, dtype=dtype)
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 0)
    assert cpu.chunk_rows(20, 16, 4) == 64
    with running(path):
        want = truth(x, w, b, t)
        mlce(x, w, t, linear_bias=b, backend="cpu").backward()
    assert_within("dW", w.grad, want.dw, want.dw_bound)
    assert_within("db", b.grad, want.db, want.db_bound)
    assert relative_error(w.grad, want.dw) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug06_loss_summed_or_returned_in_sixteen_bits(backend: str) -> None:
    x, w, b, t = problem(rows=6400, dtype=torch.bfloat16)
    for reduction in ("mean", "sum"):
        loss = mlce(x, w, t, linear_bias=b, reduction=reduction, backend=backend)
        assert loss.dtype == torch.float32
        want = truth(x, w, b, t, backend, reduction=reduction)
        assert_within("loss", loss, want.loss, want.loss_bound)
        assert 8 * want.loss_bound < UNIT[torch.bfloat16] * abs(want.loss)  # such a sum shows


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug07_probability_rounded_before_the_one_hot_is_subtracted(backend: str) -> None:
    """A confident row: p = 1 - 1e-4 is 1 in bfloat16, and its gradient would vanish."""
    logits = torch.zeros(1, 5, dtype=torch.bfloat16)
    logits[0, 2] = 10.0
    logits.requires_grad_()
    mce(logits, torch.tensor([2]), backend=backend).backward()
    want = loss_truth.logits_truth(array(logits), np.array([2])).dz
    assert want[0, 2] != 0
    assert relative_error(logits.grad[0, 2], want[0, 2:3]) < 2**-8
    x = torch.tensor([[10.0]], dtype=torch.bfloat16)
    w = torch.zeros(5, 1, dtype=torch.bfloat16)
    w[2] = 1.0
    w.requires_grad_()
    mlce(x, w, torch.tensor([2]), backend=backend).backward()
    assert relative_error(w.grad[2], 10 * want[0, 2:3]) < 2**-7  # an operand rounded, and dW


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad_output", [3.7, -0.25, 1e-3])
def test_bug08_gradient_stored_in_sixteen_bits_and_then_rescaled(
    backend: str, mode: str, dtype: torch.dtype, grad_output: float
) -> None:
    """One rounding, whatever the factor: a bfloat16 dX made in the forward is only ever scaled by
    powers of two.
    """
    x, w, b, t = problem(dtype=dtype)
    with gradients_made_in(mode):
        loss = mlce(x, w, t, linear_bias=b, backend=backend)
    loss.backward(torch.tensor(grad_output))
    want = truth(x, w, b, t, backend, grad_output=float(np.float32(grad_output)))
    assert_within("dX", x.grad, want.dx, want.dx_bound)
    assert_within("dW", w.grad, want.dw, want.dw_bound)
    assert_within("db", b.grad, want.db, want.db_bound)


def _float16_errors(rows: int, dim: int) -> dict[str, float]:
    """Relative errors in float16 under a loss scale of 65536, after unscaling; K = 100."""
    x = torch.empty(rows, dim, dtype=torch.float16).normal_().requires_grad_()
    w = (torch.randn(100, dim) * 0.8 * dim**-0.5).half().requires_grad_()
    b = (torch.randn(100) * 0.1).half().requires_grad_()
    t = torch.randint(0, 100, (rows,))
    (mlce(x, w, t, linear_bias=b) * 65536.0).backward()
    weight, bias = array(w), array(b)
    dw, db = np.zeros_like(weight), np.zeros_like(bias)
    missed = size = 0.0
    for begin in range(0, rows, 16384):
        part = slice(begin, begin + 16384)
        inputs = array(x[part])
        z = inputs @ weight.T + bias
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True) * rows
        p[np.arange(len(p)), t[part].numpy()] -= 1 / rows
        dw += p.T @ inputs
        db += p.sum(0)
        want = p @ weight
        missed += float(((array(x.grad[part]) / 65536.0 - want) ** 2).sum())
        size += float((want**2).sum())
    return {
        "dX": (missed / size) ** 0.5,
        "dW": relative_error(w.grad.double() / 65536.0, dw),
        "db": relative_error(b.grad.double() / 65536.0, db),
    }


# float16's rounding moves each element by 2^-11 of itself at most; float32's sums before it are
# allowed a tenth of that in the norm.
ONE_ROUNDING = 1.1 * UNIT[torch.float16]


def test_bug09_float16_divided_by_the_count_before_the_loss_scale() -> None:
    errors = _float16_errors(60_000, 16)
    assert max(errors.values()) < ONE_ROUNDING, errors


@pytest.mark.slow
def test_bug09_float16_at_602112_rows() -> None:
    """A global batch of 4,096 images: the row count at which others measured 8 to 53 %."""
    errors = _float16_errors(602_112, 128)
    assert max(errors.values()) < ONE_ROUNDING, errors


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
    assert loss.item() == pytest.approx(np.log(classes), rel=1e-6, abs=1e-7)
    want = torch.full((classes,), 1 / classes / 4)
    want[0] -= 0.25
    close = {"rtol": UNIT[dtype] + 2e-6, "atol": 1e-7}
    torch.testing.assert_close(z.grad.float(), want.expand(4, classes), **close)
    x, w = torch.ones(4, 1, dtype=dtype), torch.zeros(classes, 1, dtype=dtype)
    b = torch.full((classes,), -50.0, requires_grad=True)
    loss = mlce(x, w, t, linear_bias=b)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(classes), rel=1e-6, abs=1e-7)
    torch.testing.assert_close(b.grad, 4 * want, rtol=1e-5, atol=1e-7)


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
    want = F.cross_entropy(last.float()[None], torch.tensor([3])) + np.log(classes)
    torch.testing.assert_close(loss.detach(), want)
    assert z.grad[-1].any()
    assert z.grad[5].any()
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
    want = truth(two, w, b, t)
    assert loss.item() == pytest.approx(float(want.loss), rel=1e-5)
    # Equal terms: each addition of a chunk's sum may round the same way.
    reordering = 2 * rows / cpu.chunk_rows(classes, 8, 4) * UNIT[torch.float32]
    for grad, of_two in ((x.grad[:2], want.dx * 2 / rows), (w.grad, want.dw), (b.grad, want.db)):
        assert relative_error(grad, of_two) < UNIT[dtype] + reordering
    assert torch.equal(x.grad[-2:], x.grad[:2])


def test_bug13_row_that_starts_past_two_to_the_31() -> None:
    memory = torch.empty(2**31 + 64, dtype=torch.bfloat16)  # never touched but for two rows
    z = memory.as_strided((2, 50), (2**31, 1))
    z[0], z[1] = 0.0, torch.arange(50.0)
    t = torch.tensor([3, 3])
    loss = mce(z, t, reduction="none")
    torch.testing.assert_close(loss, F.cross_entropy(z.float(), t, reduction="none"))
    for dtype in (torch.float32, torch.bfloat16):  # beside a bfloat16 weight: the path in tiles
        found = []
        for x in (z.detach(), z.contiguous()):
            x.requires_grad_()
            w = torch.eye(50, dtype=dtype, requires_grad=True)
            rows = mlce(x, w, t, reduction="none")
            found.append([rows.detach(), *torch.autograd.grad(rows.sum(), (x, w))])
        assert_same(*found)
        assert found[0][1][1].any()


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
