"""masked_linear_cross_entropy at its edges: nothing counted, one class, weights near overflow."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast import ops
from tests.ops.linear_loss import check_all, make, truth_of
from tests.ops.loss_checks import BACKENDS

mlce = ops.masked_linear_cross_entropy


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smoothing_with_weights_whose_sum_overflows(backend: str, dtype: torch.dtype) -> None:
    """Their mean is finite, and so is dX; tokens of 0 there keep the logits small."""
    d = make(dtype, classes=100)
    with torch.no_grad():
        d["x"][..., 3] = 0.0
        d["w"][:, 3] = torch.rand(100) * 1e38
    assert torch.isinf(d["w"].float().sum(0)[3])
    loss = mlce(
        d["x"], d["w"], d["target"], d["mask"], linear_bias=d["b"], label_smoothing=0.1,
        backend=backend,
    )  # fmt: skip
    loss.backward()
    check_all(d, loss, truth_of(d, backend=backend, label_smoothing=0.1))
