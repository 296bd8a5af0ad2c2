"""The linear loss of bfloat16 operands in tiles (AMX): every size, edge values, other paths, bits.

The 2^-8 of the rounded operand is in the truth's bounds (``linear_truth``, ``operand_unit``); where
the path is not usable these problems run the path of every other dtype, and its tighter bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clustermim_fast import ops
from tests.ops.harness import assert_same, running, usable_paths
from tests.ops.linear_loss import MODES, check_all, copies, gradients_made_in, make, truth_of
from tests.ops.loss_checks import array
from tests.ops.loss_truth import linear_truth

mlce = ops.masked_linear_cross_entropy
CLASSES = (1, 2, 7, 31, 32, 33, 50, 100, 257, 1000)
DIMS = (1, 7, 31, 32, 33, 50, 192, 768)
ROWS = (0, 1, 31, 32, 33)


def problem(rows: int, dim: int, classes: int) -> dict[str, Any]:
    """One sample with ``rows`` counted of a few more tokens; logits of a few units."""
    d = make(torch.bfloat16, 1, rows + 5, rows, dim, classes)
    with torch.no_grad():
        d["w"] *= 3 * dim**-0.5
    return d


def run(d: dict[str, Any], grad_output: float = 1.0, **options: Any) -> torch.Tensor:
    loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], **options)
    loss.backward(torch.full_like(loss, grad_output))
    return loss


def check(d: dict[str, Any], grad_output: float = 0.5, **options: Any) -> None:
    """A power of two as grad_output: the same bounds in both modes."""
    options = {"reduction": "sum", "label_smoothing": 0.1} | options
    loss = run(d, grad_output, **options)
    check_all(d, loss, truth_of(d, grad_output=grad_output, **options))


@pytest.mark.parametrize("classes", CLASSES)
def test_every_number_of_classes(classes: int) -> None:
    for i, rows in enumerate(ROWS):
        for dim in DIMS[i % 2 :: 2]:
            check(problem(rows, dim, classes), label_smoothing=0.1 * (dim % 2))


@pytest.mark.parametrize("dim", DIMS)
def test_every_width(dim: int) -> None:
    for classes in (33, 100):
        d = problem(70, dim, classes)
        check(d)
        d = problem(45, dim, classes)
        d["b"] = None
        check(d, label_smoothing=0.0)


@pytest.mark.parametrize(
    ("rows", "dim", "classes"), [(1000, 50, 257), (2100, 33, 40), (40, 33, 8192)]
)
def test_large_sizes(rows: int, dim: int, classes: int) -> None:
    """Several tasks; several chunks of 64 strips of 32 rows; panels in more than one block."""
    check(problem(rows, dim, classes))


def test_each_token_of_several_tasks_has_its_own_weight() -> None:
    """All of dX's second part is the smoothing's, each token's by its own scale."""
    d = problem(300, 64, 7)
    check(d, label_smoothing=1.0, token_weight=torch.rand(d["target"].shape))


@pytest.mark.parametrize("path", ["generic", "avx2", "avx512", "amx"])
def test_paths_agree_within_their_bounds(path: str) -> None:
    with running(path):
        for rows, dim, classes in ((33, 50, 100), (70, 192, 31)):
            check(problem(rows, dim, classes))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("paths", [("amx", "avx512"), ("avx512", "amx"), ("amx", "generic")])
def test_another_path_between_forward_and_backward(mode: str, paths: tuple[str, str]) -> None:
    """One leaves the softmax statistics that the other reads, or makes again."""
    if not set(paths) <= set(usable_paths()):
        pytest.skip("this machine cannot run both paths")
    d = problem(70, 50, 100)
    with running("amx"):
        truth = truth_of(d, label_smoothing=0.1)
    with gradients_made_in(mode):
        with running(paths[0]):
            loss = mlce(d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"],
                        label_smoothing=0.1)  # fmt: skip
        with running(paths[1]):
            loss.backward()
    check_all(d, loss, truth)


