"""Problems in bfloat16 that the path in tiles (AMX) takes where the machine has them."""

from __future__ import annotations

from typing import Any

import torch

from clustermim_fast import ops
from tests.ops.linear_loss import check_all, make, truth_of

mlce = ops.masked_linear_cross_entropy


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
