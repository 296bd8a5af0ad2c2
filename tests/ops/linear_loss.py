"""Problems for masked_linear_cross_entropy, their truth, and the comparison of the two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from clustermim_fast.ops.masked_linear_cross_entropy import autograd
from tests.ops.loss_checks import (
    KERNELS,
    array,
    assert_within,
    operand_unit,
    softmax_unit,
    tokens_mask,
)
from tests.ops.loss_truth import Truth, linear_truth

MODES = ("forward", "recompute")


@contextmanager
def gradients_made_in(mode: str) -> Iterator[None]:
    """ "forward" leaves the choice to the op, "recompute" forbids to make them in the forward."""
    before = autograd.needed_in_forward
    if mode == "recompute":
        autograd.needed_in_forward = lambda *_: (False, False, False)
    try:
        yield
    finally:
        autograd.needed_in_forward = before


def late_factor(
    grad_output: Any,
    reduction: str,
    dtype: torch.dtype,
    backend: str = KERNELS,
    mode: str = "forward",
) -> float:
    """What a dX of that dtype is multiplied by after it was rounded."""
    forward = mode == "forward" and backend == "cpu" and reduction != "none"
    return float(grad_output) if forward and dtype.itemsize > 2 else 1.0


def make(
    dtype: torch.dtype = torch.float32,
    batch: int = 3,
    tokens: int = 10,
    masked: int = 7,
    dim: int = 16,
    classes: int = 13,
    prefix: int = 0,
) -> dict[str, Any]:
    """x, w, b that require grad, target and mask with ``masked`` tokens of each sample."""
    x = torch.randn(batch, prefix + tokens, dim).to(dtype).requires_grad_()
    w = (torch.randn(classes, dim) * 0.3).to(dtype).requires_grad_()
    b = torch.randn(classes).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (batch, tokens))
    return {"x": x, "w": w, "b": b, "target": target, "mask": tokens_mask(batch, tokens, masked)}


def truth_of(d: dict[str, Any], prefix: int = 0, backend: str = KERNELS, **options: Any) -> Truth:
    """The float64 answer, with bounds for what ``backend`` does with these dtypes."""
    x = array(d["x"])[:, prefix:]
    wide = any(d[k] is not None and d[k].dtype == torch.float64 for k in "xwb")
    unit = 2.0**-53 if wide else 2.0**-24
    no_forward = options.get("reduction") == "none"
    options.setdefault("softmax_unit", 0.0 if no_forward else softmax_unit(d["x"], d["w"], backend))
    if options.get("token_weight") is not None:
        options["token_weight"] = array(options["token_weight"]).reshape(-1)
    return linear_truth(
        x.reshape(-1, x.shape[-1]),
        array(d["w"]),
        None if d["b"] is None else array(d["b"]),
        d["target"].reshape(-1).numpy(),
        None if d["mask"] is None else (d["mask"] != 0).reshape(-1).numpy(),
        unit=unit,
        operand_unit=operand_unit(d["x"], d["w"], backend=backend),
        centred=backend == "cuda",
        **options,
    )


def check_all(
    d: dict[str, Any],
    loss: torch.Tensor,
    truth: Truth,
    prefix: int = 0,
    factor: float = 1.0,
    dx_dtype: torch.dtype | None = None,
) -> None:
    """Loss and the gradients in ``d`` are within the truth's bounds; zeros in the prefix.

    ``factor``: see :func:`late_factor`. dW and db are multiplied in float32; that rounding is in
    their bounds. ``dx_dtype``: what dX was rounded to under autocast, before its own dtype.
    """
    shape = loss.shape
    assert_within("loss", loss, truth.loss.reshape(shape), truth.loss_bound.reshape(shape))
    grad = d["x"].grad
    if grad is not None:
        assert grad.dtype == d["x"].dtype
        assert grad.shape == d["x"].shape
        assert not grad[:, :prefix].any()
        rest = grad[:, prefix:]
        want, bound = (np.reshape(v, rest.shape) for v in (truth.dx, truth.dx_bound))
        assert_within("dX", rest, want, bound, factor, dx_dtype)
    if d["w"].grad is not None:
        assert_within("dW", d["w"].grad, truth.dw, truth.dw_bound)
    if d["b"] is not None and d["b"].grad is not None:
        assert_within("db", d["b"].grad, truth.db, truth.db_bound)


def copies(d: dict[str, Any]) -> dict[str, Any]:
    """The same problem with fresh leaves."""
    fresh = {k: d[k].detach().clone().requires_grad_() for k in "xwb" if d.get(k) is not None}
    return {**d, **fresh}
