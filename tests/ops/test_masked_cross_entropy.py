"""masked_cross_entropy against the float64 formula: values and gradients of every flag."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import ops
from tests.ops.logits_loss import check_all, make, truth_of
from tests.ops.loss_checks import (
    BACKENDS,
    DTYPES,
    FLOAT64_BACKENDS,
    KERNELS,
    array,
    assert_no_farther,
)
from tests.ops.loss_truth import pairwise

mce = ops.masked_cross_entropy


GRID = pairwise(
    backend=[KERNELS, "reference"],
    dtype=DTYPES,
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
@pytest.mark.parametrize("dtype", DTYPES)
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


@pytest.mark.parametrize("backend", FLOAT64_BACKENDS)
def test_gradcheck_and_double_backward(backend: str) -> None:
    d = make(torch.float64, batch=2, tokens=4, masked=3, classes=5)
    options = {"token_weight": torch.rand(2, 4), "weight": torch.rand(5), "label_smoothing": 0.2}
    for reduction in ("mean", "sum", "none"):

        def loss(z: torch.Tensor) -> torch.Tensor:
            return mce(z, d["target"], d["mask"], reduction=reduction, backend=backend, **options)  # noqa: B023

        assert torch.autograd.gradcheck(loss, (d["z"],))
        assert torch.autograd.gradgradcheck(loss, (d["z"],))
