"""masked_cross_entropy at its edges: large logits, NaN, nothing counted, few or many dimensions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clustermim_fast import ops
from tests.ops.logits_loss import make, truth_of
from tests.ops.loss_checks import BACKENDS, assert_within

mce = ops.masked_cross_entropy


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
