"""Bugs that other packages shipped in losses like these, each as a test of ours.

The numbers are those of the survey that collected them. Number 25 (launch shapes tied to the number
of classes) is about GPU kernels only.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import nn as cnn
from clustermim_fast import ops
from clustermim_fast.ops.masked_cross_entropy import rows as row_lists
from clustermim_fast.ops.masked_linear_cross_entropy import cpu
from tests.ops import loss_truth
from tests.ops.loss_checks import BACKENDS, array, assert_within, tokens_mask

mce, mlce = ops.masked_cross_entropy, ops.masked_linear_cross_entropy


def problem(
    rows: int = 40, dim: int = 8, classes: int = 11, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, ...]:
    x = torch.randn(rows, dim).to(dtype).requires_grad_()
    w = torch.randn(classes, dim).to(dtype).requires_grad_()
    b = torch.randn(classes).to(dtype).requires_grad_()
    return x, w, b, torch.randint(0, classes, (rows,))


def truth(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, t: torch.Tensor, **options: Any
) -> loss_truth.Truth:
    bias = None if b is None else array(b)
    return loss_truth.linear_truth(array(x), array(w), bias, t.numpy(), **options)


def relative_error(got: torch.Tensor, want: np.ndarray) -> float:
    return float(np.linalg.norm(array(got) - want) / np.linalg.norm(want))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug01_scalar_load_of_grad_output(backend: str) -> None:
    x, w, b, t = problem()
    grad = torch.randn(40)
    mlce(x, w, t, linear_bias=b, reduction="none", backend=backend).backward(grad)
    want = truth(x, w, b, t, reduction="none", grad_output=grad.numpy())
    assert_within("dX", x.grad, want.dx, want.dx_bound)
    assert_within("dW", w.grad, want.dw, want.dw_bound)


def test_bug02_output_compared_with_itself() -> None:
    source = inspect.getsource(loss_truth)
    assert "import torch" not in source
    assert "clustermim_fast" not in source


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug03_mean_over_all_rows_instead_of_counted_ones(backend: str) -> None:
    x, w, b, t = problem()
    mask = torch.arange(40) < 10
    t[:5] = -100
    got = mlce(x, w, t, mask, linear_bias=b, backend=backend)
    rows = mlce(x, w, t, mask, linear_bias=b, reduction="none", backend=backend)
    torch.testing.assert_close(got, rows.sum() / 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug04_count_in_sixteen_bits(backend: str) -> None:
    rows = 70_001  # float16 ends at 65,504 and bfloat16 has 8 bits
    for dtype in (torch.float16, torch.bfloat16):
        logits = torch.zeros(rows, 2, dtype=dtype, requires_grad=True)
        loss = mce(logits, torch.zeros(rows, dtype=torch.int64), reduction="mean", backend=backend)
        assert loss.item() == pytest.approx(np.log(2), rel=1e-6)
        loss.backward(torch.tensor(float(rows)))
        assert torch.equal(logits.grad, torch.tensor([-0.5, 0.5], dtype=dtype).expand(rows, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bug05_weight_gradient_summed_in_sixteen_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 rows a chunk: the error must not grow with the number of chunks."""
    x, w, b, t = problem(rows=6400, dim=16, classes=20, dtype=dtype)
    want = truth(x, w, b, t)
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 0)
    assert cpu.chunk_rows(20, 16, 4) == 64
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
        want = truth(x, w, b, t, reduction=reduction)
        assert abs(loss.item() - float(want.loss)) < 1e-6 * abs(float(want.loss))


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug08_gradient_stored_in_sixteen_bits_and_then_rescaled(backend: str) -> None:
    x, w, b, t = problem(dtype=torch.bfloat16)
    mlce(x, w, t, linear_bias=b, backend=backend).backward(torch.tensor(3.7))
    want = truth(x, w, b, t, grad_output=3.7)
    assert_within("dX", x.grad, want.dx, want.dx_bound)  # one rounding, not two


