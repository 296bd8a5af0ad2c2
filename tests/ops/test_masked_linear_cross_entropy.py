"""masked_linear_cross_entropy against the float64 formula: values, gradients, flags, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import ops
from tests.ops.loss_checks import (
    BACKENDS,
    UNIT,
    array,
    assert_no_farther,
    assert_within,
    tokens_mask,
)
from tests.ops.loss_truth import linear_truth, pairwise

mlce = ops.masked_linear_cross_entropy


def make(
    dtype: torch.dtype = torch.float32,
    batch: int = 3,
    tokens: int = 10,
    masked: int = 7,
    dim: int = 16,
    classes: int = 13,
    prefix: int = 0,
) -> dict[str, Any]:
    x = torch.randn(batch, prefix + tokens, dim).to(dtype).requires_grad_()
    w = (torch.randn(classes, dim) * 0.3).to(dtype).requires_grad_()
    b = torch.randn(classes).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (batch, tokens))
    return {"x": x, "w": w, "b": b, "target": target, "mask": tokens_mask(batch, tokens, masked)}


def truth_of(d: dict[str, Any], prefix: int = 0, **options: Any) -> Any:
    x = array(d["x"])[:, prefix:]
    unit = 2.0**-53 if d["x"].dtype == torch.float64 else 2.0**-24
    if options.get("token_weight") is not None:
        options["token_weight"] = array(options["token_weight"]).reshape(-1)
    return linear_truth(
        x.reshape(-1, x.shape[-1]),
        array(d["w"]),
        None if d["b"] is None else array(d["b"]),
        d["target"].reshape(-1).numpy(),
        None if d["mask"] is None else (d["mask"] != 0).reshape(-1).numpy(),
        unit=unit,
        **options,
    )


def check_all(d: dict[str, Any], loss: torch.Tensor, truth: Any, prefix: int = 0) -> None:
    batch, tokens = d["target"].shape
    shape = loss.shape
    assert_within("loss", loss, truth.loss.reshape(shape), truth.loss_bound.reshape(shape))
    grad = d["x"].grad
    assert grad.dtype == d["x"].dtype
    assert grad.shape == d["x"].shape
    assert not grad[:, :prefix].any()
    dim = grad.shape[-1]
    assert_within(
        "dX",
        grad[:, prefix:],
        truth.dx.reshape(batch, tokens, dim),
        truth.dx_bound.reshape(batch, tokens, dim),
    )
    assert_within("dW", d["w"].grad, truth.dw, truth.dw_bound)
    if d["b"] is not None:
        assert_within("db", d["b"].grad, truth.db, truth.db_bound)


GRID = pairwise(
    backend=["cpu", "reference"],
    dtype=[torch.float32, torch.bfloat16, torch.float16, torch.float64],
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
    classes=[13, 1, 2, 50, 257],
    metrics=[False, True],
)


@pytest.mark.parametrize("case", GRID, ids=range(len(GRID)))
def test_every_pair_of_flags(case: dict[str, Any]) -> None:
    prefix, classes = case["prefix"], case["classes"]
    d = make(case["dtype"], classes=classes, prefix=prefix)
    if not case["bias"]:
        d["b"] = None
    if case["mask"] is None:
        d["mask"] = None
    else:
        d["mask"] = {"bool": d["mask"], "int": d["mask"].int() * 3, "float": d["mask"].float()}[
            case["mask"]
        ]
    ignore_index = {"absent": -100, "present": -1, "in range": 0}[case["ignore"]]
    if case["ignore"] == "present":
        d["target"][torch.rand(d["target"].shape) < 0.3] = -1
    d["target"] = d["target"].to(case["target"])
    weight = torch.rand(d["target"].shape) if case["weighted"] else None
    x = d["x"]
    if case["layout"] == "strided":  # every other feature of a wider tensor
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
        wide[..., ::2] = x.detach()
        x = wide[..., ::2].requires_grad_()
    elif case["layout"] == "transposed":  # [T, B, d] memory
        x = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    d["x"] = x
    options = {
        "reduction": case["reduction"],
        "ignore_index": ignore_index,
        "label_smoothing": case["label_smoothing"],
        "token_weight": weight,
    }
    shape = d["target"].shape if case["reduction"] == "none" else ()
    grad_output = torch.randn(shape)
    hint = (7 if case["mask"] is not None else 10) if case["hint"] else None
    result = mlce(
        x, d["w"], d["target"], d["mask"], linear_bias=d["b"], num_prefix_tokens=prefix,
        masked_per_sample=hint, return_metrics=case["metrics"], backend=case["backend"], **options,
    )  # fmt: skip
    loss = result[0] if case["metrics"] else result
    assert loss.dtype == (torch.float64 if case["dtype"] == torch.float64 else torch.float32)
    loss.backward(grad_output.to(loss.dtype))
    truth = truth_of(d, prefix, grad_output=grad_output.numpy(), **options)
    check_all(d, loss, truth, prefix)
    if case["metrics"]:
        metrics = result[1]
        counted = int(truth.counted.sum())
        assert int(metrics.num_counted) == counted
        np.testing.assert_array_equal(metrics.histogram.numpy(), truth.histogram)
        if counted:
            assert float(metrics.accuracy) == pytest.approx(truth.correct / counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_no_farther_from_float64_than_torch(dtype: torch.dtype, label_smoothing: float) -> None:
    d = make(dtype, batch=4, tokens=300, masked=225, dim=96, classes=100)
    grad_output = 1.75  # exact in every dtype
    truth = truth_of(d, grad_output=grad_output, label_smoothing=label_smoothing)
    ours = mlce(
        d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], label_smoothing=label_smoothing
    )
    ours.backward(torch.tensor(grad_output))
    x, w, b = (d[k].detach().clone().requires_grad_() for k in "xwb")
    torchs = F.cross_entropy(
        F.linear(x[d["mask"]], w, b), d["target"][d["mask"]], label_smoothing=label_smoothing
    )
    torchs.backward(torch.tensor(grad_output).to(torchs.dtype))
    assert_no_farther("loss", ours, torchs, truth.loss, truth.loss_bound)
    shape = d["x"].shape
    assert_no_farther(
        "dX", d["x"].grad, x.grad, truth.dx.reshape(shape), truth.dx_bound.reshape(shape)
    )
    assert_no_farther("dW", d["w"].grad, w.grad, truth.dw, truth.dw_bound)
    assert_no_farther("db", d["b"].grad, b.grad, truth.db, truth.db_bound)


@pytest.mark.parametrize("backend", BACKENDS)
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
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], backend=backend)
        eager = F.cross_entropy(F.linear(d["x"][d["mask"]], d["w"], d["b"]), d["target"][d["mask"]])
    assert loss.dtype == eager.dtype == torch.float32
    loss.backward()
    # The truth of the rounded operands; the weight's gradient reaches it in float32.
    rounded = dict(d, x=d["x"].detach().bfloat16(), w=d["w"].detach().bfloat16())
    truth = truth_of(rounded)
    assert_within("loss", loss, truth.loss, truth.loss_bound)
    assert_within("dW", d["w"].grad, truth.dw, truth.dw_bound)
    assert_within("db", d["b"].grad, truth.db, truth.db_bound)
    want = truth.dx.reshape(d["x"].shape)
    assert_within("dX", d["x"].grad, want, truth.dx_bound.reshape(want.shape) + 2**-8 * abs(want))
    assert abs(float((loss - eager).detach())) < 0.02  # eager rounds the logits to bfloat16


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_where_nothing_counts_never_matter(backend: str) -> None:
    clean, dirty = make(prefix=2), None
    dirty = {k: v.detach().clone() for k, v in clean.items()}
    dirty["x"][:, :2] = torch.nan
    dirty["x"][:, 2:][~clean["mask"]] = torch.nan
    dirty["target"][~clean["mask"]] = 10**12
    weight = torch.rand(clean["target"].shape)
    results = []
    for d in (clean, dirty):
        x, w, b = (d[k].detach().clone().requires_grad_() for k in "xwb")
        loss = mlce(
            x, w, d["target"], d["mask"], linear_bias=b, num_prefix_tokens=2, label_smoothing=0.1,
            token_weight=torch.where(clean["mask"], weight, -torch.inf), backend=backend,
        )  # fmt: skip
        loss.backward()
        results.append((loss.detach(), x.grad, w.grad, b.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.isfinite(a).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("how", ["mask", "ignored", "no samples", "no tokens"])
def test_nothing_counted(backend: str, reduction: str, how: str) -> None:
    d = make(
        batch=0 if how == "no samples" else 3, tokens=0 if how == "no tokens" else 10, prefix=1
    )
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
    d = make()
    d["mask"] = torch.zeros_like(d["mask"])
    d["mask"][1, 4] = True
    loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], backend=backend)
    loss.backward()
    check_all(d, loss, truth_of(d))
    d = make()
    zero = torch.zeros(d["target"].shape)
    loss = mlce(d["x"], d["w"], d["target"], linear_bias=d["b"], token_weight=zero, backend=backend)
    loss.backward()
    assert torch.isnan(loss)
    assert not any(d[k].grad.any() for k in "xwb")


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_dimensional_and_deep_inputs(backend: str) -> None:
    d = make(batch=4, tokens=6)
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
def test_tied_weight(backend: str) -> None:
    """The same tensor as input and as weight keeps both gradients."""
    e = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    t = torch.arange(6)
    mlce(e, e, t, backend=backend).backward()
    x, w = e.detach().clone().requires_grad_(), e.detach().clone().requires_grad_()
    F.cross_entropy(F.linear(x, w), t).backward()
    torch.testing.assert_close(e.grad, x.grad + w.grad)
    grad = torch.autograd.grad(mlce(e, e, t, backend=backend), e, create_graph=True)[0]
    torch.testing.assert_close(grad, x.grad + w.grad)


def test_no_grad_and_frozen_parts() -> None:
    d = make()
    for frozen in ("x", "w", "b", "xw", "xb", "wb"):
        given = {k: d[k].detach().clone().requires_grad_(k not in frozen) for k in "xwb"}
        loss = mlce(given["x"], given["w"], d["target"], d["mask"], linear_bias=given["b"])
        loss.backward()
        check = {k: make_grad for k, make_grad in given.items() if k not in frozen}
        truth = truth_of(d)
        for k, t in check.items():
            want = {"x": truth.dx.reshape(d["x"].shape), "w": truth.dw, "b": truth.db}[k]
            np.testing.assert_allclose(array(t.grad), want, atol=1e-6)
        assert all(given[k].grad is None for k in frozen)
    with torch.no_grad():
        loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"])
    assert not loss.requires_grad


def _samples() -> list[tuple[Any, ...]]:
    d = make(prefix=1)
    x, w, b = (d[k].detach() for k in "xwb")
    weight = torch.rand(d["target"].shape)
    return [
        (x, w, b, d["target"], d["mask"], None, "mean", -100, 0.0, 1, -1, False),
        (
            x.bfloat16(),
            w.bfloat16(),
            None,
            d["target"].int(),
            None,
            weight,
            "none",
            3,
            0.1,
            1,
            -1,
            True,
        ),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    forward = torch.ops.clustermim.masked_linear_cross_entropy.default
    backward = torch.ops.clustermim.masked_linear_cross_entropy_backward.default
    for args in _samples():
        torch.library.opcheck(forward, (*args, backend))
        x, w, b, target, _, weight, reduction, ignore, smoothing, prefix, _, _ = args
        loss, rows, count, stats, divisor, _, _ = forward(*args, backend)
        needs = (True, True, b is not None)
        torch.library.opcheck(
            backward,
            (torch.rand_like(loss), x, w, b, target, weight, rows, count, stats, divisor, reduction,
             ignore, smoothing, prefix, *needs, backend),
        )  # fmt: skip


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compile_equals_eager(compiler: str) -> None:
    def step(
        x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, t: torch.Tensor, m: torch.Tensor
    ) -> Any:
        loss, metrics = mlce(
            x * 2,
            w,
            t,
            m,
            linear_bias=b,
            label_smoothing=0.1,
            num_prefix_tokens=1,
            return_metrics=True,
        )
        return loss * 3, metrics.accuracy, metrics.histogram

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    for _ in range(2):
        d = make(prefix=1)
        want = step(d["x"], d["w"], d["b"], d["target"], d["mask"])
        want_grads = torch.autograd.grad(want[0], [d["x"], d["w"], d["b"]])
        got = compiled(d["x"], d["w"], d["b"], d["target"], d["mask"])
        got_grads = torch.autograd.grad(got[0], [d["x"], d["w"], d["b"]])
        for a, b in zip((*want, *want_grads), (*got, *got_grads), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    torch._dynamo.reset()


def test_compile_under_autocast() -> None:
    def step(x: torch.Tensor, w: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return mlce(x, w, t, m)

    torch._dynamo.reset()
    d = make()
    want = step(d["x"], d["w"], d["target"], d["mask"])
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(
        d["x"], d["w"], d["target"], d["mask"]
    )
    assert want.item() == got.item()
    got.backward()
    assert d["w"].grad.dtype == torch.float32
    torch._dynamo.reset()


def test_repeatable_and_thread_count(threads: Any) -> None:
    d = make(batch=8, tokens=64, masked=48, dim=48, classes=300)
    results = {}
    for count in (1, 1, 2, 2):
        threads(count)
        x, w, b = (d[k].detach().clone().requires_grad_() for k in "xwb")
        loss = mlce(x, w, d["target"], d["mask"], linear_bias=b, label_smoothing=0.1)
        loss.backward()
        found = [loss.detach(), x.grad, w.grad, b.grad]
        for a, before in zip(found, results.setdefault(count, found), strict=True):
            assert torch.equal(a, before)
    truth = truth_of(d, label_smoothing=0.1)
    for name, a, b, bound in zip(
        ("loss", "dX", "dW", "db"), results[1], results[2],
        (truth.loss_bound, truth.dx_bound.reshape(d["x"].shape), truth.dw_bound, truth.db_bound),
        strict=True,
    ):  # fmt: skip
        assert (abs(array(a) - array(b)) <= 2 * bound).all(), name


REFUSALS = [
    ({"input": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "input must be of dtype float64"),
    ({"input": [[1.0]]}, TypeError, "input must be a torch.Tensor"),
    ({"input": torch.zeros(5)}, ValueError, "input must be [..., T, d]"),
    ({"linear_weight": torch.zeros(0, 16)}, ValueError, "linear_weight must be [K, d] with K >= 1"),
    ({"linear_weight": torch.zeros(5, 3)}, ValueError, "d = input.shape[-1] = 16"),
    (
        {"linear_bias": torch.zeros(4)},
        ValueError,
        "linear_bias must be [K] with K = linear_weight.shape[0] = 13",
    ),
    ({"target": torch.zeros(3, 10)}, TypeError, "target must be of dtype int64, int32"),
    (
        {"target": torch.zeros(3, 9, dtype=torch.int64)},
        ValueError,
        "target must be of shape (3, 10)",
    ),
    ({"mask": torch.zeros(3, 1, dtype=torch.bool)}, ValueError, "mask must be of shape (3, 10)"),
    (
        {"mask": torch.zeros(3, 10, dtype=torch.complex64)},
        TypeError,
        "mask must be bool, integer or floating",
    ),
    (
        {"token_weight": torch.ones(3, 10, dtype=torch.int64)},
        TypeError,
        "token_weight must be of dtype",
    ),
    (
        {"token_weight": torch.ones(3, 10, requires_grad=True)},
        ValueError,
        "pass token_weight.detach()",
    ),
    ({"token_weight": -torch.ones(3, 10)}, ValueError, "token_weight must be finite and >= 0"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be in [0, 1], got 1.5"),
    ({"label_smoothing": "0"}, TypeError, "label_smoothing must be a float, got str"),
    ({"ignore_index": None}, TypeError, "ignore_index must be an int, got NoneType"),
    ({"num_prefix_tokens": 11}, ValueError, "num_prefix_tokens must be in [0, T = 10], got 11"),
    ({"num_prefix_tokens": 1}, ValueError, "target must be of shape (3, 9)"),
    ({"masked_per_sample": 11}, ValueError, "masked_per_sample must be in [0, L = 10], got 11"),
    ({"masked_per_sample": 5}, IndexError, "got 5 while sample 0 has 7"),
    ({"backend": "triton"}, RuntimeError, "backend 'triton' is not available"),
    ({"backend": "gpu"}, ValueError, "backend must be one of"),
    (
        {"mask": torch.zeros(3, 10, dtype=torch.bool, device="meta")},
        ValueError,
        "mask must be on cpu, got meta",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSALS, ids=[m for _, _, m in REFUSALS])
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    d = make()
    given = {
        "input": d["x"], "linear_weight": d["w"], "target": d["target"], "mask": d["mask"],
        "linear_bias": d["b"],
    }  # fmt: skip
    with pytest.raises(error) as caught:
        mlce(**(given | change))
    assert message in str(caught.value)
    assert str(caught.value).startswith("masked_linear_cross_entropy: ")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [13, -1, 2**40])
def test_target_out_of_range_names_value_and_position(backend: str, value: int) -> None:
    d = make()
    d["mask"][1, 4] = True
    d["target"][1, 4] = value
    with pytest.raises(IndexError) as caught:
        mlce(d["x"], d["w"], d["target"], d["mask"], backend=backend)
    message = f"target must be in [0, 13) where it counts, got {value} at position (1, 4)"
    assert message in str(caught.value)


def test_units_are_the_dtypes() -> None:
    assert all(UNIT[dtype] == torch.finfo(dtype).eps / 2 for dtype in UNIT)
