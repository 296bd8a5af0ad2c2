"""Gradients of ``masked_linear_cross_entropy``: when they are made, and of what."""

from __future__ import annotations

import math
from typing import Any

import torch

from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_linear_cross_entropy import reference
from clustermim_fast.ops.masked_linear_cross_entropy.problem import ON_GPU
from clustermim_fast.ops.masked_linear_cross_entropy.registered import backward_op, forward_op


class MaskedLinearCrossEntropy(torch.autograd.Function):
    """Two gradient modes.

    "forward": the forward op makes the gradients too, for a grad_output of 1, while the logits are
    there; the backward multiplies them by another one. "recompute": the forward keeps what it was
    given and each row's softmax statistics, and the backward makes the logits again, knowing
    grad_output and the divisor: a fourth product, and right for any grad_output. float16 needs that
    (1 / N without the loss scale underflows), and so do a grad_output for each row, a graph that is
    being compiled, and a bfloat16 dX whose factor is no power of two, which would be rounded twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        token_weight: torch.Tensor | None,
        options: tuple[str, int, float, int, int],
        metrics: bool,
        compute_dtype: torch.dtype | None,
        backend: str,
        needs: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        rounded = weight if compute_dtype is None else weight.to(compute_dtype)
        loss, rows, count, stats, divisor, correct, histogram, *grads = forward_op(
            input, rounded, bias, target, mask, token_weight, *options, metrics, *needs,
            backend,
        )  # fmt: skip
        ctx.save_for_backward(
            input, weight, bias, target, mask, token_weight, rows, count, stats, divisor, *grads
        )
        ctx.in_forward = any(needs)
        ctx.options, ctx.compute_dtype, ctx.backend = options, compute_dtype, backend
        count_out = count.clone()
        ctx.mark_non_differentiable(correct, histogram, count_out)
        ctx.set_materialize_grads(False)  # three launches, of zeros for what has no gradient
        return loss, correct, histogram, count_out

    @staticmethod
    def backward(
        ctx: Any, grad_loss: torch.Tensor | None, *_: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 11
        input, weight, bias, target, _, token_weight, rows, count, stats, divisor, *grads_of_one = (
            ctx.saved_tensors
        )
        needs = (
            ctx.needs_input_grad[0],
            ctx.needs_input_grad[1],
            bias is not None and ctx.needs_input_grad[2],
        )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grads = _differentiable_grads(ctx, grad_loss, needs)
        elif ctx.in_forward and ctx.backend in ON_GPU and _on_device(grad_loss):
            grads = _scaled_on_device(ctx, grad_loss, needs)
        else:
            factor = float(grad_loss) if ctx.in_forward else math.nan
            again, made = needs, grads_of_one
            if math.isfinite(factor):
                again = (needs[0] and _rounds_twice(input.dtype, factor), False, False)
            if any(again):
                rounded = weight if ctx.compute_dtype is None else weight.to(ctx.compute_dtype)
                made = backward_op(
                    grad_loss, input, rounded, bias, target, token_weight, rows, count, stats,
                    divisor, *ctx.options, *again, ctx.backend,
                )  # fmt: skip
            grads = [
                (made[i] if again[i] else _scaled(grads_of_one[i], factor)).to(like.dtype)
                if needs[i] and like is not None
                else None
                for i, like in enumerate((input, weight, bias))
            ]
        return (*grads, *[None] * 8)


# torch before 2.5 does not tell.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _rounds_twice(dtype: torch.dtype, factor: float) -> bool:
    """Does multiplying a saved 16-bit dX round it again?"""
    return dtype.itemsize == 2 and factor != 0 and abs(math.frexp(factor)[0]) != 0.5


def _scaled(grad: torch.Tensor, factor: float) -> torch.Tensor:
    """``factor`` times a saved gradient: itself where no second backward can come."""
    if _graph_is_kept():
        return grad * factor
    return grad if factor == 1.0 else grad.mul_(factor)


def _on_device(grad_loss: torch.Tensor) -> bool:
    """Would reading it make the host wait?"""
    return grad_loss.is_cuda or _triton.interpreted()


def _scaled_on_device(
    ctx: Any, grad_loss: torch.Tensor, needs: tuple[bool, bool, bool]
) -> list[torch.Tensor | None]:
    """The saved gradients times ``grad_loss``, which stays where it is."""
    from clustermim_fast.ops.masked_linear_cross_entropy import triton_kernel

    input, weight, bias, target, _, *rest = ctx.saved_tensors
    token_weight, rows, count, stats, divisor, *of_one = rest
    reduction, _, smoothing, prefix, masked_per_sample = ctx.options
    rounded = weight if ctx.compute_dtype is None else weight.to(ctx.compute_dtype)
    with _triton.launching_on(input), torch.autocast(input.device.type, enabled=False):
        made = triton_kernel.scaled_gradients(
            grad_loss, of_one, _graph_is_kept(), input, rounded, bias, target, token_weight, rows,
            count, stats, divisor, reduction, smoothing, prefix, masked_per_sample,
            hopper=ctx.backend == "cuda",
        )  # fmt: skip
    return [
        grad.to(like.dtype) if needed and like is not None else None
        for grad, needed, like in zip(made, needs, (input, weight, bias), strict=True)
    ]


def _differentiable_grads(
    ctx: Any, grad_loss: torch.Tensor, needs: tuple[bool, bool, bool]
) -> list[torch.Tensor | None]:
    """create_graph: the composite's own gradients, which can be differentiated again."""
    input, weight, bias, target, mask, token_weight, rows, count = ctx.saved_tensors[:8]
    # Views, so that a tensor given twice keeps two gradients.
    x, w = input.view_as(input), weight.view_as(weight)
    b = None if bias is None else bias.view_as(bias)
    rounded = w if ctx.compute_dtype is None else w.to(ctx.compute_dtype)
    with torch.autocast(input.device.type, enabled=False):
        loss = reference.composite(
            x, rounded, b, target, mask, token_weight, rows, count, *ctx.options
        )[0]
        wanted = [t for t, needed in zip((x, w, b), needs, strict=True) if needed and t is not None]
        found = iter(torch.autograd.grad(loss, wanted, grad_loss, create_graph=True))
    return [next(found) if needed else None for needed in needs]


def needed_in_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    reduction: str,
    backend: str,
    compute_dtype: torch.dtype | None,
) -> tuple[bool, bool, bool]:
    """The gradients of input, weight and bias that the forward makes."""
    forward = backend == "cpu"
    if backend in ON_GPU:
        # A bfloat16 dX of float32 products is not made again apart.
        operands = {input.dtype, compute_dtype or weight.dtype}
        forward = input.dtype == torch.float32 or len(operands) == 1
    forward = forward and reduction != "none" and input.dtype != torch.float16
    # A traced graph cannot ask what its grad_output is.
    if not forward or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (False, False, False)
    return (
        input.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad
    )  # fmt: skip
