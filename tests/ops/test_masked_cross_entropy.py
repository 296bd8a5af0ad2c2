"""masked_cross_entropy against the float64 formula: values, gradients, flags, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import ops
from tests.ops.loss_checks import BACKENDS, array, assert_no_farther, assert_within, tokens_mask
from tests.ops.loss_truth import logits_truth, pairwise

mce = ops.masked_cross_entropy


def make(
    dtype: torch.dtype = torch.float32,
    batch: int = 3,
    tokens: int = 10,
    masked: int = 7,
    classes: int = 13,
    spread: float = 2.0,
) -> dict[str, Any]:
    z = (torch.randn(batch, tokens, classes) * spread).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (batch, tokens))
    return {"z": z, "target": target, "mask": tokens_mask(batch, tokens, masked)}


def truth_of(d: dict[str, Any], **options: Any) -> Any:
    z = array(d["z"])
    for name in ("token_weight", "weight"):
        if options.get(name) is not None:
            options[name] = array(options[name]).reshape(-1)
    return logits_truth(
        z.reshape(-1, z.shape[-1]),
        d["target"].reshape(-1).numpy(),
        None if d["mask"] is None else (d["mask"] != 0).reshape(-1).numpy(),
        unit=2.0**-53 if d["z"].dtype == torch.float64 else 2.0**-24,
        **options,
    )


def check_all(d: dict[str, Any], loss: torch.Tensor, truth: Any) -> None:
    shape = loss.shape
    assert_within("loss", loss, truth.loss.reshape(shape), truth.loss_bound.reshape(shape))
    grad = d["z"].grad
    assert grad.dtype == d["z"].dtype
    assert_within("dZ", grad, truth.dz.reshape(grad.shape), truth.dz_bound.reshape(grad.shape))


GRID = pairwise(
    backend=["cpu", "reference"],
    dtype=[torch.float32, torch.bfloat16, torch.float16, torch.float64],
    mask=["bool", None, "int", "float"],
    target=[torch.int64, torch.int32],
    reduction=["mean", "sum", "none"],
    ignore=["absent", "present", "in range"],
    label_smoothing=[0.0, 0.1, 1.0],
    weighted=[False, True],
    class_weighted=[False, True],
    layout=["dense", "strided", "transposed", "sliced", "expanded"],
    classes=[13, 1, 2, 50, 257],
)


@pytest.mark.parametrize("case", GRID, ids=range(len(GRID)))
def test_every_pair_of_flags(case: dict[str, Any]) -> None:
    classes = case["classes"]
    d = make(case["dtype"], classes=classes)
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
    z = d["z"].detach()
    if case["layout"] == "strided":  # every other class of a wider tensor
        wide = torch.zeros(*z.shape[:-1], 2 * classes, dtype=z.dtype)
        wide[..., ::2] = z
        z = wide[..., ::2]
    elif case["layout"] == "transposed":  # [B, K, L] memory
        z = z.transpose(1, 2).contiguous().transpose(1, 2)
    elif case["layout"] == "sliced":  # a [cls] column in front, odd address
        z = torch.cat([torch.full_like(z[:, :1], torch.nan), z], 1)[:, 1:]
    elif case["layout"] == "expanded":
        z = z[:1].expand(3, -1, -1)
    d["z"] = z.requires_grad_()
    options = {
        "reduction": case["reduction"],
        "ignore_index": ignore_index,
        "label_smoothing": case["label_smoothing"],
        "token_weight": torch.rand(d["target"].shape) if case["weighted"] else None,
        "weight": torch.rand(classes) if case["class_weighted"] else None,
    }
    grad_output = torch.randn(d["target"].shape if case["reduction"] == "none" else ())
    loss = mce(d["z"], d["target"], d["mask"], backend=case["backend"], **options)
    assert loss.dtype == (torch.float64 if case["dtype"] == torch.float64 else torch.float32)
    loss.backward(grad_output.to(loss.dtype))
    check_all(d, loss, truth_of(d, grad_output=grad_output.numpy(), **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weighted", [False, True])
def test_no_farther_from_float64_than_torch(
    dtype: torch.dtype, label_smoothing: float, class_weighted: bool
) -> None:
    d = make(dtype, batch=4, tokens=300, masked=225, classes=100)
    weight = torch.rand(100) + 0.5 if class_weighted else None
    grad_output = 1.75  # exact in every dtype
    truth = truth_of(d, grad_output=grad_output, label_smoothing=label_smoothing, weight=weight)
    ours = mce(d["z"], d["target"], d["mask"], label_smoothing=label_smoothing, weight=weight)
    ours.backward(torch.tensor(grad_output))
    z = d["z"].detach().clone().requires_grad_()
    same_dtype = None if weight is None else weight.to(dtype)
    torchs = F.cross_entropy(
        z[d["mask"]], d["target"][d["mask"]], same_dtype, label_smoothing=label_smoothing
    )
    torchs.backward(torch.tensor(grad_output).to(torchs.dtype))
    assert_no_farther("loss", array(ours), array(torchs), truth.loss, truth.loss_bound)
    shape = truth.dz.shape
    grads = (array(t.grad).reshape(shape) for t in (d["z"], z))
    assert_no_farther("dZ", *grads, truth.dz, truth.dz_bound)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_number_of_classes(backend: str, isa: str, dtype: torch.dtype) -> None:
    """Every tail of every vector width."""
    core = pytest.importorskip("clustermim_fast._core")
    if core.build_info()["isa_paths"].get(isa) != "usable":
        pytest.skip(f"this machine cannot run the {isa} path")
    if backend == "reference" and isa != "generic":
        return
    core.set_isa(name=isa)
    try:
        for classes in [*range(1, 37), 63, 64, 65, 100, 129]:
            d = make(dtype, batch=1, tokens=3, masked=2, classes=classes)
            loss = mce(d["z"], d["target"], d["mask"], label_smoothing=0.1, backend=backend)
            loss.backward()
            check_all(d, loss, truth_of(d, label_smoothing=0.1))
    finally:
        core.set_isa(name="auto")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_sixteen_bit_conversions_are_torchs(dtype: torch.dtype, isa: str) -> None:
    """All 65,536 values in; and rounding out, subnormals and overflow included."""
    core = pytest.importorskip("clustermim_fast._core")
    if core.build_info()["isa_paths"].get(isa) != "usable":
        pytest.skip(f"this machine cannot run the {isa} path")
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    close = bits.float()[torch.isfinite(bits)]
    parts = [
        close,
        torch.nextafter(close, torch.tensor(torch.inf)),
        close * 1.00048828125,  # half way between two float16 values
        close + close.abs() * 2**-12,
        torch.randn(4096) * 10.0 ** torch.randint(-9, 6, (4096,)),
        torch.tensor([torch.inf, -torch.inf, torch.nan, 65519.0, 65520.0, 3.4e38]),
    ]
    floats = torch.cat(parts)
    codes = {torch.float16: 2, torch.bfloat16: 3}
    core.set_isa(name=isa)
    try:
        row = torch.zeros(1, dtype=torch.int64)
        common = {"dtype": codes[dtype], "sample_stride": 0, "row_stride": 0, "rows_per_sample": 1,
                  "rows": row.data_ptr(), "num_rows": 1, "num_tokens": 1, "threads": 1}  # fmt: skip
        wide = torch.empty(bits.numel())
        core.gather_token_rows(
            source=bits.data_ptr(), out=wide.data_ptr(), dim=bits.numel(), **common
        )
        torch.testing.assert_close(wide, bits.float(), rtol=0, atol=0, equal_nan=True)
        narrow = torch.empty(floats.numel(), dtype=dtype)
        core.scatter_token_rows(
            source=floats.data_ptr(), destination=narrow.data_ptr(), dim=floats.numel(), **common,
        )  # fmt: skip
        torch.testing.assert_close(narrow, floats.to(dtype), rtol=0, atol=0, equal_nan=True)
    finally:
        core.set_isa(name="auto")


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_double_backward(backend: str) -> None:
    d = make(torch.float64, batch=2, tokens=4, masked=3, classes=5)
    options = {"token_weight": torch.rand(2, 4), "weight": torch.rand(5), "label_smoothing": 0.2}
    for reduction in ("mean", "sum", "none"):

        def loss(z: torch.Tensor) -> torch.Tensor:
            return mce(z, d["target"], d["mask"], reduction=reduction, backend=backend, **options)  # noqa: B023

        assert torch.autograd.gradcheck(loss, (d["z"],))
        assert torch.autograd.gradgradcheck(loss, (d["z"],))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_large_logits(backend: str, magnitude: float) -> None:
    d = make(spread=1.0)
    with torch.no_grad():
        d["z"] *= magnitude
    loss = mce(
        d["z"], d["target"], d["mask"], label_smoothing=0.1, reduction="none", backend=backend
    )
    loss.backward(torch.randn(loss.shape))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(d["z"].grad).all()
    if magnitude == 1e4:
        truth = truth_of(d, label_smoothing=0.1, reduction="none")
        assert_within(
            "loss", loss, truth.loss.reshape(loss.shape), truth.loss_bound.reshape(loss.shape)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_where_nothing_counts_never_matter(backend: str) -> None:
    d = make()
    dirty = {k: v.detach().clone() for k, v in d.items()}
    dirty["z"][~d["mask"]] = torch.nan
    dirty["target"][~d["mask"]] = -(10**12)
    results = []
    for given in (d, dirty):
        z = given["z"].detach().clone().requires_grad_()
        loss = mce(z, given["target"], given["mask"], weight=torch.arange(13.0), backend=backend)
        loss.backward()
        results.append((loss.detach(), z.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.isfinite(a).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counted_and_size_zero(backend: str, reduction: str) -> None:
    for batch, tokens in [(3, 10), (0, 10), (3, 0)]:
        d = make(batch=batch, tokens=tokens)
        nothing = torch.zeros_like(d["mask"])
        loss = mce(d["z"], d["target"], nothing, reduction=reduction, backend=backend)
        if reduction == "mean":
            assert torch.isnan(loss)
        else:
            assert not loss.any()
        loss.sum().backward()
        assert d["z"].grad.shape == d["z"].shape
        assert not d["z"].grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_where_it_counts_stays_in_its_row(backend: str) -> None:
    d = make()
    d["mask"][:] = True
    with torch.no_grad():
        d["z"][1, 3, 5] = torch.nan
        d["z"][2, 1, 4] = torch.inf
        d["z"][0, 0] = -torch.inf
    loss = mce(d["z"], d["target"], d["mask"], reduction="none", backend=backend)
    loss.sum().backward()
    wrong = torch.zeros(3, 10, dtype=torch.bool)
    wrong[1, 3] = wrong[2, 1] = wrong[0, 0] = True
    assert torch.equal(torch.isnan(loss), wrong)
    assert torch.equal(torch.isnan(d["z"].grad).any(-1), wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_leading_dimensions(backend: str) -> None:
    z = torch.randn(7, requires_grad=True)
    loss = mce(z, torch.tensor(3), backend=backend)
    loss.backward()
    want = torch.autograd.grad(F.cross_entropy(z, torch.tensor(3)), z)[0]
    torch.testing.assert_close(z.grad, want)
    deep = torch.randn(2, 3, 4, 5, 7)
    target = torch.randint(0, 7, (2, 3, 4, 5))
    torch.testing.assert_close(
        mce(deep, target, backend=backend), F.cross_entropy(deep.reshape(-1, 7), target.reshape(-1))
    )


def test_autocast_leaves_the_loss_in_float32() -> None:
    d = make(torch.bfloat16)
    plain = mce(d["z"], d["target"], d["mask"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mce(d["z"], d["target"], d["mask"])
    assert loss.dtype == torch.float32
    assert loss.item() == plain.item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    forward = torch.ops.clustermim.masked_cross_entropy.default
    backward = torch.ops.clustermim.masked_cross_entropy_backward.default
    d = make()
    z, weight = d["z"].detach(), torch.rand(3, 10)
    for args in [
        (z, d["target"], d["mask"], None, None, "mean", -100, 0.0),
        (z.half(), d["target"].int(), None, weight, torch.rand(13), "none", 3, 0.1),
    ]:
        torch.library.opcheck(forward, (*args, backend))
        loss, rows, count, stats, divisor = forward(*args, backend)
        torch.library.opcheck(
            backward,
            (torch.rand_like(loss), args[0], args[1], args[3], args[4], rows, count, stats, divisor,
             *args[5:], backend),
        )  # fmt: skip


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compile_equals_eager(compiler: str) -> None:
    def step(z: torch.Tensor, t: torch.Tensor, m: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return mce(z * 2, t, m.float(), weight=w, label_smoothing=0.1) * 3

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    for _ in range(2):
        d = make()
        args = (d["z"], d["target"], d["mask"], torch.rand(13))
        want, got = step(*args), compiled(*args)
        torch.testing.assert_close(want, got, rtol=1e-6, atol=1e-7)
        want_grad = torch.autograd.grad(want, d["z"])[0]
        got_grad = torch.autograd.grad(got, d["z"])[0]
        torch.testing.assert_close(want_grad, got_grad, rtol=1e-6, atol=1e-7)
    torch._dynamo.reset()


def test_bitwise_equal_at_one_and_two_threads(threads: Any) -> None:
    """No GEMM here: not even the number of threads changes a bit."""
    d = make(batch=16, tokens=64, masked=40, classes=200)
    results = []
    for count in (1, 2, 2):
        threads(count)
        z = d["z"].detach().clone().requires_grad_()
        loss = mce(z, d["target"], d["mask"], label_smoothing=0.1, reduction="none")
        loss.backward(torch.ones_like(loss))
        results.append((loss.detach(), z.grad))
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


REFUSALS = [
    (
        {"logits": torch.zeros(3, 10, 13, dtype=torch.int64)},
        TypeError,
        "logits must be of dtype float64",
    ),
    ({"logits": np.zeros((3, 10, 13))}, TypeError, "wrap numpy arrays with torch.from_numpy"),
    ({"logits": torch.zeros(3, 10, 0)}, ValueError, "logits must be [..., L, K] with K >= 1"),
    ({"logits": torch.zeros(())}, ValueError, "logits must be [..., L, K]"),
    ({"target": torch.zeros(3, 10)}, TypeError, "target must be of dtype int64, int32"),
    (
        {"target": torch.zeros(10, 3, dtype=torch.int64)},
        ValueError,
        "target must be of shape (3, 10)",
    ),
    ({"mask": torch.zeros(30, dtype=torch.bool)}, ValueError, "mask must be of shape (3, 10)"),
    ({"weight": torch.ones(12)}, ValueError, "weight must be [K] with K = 13"),
    ({"weight": torch.ones(13, dtype=torch.int64)}, TypeError, "weight must be of dtype"),
    ({"weight": torch.ones(13, requires_grad=True)}, ValueError, "pass weight.detach()"),
    (
        {"token_weight": torch.full((3, 10), torch.nan)},
        ValueError,
        "token_weight must be finite and >= 0",
    ),
    ({"reduction": None}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got None"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be in [0, 1], got -0.1"),
    ({"ignore_index": 1.0}, TypeError, "ignore_index must be an int, got float"),
    ({"backend": "cuda"}, RuntimeError, "backend 'cuda' is not available"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSALS, ids=[m for _, _, m in REFUSALS])
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    d = make()
    given = {"logits": d["z"], "target": d["target"], "mask": d["mask"]} | change
    with pytest.raises(error) as caught:
        mce(**given)
    assert message in str(caught.value)
    assert str(caught.value).startswith("masked_cross_entropy: ")


@pytest.mark.parametrize("backend", BACKENDS)
def test_target_out_of_range_names_value_and_position(backend: str) -> None:
    d = make()
    d["mask"][2, 9] = True
    d["target"][2, 9] = -100
    with pytest.raises(IndexError) as caught:
        mce(d["z"], d["target"], d["mask"], ignore_index=-1, backend=backend)
    message = "target must be in [0, 13) where it counts, got -100 at position (2, 9)"
    assert message in str(caught.value)
    assert "ignore_index (-1)" in str(caught.value)
