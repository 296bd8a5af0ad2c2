"""masked_cross_entropy as an op: opcheck, compile, autocast, threads, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import assert_same
from tests.ops.logits_loss import make
from tests.ops.loss_checks import BACKENDS

mce = ops.masked_cross_entropy


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
        assert_same(got.detach(), want.detach())
        assert_same(torch.autograd.grad(got, d["z"]), torch.autograd.grad(want, d["z"]))
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
