"""masked_linear_cross_entropy against the float64 formula: values and gradients of every flag."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import ops
from tests.ops.harness import ON_CUDA, fewer
from tests.ops.linear_loss import (
    MODES,
    check_all,
    copies,
    gradients_made_in,
    late_factor,
    make,
    truth_of,
)
from tests.ops.loss_checks import (
    BACKENDS,
    DTYPES,
    FLOAT64_BACKENDS,
    KERNELS,
    array,
    assert_no_farther,
)
from tests.ops.loss_truth import pairwise

mlce = ops.masked_linear_cross_entropy


GRID = pairwise(
    backend=[KERNELS, "reference"],
    mode=["forward", "recompute"],
    dtype=DTYPES,
    mask=["bool", None, "int", "float"],
    target=[torch.int64, torch.int32],
    reduction=["mean", "sum", "none"],
    ignore=["absent", "present", "in range"],
    label_smoothing=[0.0, 0.1, 1.0],
    weighted=[False, True],
    prefix=[0, 1, 3],
    bias=[True, False],
    hint=[False, True],
    layout=["dense", "strided", "transposed"],
    weight_layout=["dense", "strided", "transposed"],
    token_layout=["dense", "strided"],
    classes=[13, 1, 2, 50, 128 if ON_CUDA else 257],
    metrics=[False, True],
    grad_output=["one", "scalar", "each"],
    frozen=["", "x", "w", "b", "xw", "xb", "wb"],
    autocast=[False, True],
)


def _every_other(tensor: torch.Tensor) -> torch.Tensor:
    """The same values at every other place of a wider tensor's last dimension."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def _laid_out(leaf: torch.Tensor, layout: str) -> torch.Tensor:
    value = leaf.detach()
    if layout == "strided":
        value = _every_other(value)
    elif layout == "transposed":  # the first two dimensions' memory swapped: [T, B, d], [d, K]
        value = value.transpose(0, 1).contiguous().transpose(0, 1)
    return value.requires_grad_()