def test_thread_counts_and_runs_give_the_same_bits(threads: Any) -> None:
    """No sum is cut by threads here, unlike in torch's products."""
    if "amx" not in usable_paths():
        pytest.skip("this machine cannot run the amx path")
    for rows, dim, classes in ((1000, 100, 257), (70, 768, 1000)):
        d = problem(rows, dim, classes)
        for reduction in ("mean", "none"):
            results = []
            for count in (1, 2, 3, 5, 1, 2, 2, 2, 2, 2):
                threads(count)
                given = copies(d)
                with running("amx"):
                    loss = run(given, reduction=reduction, label_smoothing=0.1)
                results.append([loss.detach(), *(given[k].grad for k in "xwb")])
            for other in results[1:]:
                assert_same(other, results[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_minus_infinity_panels_before_low_logits(smoothing: float) -> None:
    """Whole panels of -inf columns, and then logits whose exp alone would leave float32."""
    for level in (0.0, -50.0, -88.0, -88.7, -89.0, -90.0, -100.0, 88.7, 100.0):
        d = problem(40, 32, 96)
        with torch.no_grad():
            d["w"] *= 0.05
            d["b"].fill_(level)
            d["b"][:32] = d["b"][64:] = -torch.inf
        d["target"] = d["target"] % 32 + 32
        if smoothing:  # the loss is Inf then; the gradients are those of a finite one
            loss = run(d, label_smoothing=smoothing)
            assert torch.isinf(loss)
            assert all(torch.isfinite(d[k].grad).all() for k in "xwb")
        else:
            check(d, label_smoothing=0.0)


def test_every_other_column_minus_infinity() -> None:
    d = problem(40, 33, 100)
    with torch.no_grad():
        d["b"][::2] = -torch.inf
    d["target"] = d["target"] // 2 * 2 + 1
    check(d, label_smoothing=0.0)
    assert not d["w"].grad[::2].any()


def test_a_weight_of_minus_infinity() -> None:
    """Its class has p = 0; tokens of the last strip that are not there make a NaN, and keep it."""
    d = problem(40, 32, 70)
    with torch.no_grad():
        d["x"].abs_()
        d["w"][5] = -torch.inf
    d["target"] = d["target"] % 5
    d["x"].requires_grad_(False)
    loss = run(d)
    assert torch.isfinite(loss)
    assert torch.isfinite(d["w"].grad).all()
    assert torch.isfinite(d["b"].grad).all()


def test_all_columns_minus_infinity() -> None:
    """As softmax has it: NaN in loss and gradients, and no class is the largest."""
    d = problem(40, 33, 70)
    with torch.no_grad():
        d["b"].fill_(-torch.inf)
    loss, metrics = mlce(
        d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], return_metrics=True
    )
    loss.backward()
    assert torch.isnan(loss)
    assert all(torch.isnan(d[k].grad[d["mask"]] if k == "x" else d[k].grad).all() for k in "xwb")
    assert not metrics.histogram.any()


def test_large_logits() -> None:
    for bias in (torch.full((100,), 1e4), torch.full((100,), -1e4), torch.randn(100).sign() * 1e4):
        d = problem(40, 50, 100)
        d["b"] = (d["b"].detach() + bias.bfloat16()).requires_grad_()
        check(d)


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
@pytest.mark.parametrize("classes", [33, 1000])
def test_a_number_added_to_all_logits_costs_no_accuracy(classes: int, smoothing: float) -> None:
    """The logits are exact with and without it. Panels whose maximum rises are among them."""
    w = torch.arange(classes).remainder(97).div(8).bfloat16()[:, None]
    x = torch.tensor([[1.0], [-1.0]] * 20).bfloat16()
    target = torch.arange(40) % classes
    found = [
        mlce(x, w, target, linear_bias=torch.full((classes,), shift), reduction="none",
             label_smoothing=smoothing)
        for shift in (0.0, 2.0**13, -(2.0**13))
    ]  # fmt: skip
    truth = linear_truth(array(x), array(w), None, target.numpy(), reduction="none",
                         label_smoothing=smoothing)  # fmt: skip
    for loss in found:
        assert abs(array(loss) - truth.loss).max() < 4e-6


def test_equal_logits_near_the_largest_float() -> None:
    x, w = torch.zeros(40, 32).bfloat16(), torch.zeros(100, 32).bfloat16()
    x[:, 0], w[:, 0] = 1.0, 2.0**126
    loss = mlce(x, w, torch.arange(40), label_smoothing=0.1)
    assert loss.item() == pytest.approx(np.log(100.0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_stays_in_its_row(value: float) -> None:
    d = problem(70, 50, 100)
    d["mask"][:] = True
    clean = copies(d)
    with torch.no_grad():
        d["x"][0, [3, 40], 7] = value
    rows = [run(given, reduction="none", label_smoothing=0.1) for given in (d, clean)]
    wrong = torch.zeros_like(d["mask"])
    wrong[0, [3, 40]] = True
    assert torch.equal(torch.isnan(rows[0]), wrong)
    assert torch.equal(torch.isnan(d["x"].grad).any(-1), wrong)
    assert_same(rows[0][~wrong], rows[1][~wrong])
    assert_same(d["x"].grad[~wrong], clean["x"].grad[~wrong])
    assert torch.isnan(d["w"].grad).all()


def test_metrics_of_ties_and_nan() -> None:
    """The lowest class wins, across panels too; a NaN loss has no class."""
    w = torch.zeros(100, 3, dtype=torch.bfloat16)
    w[[5, 40, 99]] = 1.0
    x = torch.ones(1, 4, 3, dtype=torch.bfloat16)
    x[0, 2] = -1.0
    x[0, 3] = torch.nan
    _, metrics = mlce(x, w, torch.tensor([[5, 40, 0, 1]]), return_metrics=True)
    assert metrics.histogram.nonzero().flatten().tolist() == [0, 5]
    assert metrics.histogram[[0, 5]].tolist() == [1, 2]
    assert metrics.accuracy.item() == 0.5
    b = torch.zeros(100)
    b[7] = torch.nan  # beside classes that have a largest one
    _, metrics = mlce(x, w, torch.tensor([[5, 40, 0, 1]]), linear_bias=b, return_metrics=True)
    assert not metrics.histogram.any()


def test_weight_and_input_with_strides() -> None:
    d = problem(40, 64, 100)
    want = [run(d).detach(), *(d[k].grad for k in "xwb")]
    wide = torch.full((100, 2 * 64 + 3), torch.nan, dtype=torch.bfloat16)
    layouts = {
        "rows apart": wide[:, 1:65],
        "every other value": wide[:, 1:129:2],
        "transposed": torch.empty(64, 100, dtype=torch.bfloat16).t(),
    }
    for w in layouts.values():
        w.copy_(d["w"].detach())
        x = torch.full((45, 1, 67), torch.nan, dtype=torch.bfloat16).transpose(0, 1)[..., 2:66]
        x.copy_(d["x"].detach())
        given = {**copies(d), "x": x.requires_grad_(), "w": w.requires_grad_()}
        loss = run(given)
        assert_same([loss.detach(), *(given[k].grad for k in "xwb")], want)


def test_prefix_sliced_targets_and_weights_of_zero() -> None:
    d = make(torch.bfloat16, 3, 30, 20, 40, 70, prefix=2)
    d["target"] = torch.randint(0, 70, (3, 61))[:, 1::2]
    weight = torch.rand(3, 30) * (torch.rand(3, 30) < 0.5)
    options = {"token_weight": weight, "label_smoothing": 0.1}
    loss = mlce(
        d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], num_prefix_tokens=2, **options
    )
    loss.backward()
    check_all(d, loss, truth_of(d, 2, **options), 2)
    assert not d["x"].grad[:, 2:][weight == 0].any()


def test_nothing_counted() -> None:
    for reduction in ("mean", "sum", "none"):
        d = problem(0, 33, 50)
        loss = run(d, reduction=reduction, label_smoothing=0.1)
        assert torch.isnan(loss) if reduction == "mean" else not loss.any()
        for name in "xwb":
            assert d[name].grad.shape == d[name].shape
            assert not d[name].grad.any()


@pytest.mark.parametrize("frozen", ["x", "w", "b", "xw", "xb", "wb"])
def test_frozen_parts(frozen: str) -> None:
    d = problem(40, 33, 50)
    for name in frozen:
        d[name].requires_grad_(False)
    check(d)
    assert all(d[name].grad is None for name in frozen)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_contiguous_and_no_larger_than_they_look(mode: str) -> None:
    """Whole panels are computed; what lies behind the last class and value is no part of dW."""
    d = problem(40, 33, 50)
    with gradients_made_in(mode):
        run(d)
    for name in "xwb":
        grad = d[name].grad
        assert grad.is_contiguous()
        assert grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()


def test_subnormal_values_count_as_zero() -> None:
    """What the products make of them; the bound has their size in it, 2^-126."""
    d = problem(33, 32, 40)
    with torch.no_grad():
        d["x"] *= 2.0**-128
    assert (array(d["x"]) != 0).any()
    check(d)
    d = problem(33, 32, 40)
    with torch.no_grad():
        d["w"] *= 2.0**-128
    check(d)
    assert np.isfinite(array(d["w"].grad)).all()
