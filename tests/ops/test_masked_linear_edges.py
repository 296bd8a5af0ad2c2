"""masked_linear_cross_entropy at its edges: nothing counted, frozen or tied parts, one class."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import running, usable_paths
from tests.ops.linear_loss import MODES, check_all, gradients_made_in, make, truth_of
from tests.ops.loss_checks import BACKENDS, DTYPES, UNIT, array, assert_within, operand_unit
from tests.ops.loss_truth import linear_truth

mlce = ops.masked_linear_cross_entropy


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smoothing_with_weights_whose_sum_overflows(backend: str, dtype: torch.dtype) -> None:
    """Their mean is finite, and so is dX; tokens of 0 there keep the logits small."""
    d = make(dtype, classes=100)
    with torch.no_grad():
        d["x"][..., 3] = 0.0
        d["w"][:, 3] = torch.rand(100) * 1e38
    assert torch.isinf(d["w"].float().sum(0)[3])
    loss = mlce(
        d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], label_smoothing=0.1,
        backend=backend,
    )  # fmt: skip
    loss.backward()
    check_all(d, loss, truth_of(d, backend=backend, label_smoothing=0.1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_where_nothing_counts_never_matter(
    backend: str, mode: str, dtype: torch.dtype
) -> None:
    clean = make(dtype, prefix=2)
    dirty = {k: v.detach().clone() for k, v in clean.items()}
    dirty["x"][:, :2] = torch.nan
    dirty["x"][:, 2:][~clean["mask"]] = torch.nan
    dirty["target"][~clean["mask"]] = 10**12
    weight = torch.rand(clean["target"].shape)
    results = []
    for d in (clean, dirty):
        x, w, b = (d[k].detach().clone().requires_grad_() for k in "xwb")
        with gradients_made_in(mode):
            loss = mlce(
                x, w, d["target"], d["mask"], linear_bias=b, num_prefix_tokens=2,
                token_weight=torch.where(clean["mask"], weight, -torch.inf), label_smoothing=0.1,
                backend=backend,
            )  # fmt: skip
        loss.backward()
        results.append((loss.detach(), x.grad, w.grad, b.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.isfinite(a).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("how", ["mask", "ignored", "no samples", "no tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_counted(backend: str, reduction: str, how: str, dtype: torch.dtype) -> None:
    batch, tokens = 0 if how == "no samples" else 3, 0 if how == "no tokens" else 10
    d = make(dtype, batch, tokens, prefix=1)
    if how == "mask":
        d["mask"] = torch.zeros_like(d["mask"])
    if how == "ignored":
        d["target"] = torch.full_like(d["target"], -100)
    loss = mlce(
        d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], reduction=reduction,
        num_prefix_tokens=1, label_smoothing=0.1, backend=backend,
    )  # fmt: skip
    if reduction == "mean":
        assert torch.isnan(loss)
    else:
        assert not loss.any()
        assert loss.shape == (d["target"].shape if reduction == "none" else ())
    loss.sum().backward()
    for name in "xwb":
        assert d[name].grad.shape == d[name].shape
        assert not d[name].grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_token_and_weight_zero(backend: str) -> None:
    d = make(DTYPES[0])
    d["mask"] = torch.zeros_like(d["mask"])
    d["mask"][1, 4] = True
    loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], backend=backend)
    loss.backward()
    check_all(d, loss, truth_of(d, backend=backend))
    d = make(DTYPES[0])
    zero = torch.zeros(d["target"].shape)
    loss = mlce(d["x"], d["w"], d["target"], linear_bias=d["b"], token_weight=zero, backend=backend)
    loss.backward()
    assert torch.isnan(loss)
    assert not any(d[k].grad.any() for k in "xwb")


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_dimensional_and_deep_inputs(backend: str) -> None:
    d = make(DTYPES[0], batch=4, tokens=6)
    want = mlce(d["x"], d["w"], d["target"], d["mask"], backend=backend)
    flat = mlce(
        d["x"].reshape(24, 16),
        d["w"],
        d["target"].reshape(24),
        d["mask"].reshape(24),
        backend=backend,
    )
    deep = mlce(
        d["x"].reshape(2, 2, 6, 16), d["w"], d["target"].reshape(2, 2, 6),
        d["mask"].reshape(2, 2, 6), backend=backend,
    )  # fmt: skip
    assert flat.item() == want.item() == deep.item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tied_weight(backend: str, mode: str, dtype: torch.dtype) -> None:
    """The same tensor as input and as weight keeps both gradients."""
    e = torch.randn(8, 8).to(dtype).requires_grad_()
    t = torch.arange(8)
    with gradients_made_in(mode):
        mlce(e, e, t, backend=backend).backward()
    want = linear_truth(
        array(e), array(e), None, t.numpy(), unit=min(UNIT[dtype], UNIT[torch.float32]),
        operand_unit=operand_unit(e, backend=backend),
    )  # fmt: skip
    bound = want.dx_bound + want.dw_bound
    # Each is rounded before they are added, which rounds the sum.
    bound += UNIT[dtype] * (abs(want.dx) + abs(want.dw) + bound)
    assert_within("sum", e.grad, want.dx + want.dw, bound)
    grad = torch.autograd.grad(mlce(e, e, t, backend=backend), e, create_graph=True)[0]
    assert grad.requires_grad
    assert_within("sum", grad, want.dx + want.dw, bound)


@pytest.mark.parametrize("mode", MODES)
def test_no_grad_and_frozen_parts(mode: str) -> None:
    d = make(DTYPES[0])
    for frozen in ("x", "w", "b", "xw", "xb", "wb"):
        given = {k: d[k].detach().clone().requires_grad_(k not in frozen) for k in "xwb"}
        with gradients_made_in(mode):
            loss = mlce(given["x"], given["w"], d["target"], d["mask"], linear_bias=given["b"])
        loss.backward()
        check_all({**d, **given}, loss, truth_of(d))
        assert all(given[k].grad is None for k in frozen)
    with torch.no_grad():
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"])
    assert not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_class_has_no_gradient(dtype: torch.dtype) -> None:
    """Exactly: smoothing that is taken off apart from the rest must not leave a rounding error."""
    for path in usable_paths():
        if path == "reference":
            continue
        with running(path):
            d = make(dtype, classes=1)
            mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], label_smoothing=0.1,
                 token_weight=torch.rand(d["target"].shape)).backward()  # fmt: skip
        assert not any(d[name].grad.any() for name in "xwb"), path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("classes", [13, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_counted_has_no_gradient_of_a_nan(
    backend: str, mode: str, reduction: str, classes: int, dtype: torch.dtype
) -> None:
    """Such as the mean of nothing, which is NaN, hands back to itself when it is squared."""
    d = make(dtype, classes=classes)
    with gradients_made_in(mode):
        loss = mlce(
            d["x"], d["w"], d["target"], d["mask"] & False, linear_bias=d["b"],
            reduction=reduction, label_smoothing=0.1, backend=backend,
        )  # fmt: skip
    loss.backward(torch.tensor(torch.nan))
    for name in "xwb":
        assert not d[name].grad.any(), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("classes", [13, 300])
def test_an_infinite_grad_output_is_that_of_its_row_alone(backend: str, classes: int) -> None:
    """float16, whose gradient of the logits is shifted close to its largest number."""
    d = make(torch.float16, classes=classes)
    found = []
    for first in (torch.inf, 0.0):
        x = d["x"].detach().clone().requires_grad_()
        loss = mlce(x, d["w"], d["target"], reduction="none", backend=backend)
        grad = torch.full(loss.shape, 50.0)
        grad[0, 0] = first
        loss.backward(grad)
        found.append(x.grad)
    assert not torch.isfinite(found[0][0, 0]).all()
    found[0][0, 0] = found[1][0, 0] = 0.0
    assert torch.equal(*found)
