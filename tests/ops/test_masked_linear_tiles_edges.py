"""The linear loss in tiles (AMX) with extreme numbers: infinities, NaN, large, subnormal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import ops
from tests.ops.harness import assert_same
from tests.ops.linear_loss import copies
from tests.ops.loss_checks import UNIT, array, assert_within
from tests.ops.loss_truth import linear_truth
from tests.ops.tiles_loss import check, problem, run

mlce = ops.masked_linear_cross_entropy


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
    loss = run(d)
    assert torch.isfinite(loss)
    assert torch.isfinite(d["w"].grad).all()
    assert torch.isfinite(d["b"].grad).all()
    assert not torch.isfinite(d["x"].grad[d["mask"]]).any()  # 0 times -inf, as in torch


def test_a_weight_of_minus_infinity_spoils_no_more_of_dx_than_in_torch() -> None:
    """With smoothing dX is Inf in that column in torch, whose gradient there is -e/K and not 0."""
    d = problem(40, 32, 70)
    with torch.no_grad():
        d["x"].abs_()
        d["w"][5, 3] = -torch.inf
    d["target"] = d["target"] % 5
    theirs = copies(d)
    run(d, label_smoothing=0.1)
    logits = F.linear(theirs["x"][d["mask"]], theirs["w"], theirs["b"])
    F.cross_entropy(logits, d["target"][d["mask"]], label_smoothing=0.1).backward()
    for name in "xwb":
        assert_same(torch.isfinite(d[name].grad), torch.isfinite(theirs[name].grad))
    assert not torch.isfinite(d["x"].grad[d["mask"]][:, 3]).any()


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
    # exp(0), their sum 100 and the smoothing's part are exact; log and the rest round.
    assert_within("loss", loss, np.log(100.0), 4 * UNIT[torch.float32] * np.log(100.0))


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
