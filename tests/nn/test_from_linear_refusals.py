"""What from_linear takes computes F.linear of its own Parameters; what else, it refuses by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clustermim_fast.nn import MaskedLinearCrossEntropyLoss


class Adapted(nn.Linear):
    """A layer with something beside its weight, as LoRA's."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + input.sum(-1, keepdim=True)


class Renamed(nn.Linear):
    pass


@pytest.mark.parametrize(
    "layer",
    [
        Adapted(6, 5),
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)),
        nn.LazyLinear(5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_computes_something_else(layer: nn.Linear) -> None:
    with pytest.raises(TypeError, match=r"must compute F\.linear.* give ops\.masked_linear_cross"):
        MaskedLinearCrossEntropyLoss.from_linear(layer)


def test_a_subclass_that_computes_the_same() -> None:
    layer = Renamed(6, 5)
    assert MaskedLinearCrossEntropyLoss.from_linear(layer).weight is layer.weight


def test_repr_says_how_many_tokens_have_no_target() -> None:
    loss = MaskedLinearCrossEntropyLoss.from_linear(nn.Linear(6, 5), num_prefix_tokens=3)
    assert "num_prefix_tokens=3" in repr(loss)