def _float16_error(rows: int) -> float:
    """Relative error of dX in float16 under a loss scale of 65536, after unscaling."""
    x = torch.randn(rows, 16).half().requires_grad_()
    w = (torch.randn(100, 16) * 0.2).half()
    t = torch.randint(0, 100, (rows,))
    (mlce(x, w, t) * 65536.0).backward()
    sample = torch.arange(0, rows, max(1, rows // 2000))
    z = array(x)[sample] @ array(w).T
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(sample)), t[sample].numpy()] -= 1
    want = p @ array(w) / rows
    return float(np.linalg.norm(array(x.grad)[sample] / 65536.0 - want) / np.linalg.norm(want))


def test_bug09_float16_divided_by_the_count_before_the_loss_scale() -> None:
    assert _float16_error(60_000) < 1e-3


@pytest.mark.slow
def test_bug09_float16_at_602112_rows() -> None:
    assert _float16_error(602_112) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug10_outputs_that_are_not_written(backend: str) -> None:
    """With every new tensor filled with NaN, nothing of it comes out."""
    x, w, b, t = problem()
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
            z = torch.randn(40, 11, requires_grad=True)
            rows = mce(z, t, mask, reduction=reduction, backend=backend)
            rows.sum().backward()
            for value in (loss, rows, x3.grad, w.grad, b.grad, z.grad):
                assert torch.isfinite(value).all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("classes", [1, 3, 15, 16, 17, 31, 33, 100])