@pytest.mark.parametrize("case", GRID, ids=range(len(GRID)))
def test_every_pair_of_flags(case: dict[str, Any]) -> None:
    """Values, gradients and metrics of every flag with every other."""
    prefix, dtype, reduction = case["prefix"], case["dtype"], case["reduction"]
    d = make(dtype, classes=case["classes"], prefix=prefix)
    d["x"], d["w"] = _laid_out(d["x"], case["layout"]), _laid_out(d["w"], case["weight_layout"])
    if not case["bias"]:
        d["b"] = None
    for name in case["frozen"]:
        if d[name] is not None:
            d[name].requires_grad_(False)
    if case["ignore"] == "present":
        d["target"][torch.rand(d["target"].shape) < 0.3] = -1
    d["target"] = d["target"].to(case["target"])
    mask = {"bool": d["mask"], "int": d["mask"].int() * 3, "float": d["mask"].float()}
    d["mask"] = mask.get(case["mask"])
    weight = torch.rand(d["target"].shape) if case["weighted"] else None
    if case["token_layout"] == "strided":
        d["target"], d["mask"], weight = (
            None if t is None else _every_other(t) for t in (d["target"], d["mask"], weight)
        )
    options = {
        "reduction": reduction,
        "ignore_index": {"absent": -100, "present": -1, "in range": 0}[case["ignore"]],
        "label_smoothing": case["label_smoothing"],
        "token_weight": weight,
    }
    shape = d["target"].shape if reduction == "none" else ()
    grad_output = {
        "one": torch.ones(shape), "scalar": torch.full(shape, -2.7), "each": torch.randn(shape),
    }[case["grad_output"]]  # fmt: skip
    hint = (7 if case["mask"] is not None else 10) if case["hint"] else None
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=case["autocast"])
    with gradients_made_in(case["mode"]), autocast:
        result = mlce(
            d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], num_prefix_tokens=prefix,
            masked_per_sample=hint, return_metrics=case["metrics"], backend=case["backend"],
            **options,
        )  # fmt: skip
    loss = result[0] if case["metrics"] else result
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    leaves = [d[k] for k in "xwb" if d[k] is not None and d[k].requires_grad]
    assert loss.requires_grad == bool(leaves)
    if leaves:
        loss.backward(grad_output.to(loss.dtype))
    assert all(leaf.grad is not None for leaf in leaves)
    taken, dx_dtype = d, None
    if case["autocast"] and dtype != torch.float64:
        taken, dx_dtype = {**d, "x": d["x"].bfloat16(), "w": d["w"].bfloat16()}, torch.bfloat16
    truth = truth_of(taken, prefix, case["backend"], grad_output=grad_output.numpy(), **options)
    factor = 1.0
    if reduction != "none":
        factor = late_factor(
            grad_output, reduction, dx_dtype or dtype, case["backend"], case["mode"]
        )
    check_all(d, loss, truth, prefix, factor, dx_dtype)
    if case["metrics"]:
        metrics = result[1]
        counted = int(truth.counted.sum())
        assert int(metrics.num_counted) == counted
        np.testing.assert_array_equal(metrics.histogram.numpy(), truth.histogram)
        if counted:
            assert float(metrics.accuracy) == np.float32(truth.correct / counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grad_output", [1.0, 1.75])  # exact in every dtype
def test_no_farther_from_float64_than_torch(
    dtype: torch.dtype, label_smoothing: float, mode: str, grad_output: float
) -> None:
    found: dict[str, list[np.ndarray]] = {}
    for _ in range(fewer(3, 1)):
        d = make(dtype, batch=fewer(4, 2), tokens=300, masked=225, dim=96, classes=100)
        truth = truth_of(d, grad_output=grad_output, label_smoothing=label_smoothing)
        with gradients_made_in(mode):
            ours = mlce(
                d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"],
                label_smoothing=label_smoothing,
            )  # fmt: skip
        ours.backward(torch.tensor(grad_output))
        theirs = copies(d)
        logits = F.linear(theirs["x"][d["mask"]], theirs["w"], theirs["b"])
        torchs = F.cross_entropy(logits, d["target"][d["mask"]], label_smoothing=label_smoothing)
        torchs.backward(torch.tensor(grad_output).to(torchs.dtype))
        for name, a, b, want, bound in (
            ("loss", ours, torchs, truth.loss, truth.loss_bound),
            ("dX", d["x"].grad, theirs["x"].grad, truth.dx, truth.dx_bound),
            ("dW", d["w"].grad, theirs["w"].grad, truth.dw, truth.dw_bound),
            ("db", d["b"].grad, theirs["b"].grad, truth.db, truth.db_bound),
        ):
            values = (array(a), array(b), want, bound)
            before = found.get(name, [np.empty(0)] * 4)
            found[name] = [np.append(old, new) for old, new in zip(before, values, strict=True)]
    for name, values in found.items():
        assert_no_farther(name, *values)


@pytest.mark.parametrize("backend", FLOAT64_BACKENDS)
def test_gradcheck_and_double_backward(backend: str) -> None:
    d = make(torch.float64, batch=2, tokens=4, masked=3, dim=3, classes=5, prefix=1)
    weight = torch.rand(d["target"].shape, dtype=torch.float64)

    for reduction in ("mean", "none"):

        def loss(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return mlce(
                x, w, d["target"], d["mask"], linear_bias=b, label_smoothing=0.2,
                token_weight=weight, num_prefix_tokens=1, reduction=reduction,  # noqa: B023
                backend=backend,
            )  # fmt: skip

        assert torch.autograd.gradcheck(loss, (d["x"], d["w"], d["b"]))
        assert torch.autograd.gradgradcheck(loss, (d["x"], d["w"], d["b"]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes_are_taken_as_the_values_they_hold(backend: str) -> None:
    for x_dtype, w_dtype in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float16),
        (torch.float32, torch.float64),
        (torch.float64, torch.bfloat16),
    ]:
        if not {x_dtype, w_dtype} <= {*DTYPES}:
            continue
        d = make(torch.float32)
        d["x"] = d["x"].detach().to(x_dtype).requires_grad_()
        d["w"] = d["w"].detach().to(w_dtype).requires_grad_()
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], backend=backend)
        wide = torch.float64 in (x_dtype, w_dtype)
        assert loss.dtype == (torch.float64 if wide else torch.float32)
        loss.backward()
        check_all(d, loss, truth_of(d))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_is_eagers_contract(backend: str) -> None:
    d = make(classes=50, dim=32)
    theirs = copies(d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], backend=backend)
        logits = F.linear(theirs["x"][d["mask"]], theirs["w"], theirs["b"])
        eager = F.cross_entropy(logits, d["target"][d["mask"]])
    assert loss.dtype == eager.dtype == torch.float32
    loss.backward()
    eager.backward()
    # The truth of the rounded operands; the weight's gradient reaches it in float32.
    rounded = dict(d, x=d["x"].detach().bfloat16(), w=d["w"].detach().bfloat16())
    truth = truth_of(rounded, backend=backend)
    check_all(d, loss, truth, dx_dtype=torch.bfloat16)
    # Eager's bias, logits and gradients go through bfloat16, too.
    assert_no_farther("loss", array(loss), array(eager), truth.loss, truth.loss_bound)
    for name in ("w", "b"):
        want, bound = (getattr(truth, f"d{name}{rest}") for rest in ("", "_bound"))
        assert theirs[name].grad.dtype == d[name].grad.dtype == torch.float32
        assert_no_farther(name, array(d[name].grad), array(theirs[name].grad), want, bound)


def test_autocast_that_reaches_into_the_backward_changes_nothing() -> None:
    grads = []
    for inside in (False, True):
        torch.manual_seed(0)
        d = make(classes=50, dim=32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"])
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        grads.append((d["x"].grad, d["w"].grad, d["b"].grad))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
