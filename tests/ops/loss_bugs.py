"""What the tests of the thirty bugs share: a small problem, its truth, a relative error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.ops import loss_truth
from tests.ops.loss_checks import KERNELS, array, operand_unit, softmax_unit


def problem(
    rows: int = 40, dim: int = 8, classes: int = 11, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, ...]:
    """x, w, b that require grad, and targets."""
    x = torch.randn(rows, dim).to(dtype).requires_grad_()
    w = torch.randn(classes, dim).to(dtype).requires_grad_()
    b = torch.randn(classes).to(dtype).requires_grad_()
    return x, w, b, torch.randint(0, classes, (rows,))


def truth(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    t: torch.Tensor,
    backend: str = KERNELS,
    **options: Any,
) -> loss_truth.Truth:
    """The float64 answer, with bounds for what ``backend`` does with these dtypes."""
    bias = None if b is None else array(b)
    units = {
        "operand_unit": operand_unit(x, w, backend=backend),
        "softmax_unit": softmax_unit(x, w, backend),
        "centred": backend == "cuda",
    }
    options = units | options
    return loss_truth.linear_truth(array(x), array(w), bias, t.numpy(), **options)


def relative_error(got: torch.Tensor, want: np.ndarray) -> float:
    return float(np.linalg.norm(array(got) - want) / np.linalg.norm(want))
