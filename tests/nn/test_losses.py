"""The loss modules: values of the ops, parameters like nn.Linear's, checkpoints as they were."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from clustermim_fast import ops
from clustermim_fast.nn import MaskedCrossEntropyLoss, MaskedLinearCrossEntropyLoss


def batch() -> dict[str, Any]:
    return {
        "hidden": torch.randn(2, 9, 6),
        "target": torch.randint(0, 5, (2, 8)),
        "mask": torch.rand(2, 8) < 0.6,
    }


def test_logits_module_is_the_op() -> None:
    weight = torch.rand(5)
    options = {"reduction": "sum", "ignore_index": 2, "label_smoothing": 0.1}
    module = MaskedCrossEntropyLoss(weight=weight, **options)
    logits, target, token_weight = (
        torch.randn(2, 8, 5),
        torch.randint(0, 5, (2, 8)),
        torch.rand(2, 8),
    )
    want = ops.masked_cross_entropy(
        logits, target, weight=weight, token_weight=token_weight, **options
    )
    assert torch.equal(module(logits, target, token_weight=token_weight), want)
    assert list(module.state_dict()) == ["weight"]
    assert module.to(torch.float64).weight.dtype == torch.float64
    assert list(MaskedCrossEntropyLoss().state_dict()) == []


def test_linear_module_is_the_op() -> None:
    b = batch()
    options = {"label_smoothing": 0.1, "num_prefix_tokens": 1}
    module = MaskedLinearCrossEntropyLoss(6, 5, return_metrics=True, **options)
    loss, metrics = module(b["hidden"], b["target"], b["mask"])
    want = ops.masked_linear_cross_entropy(
        b["hidden"], module.weight, b["target"], b["mask"], linear_bias=module.bias, **options
    )
    assert torch.equal(loss, want)
    assert int(metrics.num_counted) == int(b["mask"].sum())
    loss.backward()
    assert module.weight.grad.any()
    assert module.bias.grad.any()
    torch.testing.assert_close(
        module.logits(b["hidden"]), nn.functional.linear(b["hidden"], module.weight, module.bias)
    )


def test_parameters_are_those_of_nn_linear() -> None:
    ours = MaskedLinearCrossEntropyLoss(50, 400, dtype=torch.float64)
    linear = nn.Linear(50, 400, dtype=torch.float64)
    for name, parameter in linear.named_parameters():
        mine = getattr(ours, name)
        assert mine.shape == parameter.shape
        assert mine.dtype == parameter.dtype
        assert mine.abs().max() <= 50**-0.5
        assert abs(float((mine.detach().std() / parameter.detach().std()).log())) < 0.2
    assert MaskedLinearCrossEntropyLoss(3, 4, bias=False).bias is None
    assert MaskedLinearCrossEntropyLoss(3, 4, device="meta").weight.is_meta
    ours.load_state_dict(linear.state_dict(), strict=True)


class Codebase(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 5)


class InPlace(Codebase):
    def __init__(self) -> None:
        super().__init__()
        self.head = MaskedLinearCrossEntropyLoss.from_linear(self.head)


class Beside(Codebase):
    def __init__(self) -> None:
        super().__init__()
        self.loss = MaskedLinearCrossEntropyLoss.from_linear(self.head)


class Before(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        head = nn.Linear(6, 5)
        self.loss = MaskedLinearCrossEntropyLoss.from_linear(head)
        self.head = head


@pytest.mark.parametrize("form", [InPlace, Beside, Before])
def test_from_linear_loads_an_old_checkpoint_strictly(form: type[nn.Module]) -> None:
    old = Codebase()
    new = form()
    gc.collect()
    new.load_state_dict(old.state_dict(), strict=True)
    for name, value in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], value)
    if form is not Before:  # the first of two names is the one that is written
        assert new.state_dict().keys() == old.state_dict().keys()
        old.load_state_dict(new.state_dict(), strict=True)


def test_from_linear_in_place_still_reports_missing_keys() -> None:
    new = InPlace()
    gc.collect()
    with pytest.raises(RuntimeError, match=r"head\.weight"):
        new.load_state_dict({}, strict=True)


def test_from_linear_shares_parameters_and_gradients() -> None:
    linear = nn.Linear(6, 5)
    module = MaskedLinearCrossEntropyLoss.from_linear(linear, reduction="sum")
    assert module.weight is linear.weight
    assert module.bias is linear.bias
    assert module.reduction == "sum"
    b = batch()
    module(b["hidden"][:, 1:], b["target"]).backward()
    assert linear.weight.grad.any()
    assert MaskedLinearCrossEntropyLoss.from_linear(nn.Linear(6, 5, bias=False)).bias is None
    with pytest.raises(TypeError, match=r"must be a torch.nn.Linear, got Conv2d"):
        MaskedLinearCrossEntropyLoss.from_linear(nn.Conv2d(1, 1, 1))


def test_modules_copy_pickle_and_move() -> None:
    model = Beside()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.loss.weight, model.head.weight)
        assert other.loss.weight is other.head.weight
        assert other.state_dict().keys() == model.state_dict().keys()  # as an averaged model's
        other.load_state_dict(model.state_dict())
        alone = copy.deepcopy(other.loss)
        assert set(alone.state_dict()) == {"weight", "bias"}
        with pytest.raises(RuntimeError, match="Missing key"):
            alone.load_state_dict({})
    model.to(torch.bfloat16)
    assert model.loss.weight is model.head.weight
    assert model.loss.weight.dtype == torch.bfloat16
    assert len(list(model.parameters())) == 2


def test_compiled_module() -> None:
    torch._dynamo.reset()
    module = MaskedLinearCrossEntropyLoss(6, 5, num_prefix_tokens=1)
    b = batch()
    want = module(b["hidden"], b["target"], b["mask"])
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(
        b["hidden"], b["target"], b["mask"]
    )
    assert torch.equal(want, got)
    got.backward()
    assert module.weight.grad.any()
    torch._dynamo.reset()