def test_bug11_padded_columns_count_in_the_sum(classes: int) -> None:
    """Logits far below zero: a padding of 0 would own the softmax."""
    z = torch.full((4, classes), -50.0, requires_grad=True)
    loss = mce(z, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(classes), rel=1e-6, abs=1e-7)
    want = torch.full((classes,), 1 / classes / 4)
    want[0] -= 0.25
    torch.testing.assert_close(z.grad, want.expand(4, classes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug12_columns_of_minus_infinity(backend: str) -> None:
    x, w, b, t = problem(classes=70)
    with torch.no_grad():
        b[:40] = -torch.inf
    t = t % 30 + 40
    loss = mlce(x, w, t, linear_bias=b, backend=backend)
    loss.backward()
    want = truth(x, w, b, t)
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


def test_bug13_row_that_starts_past_two_to_the_31() -> None:
    memory = torch.empty(2**31 + 64, dtype=torch.bfloat16)  # never touched but for two rows
    z = memory.as_strided((2, 50), (2**31, 1))
    z[0], z[1] = 0.0, torch.arange(50.0)
    loss = mce(z, torch.tensor([3, 3]), reduction="none")
    torch.testing.assert_close(
        loss, F.cross_entropy(z.float(), torch.tensor([3, 3]), reduction="none")
    )
    x = memory.as_strided((2, 50), (2**31, 1)).requires_grad_()
    w = torch.eye(50)
    mlce(x, w, torch.tensor([3, 3]), reduction="none").sum().backward()
    assert x.grad[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug14_sliced_targets(backend: str) -> None:
    z = torch.randn(4, 10, 7)
    targets = torch.randint(0, 7, (4, 23))
    for sliced in (targets[:, 1:11], targets[:, 1:21:2], targets.int()[:, 3:13]):
        want = mce(z, sliced.clone().contiguous().long(), backend=backend)
        assert torch.equal(mce(z, sliced, backend=backend), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug15_the_callers_tensors_are_never_written(backend: str) -> None:
    x, w, b, t = problem()
    z = torch.randn(40, 11, requires_grad=True)
    mask, weight = torch.rand(40) < 0.5, torch.rand(40)
    given = (x, w, b, t, z, mask, weight)
    before = [v.detach().clone() for v in given]
    mlce(
        x, w, t, mask, linear_bias=b, token_weight=weight, label_smoothing=0.1, backend=backend
    ).backward()
    mce(z, t, mask, token_weight=weight, label_smoothing=0.1, backend=backend).backward()
    assert all(torch.equal(a, v) for a, v in zip(before, given, strict=True))
    assert all(v._version == 0 for v in given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug16_a_second_backward_is_rescaled(backend: str) -> None:
    x, w, b, t = problem()
    loss = mlce(x, w, t, linear_bias=b, backend=backend)
    grads = [
        torch.autograd.grad(loss, (x, w, b), torch.tensor(2.5), retain_graph=True) for _ in range(3)
    ]
    for again in grads[1:]:
        assert all(torch.equal(a, c) for a, c in zip(grads[0], again, strict=True))
    z = torch.randn(40, 11, requires_grad=True)
    loss = mce(z, t, backend=backend)
    first = torch.autograd.grad(loss, z, torch.tensor(2.5), retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, z, torch.tensor(2.5))[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug17_double_backward_is_detached(backend: str) -> None:
    x, w, b, t = problem()
    grads = []
    for function in (
        lambda: mlce(x, w, t, linear_bias=b, backend=backend),
        lambda: F.cross_entropy(F.linear(x, w, b), t),
    ):
        first = torch.autograd.grad(function(), (x, w, b), create_graph=True)
        assert all(g.requires_grad for g in first)
        penalty = sum((g * g).sum() for g in first)
        grads.append(torch.autograd.grad(penalty, (x, w, b)))
    for ours, torchs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-6)


def test_bug18_host_syncs() -> None:
    """The algebra on fake CUDA tensors, which raise when their values are asked for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from clustermim_fast.ops.masked_linear_cross_entropy import reference

    try:
        with FakeTensorMode():
            torch.empty(1, device="cuda")[torch.empty(1, device="cuda").long()]
    except RuntimeError as error:  # torch 2.4 wants a real device for that
        pytest.skip(f"this torch has no fake CUDA tensors without a GPU ({str(error)[:40]})")
    with FakeTensorMode(allow_non_fake_inputs=False):
        x = torch.empty(2, 11, 8, device="cuda")
        w, b = torch.empty(5, 8, device="cuda"), torch.empty(5, device="cuda")
        t = torch.empty(2, 10, dtype=torch.int64, device="cuda")
        m, tw = (
            torch.empty(2, 10, dtype=torch.bool, device="cuda"),
            torch.empty(2, 10, device="cuda"),
        )
        for reduction in ("mean", "sum", "none"):
            loss, rows, count, _, divisor, _, histogram = reference.forward(
                x, w, b, t, m, tw, reduction, -100, 0.1, 1, 5, True
            )
            assert histogram.shape == (5,)
            grads = reference.backward(
                torch.empty_like(loss), x, w, b, t, tw, rows, count, divisor, reduction, -100, 0.1,
                1, True, True, True,
            )  # fmt: skip
            assert [g.shape for g in grads] == [x.shape, w.shape, b.shape]


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
def test_bug21_nothing_masked_gives_nan_gradients_or_no_graph(backend: str) -> None:
    x, w, b, t = problem()
    loss = mlce(x, w, t, torch.zeros(40, dtype=torch.bool), linear_bias=b, backend=backend)
    assert loss.requires_grad
    loss.backward()
    assert torch.isnan(loss)
    assert all(v.grad is not None and not v.grad.any() for v in (x, w, b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug22_small_gradients_are_filtered(backend: str) -> None:
    """A uniform softmax over 8192 classes: every probability is below 2^-12."""
    x = torch.randn(64, 4).bfloat16()
    w = torch.zeros(8192, 4, dtype=torch.bfloat16, requires_grad=True)
    t = torch.randint(0, 100, (64,))
    mlce(x, w, t, backend=backend).backward()
    want = truth(x, w, None, t)
    assert_within("dW", w.grad, want.dw, want.dw_bound)
    assert (w.grad[100:] != 0).all()


def test_bug23_sums_in_an_order_that_changes() -> None:
    x, w, b, t = problem(rows=3000, dim=40, classes=200)
    found = []
    for _ in range(10):
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
def test_bug26_another_formula_for_label_smoothing(backend: str) -> None:
    """The target of class k is (1 - alpha) [k = y] + alpha / K."""
    z = torch.tensor([[2.0, 0.0, -1.0]])
    log_p = np.log(np.exp([2.0, 0.0, -1.0]) / np.exp([2.0, 0.0, -1.0]).sum())
    want = -(0.7 + 0.1) * log_p[1] - 0.1 * log_p[0] - 0.1 * log_p[2]
    got = mce(z, torch.tensor([1]), label_smoothing=0.3, backend=backend)
    assert got.item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bug27_an_optional_output_changes_the_loss(backend: str) -> None:
    x, w, b, t = problem()
    plain = mlce(x, w, t, linear_bias=b, backend=backend)
    loss, metrics = mlce(x, w, t, linear_bias=b, return_metrics=True, backend=backend)
    assert torch.equal(plain, loss)
    assert int(metrics.histogram.sum()) == 40
    assert not metrics.histogram.requires_grad
    assert not metrics.accuracy.requires_grad


def test_bug27_ties_go_to_the_lowest_class_and_nan_to_none() -> None:
    w = torch.tensor([[1.0], [2.0], [2.0], [0.0]] * 10)
    x = torch.tensor([[1.0], [0.0], [-1.0], [torch.nan]])
    for backend in BACKENDS:
        _, metrics = mlce(x, w, torch.tensor([1, 1, 3, 0]), return_metrics=True, backend=backend)
        want = torch.zeros(40, dtype=torch.int64)
        want[[1, 0, 3]] = 1
        assert torch.equal(metrics.histogram, want)
        assert metrics.accuracy.item() == 0.5


def test_bug28_class_dimension_in_the_middle() -> None:
    """[B, L, K] as it is, and a [B, K, L] tensor seen that way, give the same."""
    z = torch.randn(2, 9, 5)
    t = torch.randint(0, 5, (2, 9))
    middle = z.transpose(1, 2).contiguous()
    assert torch.equal(mce(z, t), mce(middle.transpose(1, 2), t))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_bug29_bias_without_a_test(backend: str, label_smoothing: float) -> None:
    x, w, b, t = problem()
    with torch.no_grad():
        b += 5 * torch.randn(11)
    loss = mlce(x, w, t, linear_bias=b, label_smoothing=label_smoothing, backend=backend)
    loss.backward()
    want = truth(x, w, b, t, label_smoothing=label_smoothing)
    assert_within("loss", loss, want.loss, want.loss_bound)
    assert_within("db", b.grad, want.db, want.db_bound)
    assert loss.item() >= 0


def _matrix_products(frozen: str) -> int:
    """Matrix products of one backward with ``frozen`` parts of x, w, b."""
    x, w, b, t = problem()
    for name, tensor in zip("xwb", (x, w, b), strict=True):
        tensor.requires_grad_(name not in frozen)
    loss = mlce(x, w, t, linear_bias=b, backend="cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    names = ("aten::mm", "aten::addmm_")
    return sum(e.count for e in profile.key_averages() if e.key in names)


def test_bug30_gradients_that_nobody_asked_for() -> None:
    assert _matrix_products("") == 3  # logits again, dX, dW
    assert _matrix_products("x") == 2
    assert _matrix_products("w") == 2
    assert _matrix_products("xw") == 1


def test_the_row_list_of_torch_is_that_of_the_core() -> None:
    from clustermim_fast.ops.masked_cross_entropy.cpu import row_list

    for _ in range(20):
        target = torch.randint(-1, 3, (5, 7))
        mask = torch.rand(5, 7) < 0.5
        for given in (mask, None):
            rows, count = row_lists.row_list(target, given, -1)
            ours, n = row_list("test", target.contiguous(), given, -1, 3)
            assert torch.equal(rows, ours)
            assert int(count) == n
            assert torch.equal(rows.sort().values, torch.arange(35))


def test_ids_of_a_batch_with_nan_patches_through_the_loss() -> None:
    """nearest_centroid gives -1 to a patch with NaN; ignore_index=-1 leaves it out."""
    patches = torch.randn(2, 10, 12)
    patches[0, 3, 5] = torch.nan
    centroids = torch.randn(6, 12)
    ids = ops.nearest_centroid(patches, centroids)
    assert int(ids[0, 3]) == -1
    head = cnn.MaskedLinearCrossEntropyLoss(8, 6, ignore_index=-1, return_metrics=True)
    hidden = torch.randn(2, 10, 8, requires_grad=True)
    loss, metrics = head(hidden, ids, tokens_mask(2, 10, 10))
    loss.backward()
    assert int(metrics.num_counted) == 19
    assert not hidden.grad[0, 3].any()
    assert torch.isfinite(loss)
