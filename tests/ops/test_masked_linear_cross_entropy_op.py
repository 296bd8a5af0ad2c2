"""masked_linear_cross_entropy as an op: opcheck, compile, repeatability, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import ON_CUDA, assert_same
from tests.ops.linear_loss import MODES, copies, gradients_made_in, make, truth_of
from tests.ops.loss_checks import BACKENDS, UNIT, array

mlce = ops.masked_linear_cross_entropy


def _samples() -> list[tuple[Any, ...]]:
    """Arguments of the forward op but for the gradients that it is to make, and the back-end."""
    d = make(prefix=1)
    x, w, b = (d[k].detach() for k in "xwb")
    narrow, weight = (x.bfloat16(), w.bfloat16()), torch.rand(d["target"].shape)
    given = narrow if ON_CUDA else (x, w)
    return [
        (*given, b, d["target"], d["mask"], None, "mean", -100, 0.0, 1, -1, False),
        (*narrow, b, d["target"], d["mask"], None, "sum", -100, 0.1, 1, 7, False),
        (*narrow, None, d["target"].int(), None, weight, "none", 3, 0.1, 1, -1, True),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False), (False,) * 3])
def test_opcheck(backend: str, wanted: tuple[bool, bool, bool]) -> None:
    forward = torch.ops.clustermim.masked_linear_cross_entropy.default
    backward = torch.ops.clustermim.masked_linear_cross_entropy_backward.default
    for args in _samples():
        x, w, b, target, _, weight, reduction, ignore, smoothing, prefix, _, _ = args
        needs = (*wanted[:2], wanted[2] and b is not None)
        torch.library.opcheck(forward, (*args, *needs, backend))
        loss, rows, count, stats, divisor, _, _, *grads = forward(*args, *needs, backend)
        sizes = [x.shape, w.shape, w.shape[:1]]
        want = [size if need else (0,) for size, need in zip(sizes, needs, strict=True)]
        assert [tuple(g.shape) for g in grads] == [tuple(size) for size in want]
        given = stats.clone()
        torch.library.opcheck(
            backward,
            (torch.rand_like(loss), x, w, b, target, weight, rows, count, stats, divisor, reduction,
             ignore, smoothing, prefix, -1, *needs, backend),
        )  # fmt: skip
        assert torch.equal(stats, given)


def test_the_backward_op_writes_none_of_its_inputs() -> None:
    """On the path in tiles, whose kernel writes the statistics that another one would read."""
    x, w, b, target, mask, *rest = _samples()[1]
    forward = torch.ops.clustermim.masked_linear_cross_entropy.default
    backward = torch.ops.clustermim.masked_linear_cross_entropy_backward.default
    needs = (True, True, True)
    _, rows, count, stats, divisor, *_ = forward(x, w, b, target, mask, *rest, *needs, "cpu")
    given = (torch.ones(()), x, w, b, target, None, rows, count, torch.zeros_like(stats), divisor)
    before = [None if t is None else t.clone() for t in given]
    backward(*given, "sum", -100, 0.1, 1, -1, *needs, "cpu")
    for t, was in zip(given, before, strict=True):
        assert (t is None and was is None) or torch.equal(t, was)


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compile_equals_eager(compiler: str, dtype: torch.dtype) -> None:
    """Compiled the gradients are made in the backward; a power of two leaves the bits alike."""

    def step(
        x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, t: torch.Tensor, m: torch.Tensor
    ) -> Any:
        loss, metrics = mlce(
            x * 2, w, t, m, linear_bias=b, label_smoothing=0.1, num_prefix_tokens=1,
            return_metrics=True,
        )  # fmt: skip
        return loss * 4, metrics.accuracy, metrics.histogram

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    for _ in range(2):
        d = make(dtype, prefix=1)
        want = step(d["x"], d["w"], d["b"], d["target"], d["mask"])
        want_grads = torch.autograd.grad(want[0], [d["x"], d["w"], d["b"]])
        got = compiled(d["x"], d["w"], d["b"], d["target"], d["mask"])
        got_grads = torch.autograd.grad(got[0], [d["x"], d["w"], d["b"]])
        for a, b in zip((*want, *want_grads), (*got, *got_grads), strict=True):
            assert a.stride() == b.stride()
            assert_same(a.detach(), b.detach())
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", MODES)
def test_repeatable_and_thread_count(
    dtype: torch.dtype, smoothing: float, mode: str, threads: Any
) -> None:
    """The same bits ten times over; another number of threads only reorders sums."""
    d = make(dtype, batch=8, tokens=64, masked=48, dim=48, classes=300)
    results: dict[int, list[torch.Tensor]] = {}
    for count in (1, 2) * 10:
        threads(count)
        given = copies(d)
        with gradients_made_in(mode):
            loss = mlce(
                given["x"], given["w"], d["target"], d["mask"], linear_bias=given["b"],
                label_smoothing=smoothing,
            )  # fmt: skip
        loss.backward()
        found = [loss.detach(), *(given[k].grad for k in "xwb")]
        assert_same(found, results.setdefault(count, found))
    truth = truth_of(d, label_smoothing=smoothing)
    for name, a, b, bound in zip(
        ("loss", "dX", "dW", "db"), results[1], results[2],
        (truth.loss_bound, truth.dx_bound.reshape(d["x"].shape), truth.dw_bound, truth.db_bound),
        strict=True,
    ):  # fmt: skip
        last = 2 * UNIT[a.dtype] * abs(array(a)) if name != "loss" else 0.0  # each rounds its own
        assert (abs(array(a) - array(b)) <= 2 * bound + last).all(), name


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
