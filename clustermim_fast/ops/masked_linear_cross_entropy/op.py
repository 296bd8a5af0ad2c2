"""``masked_linear_cross_entropy``: linear classifier and loss, without the logits of all rows."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import torch

from clustermim_fast.ops import _backend, _checks, _triton
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import rows as _rows
from clustermim_fast.ops.masked_linear_cross_entropy import reference
from clustermim_fast.ops.masked_linear_cross_entropy.problem import logits_stay
from clustermim_fast.ops.masked_linear_cross_entropy.registered import (
    backward_op,
    check_operands,
    forward_op,
)

OP = "masked_linear_cross_entropy"
IMPLEMENTED = ("reference", "cpu", "triton")


class Metrics(NamedTuple):
    """What the loss sees anyway; tensors on the input's device, read them when you log.

    accuracy: float32 [], correct / counted (nan when nothing is counted).
    histogram: int64 [K], how often each class is the largest logit of a counted token (lowest id on
        ties; a token whose loss is NaN has none).
    num_counted: int64 [], counted tokens.
    """

    accuracy: torch.Tensor
    histogram: torch.Tensor
    num_counted: torch.Tensor


class _MaskedLinearCrossEntropy(torch.autograd.Function):
    """Two gradient modes.

    "forward": the forward op makes the gradients too, for a grad_output of 1, while the logits are
    there; the backward multiplies them by another one. "recompute": the forward keeps what it was
    given and each row's softmax statistics, and the backward makes the logits again, knowing
    grad_output and the divisor: a fourth product, and right for any grad_output. float16 needs that
    (1 / N without the loss scale underflows), and so do a grad_output for each row, a graph that is
    being compiled, a bfloat16 dX whose factor is no power of two, which would be rounded twice, and
    on Triton all but bfloat16 with few classes.
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
        options: tuple[str, int, float, int],
        masked_per_sample: int,
        metrics: bool,
        compute_dtype: torch.dtype | None,
        backend: str,
        needs: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        rounded = weight if compute_dtype is None else weight.to(compute_dtype)
        loss, rows, count, stats, divisor, correct, histogram, *grads = forward_op(
            input, rounded, bias, target, mask, token_weight, *options, masked_per_sample, metrics,
            *needs, backend,
        )  # fmt: skip
        ctx.save_for_backward(
            input, weight, bias, target, mask, token_weight, rows, count, stats, divisor, *grads
        )
        ctx.in_forward = any(needs)
        ctx.options, ctx.compute_dtype, ctx.backend = options, compute_dtype, backend
        ctx.masked_per_sample = masked_per_sample
        count_out = count.clone()
        ctx.mark_non_differentiable(correct, histogram, count_out)
        return loss, correct, histogram, count_out

    @staticmethod
    def backward(
        ctx: Any, grad_loss: torch.Tensor, *_: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
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
        elif ctx.in_forward and ctx.backend == "triton" and _on_device(grad_loss):
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
        return (*grads, *[None] * 9)


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
    reduction, _, smoothing, prefix = ctx.options
    rounded = weight if ctx.compute_dtype is None else weight.to(ctx.compute_dtype)
    with _triton.launching_on(input), torch.autocast(input.device.type, enabled=False):
        made = triton_kernel.scaled_gradients(
            grad_loss, of_one, _graph_is_kept(), input, rounded, bias, target, token_weight, rows,
            count, stats, divisor, reduction, smoothing, prefix,
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
        options = (*ctx.options, ctx.masked_per_sample)
        loss = reference.composite(
            x, rounded, b, target, mask, token_weight, rows, count, *options
        )[0]
        wanted = [t for t, needed in zip((x, w, b), needs, strict=True) if needed and t is not None]
        found = iter(torch.autograd.grad(loss, wanted, grad_loss, create_graph=True))
    return [next(found) if needed else None for needed in needs]


def _needed_in_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    reduction: str,
    backend: str,
    compute_dtype: torch.dtype | None,
) -> tuple[bool, bool, bool]:
    """The gradients of input, weight and bias that the forward makes."""
    forward = backend == "cpu"
    if backend == "triton":
        forward = logits_stay(input, compute_dtype or weight.dtype, weight.shape[0])
        forward = forward and (bias is None or bias.dtype != torch.float64)
    forward = forward and reduction != "none" and input.dtype != torch.float16
    # A traced graph cannot ask what its grad_output is.
    if not forward or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (False, False, False)
    return (
        input.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad
    )  # fmt: skip


@overload
def masked_linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None = ...,
    *,
    linear_bias: torch.Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    token_weight: torch.Tensor | None = ...,
    num_prefix_tokens: int = ...,
    masked_per_sample: int | None = ...,
    return_metrics: Literal[False] = ...,
    backend: str | None = ...,
) -> torch.Tensor: ...
@overload
def masked_linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None = ...,
    *,
    linear_bias: torch.Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int = ...,
    label_smoothing: float = ...,
    token_weight: torch.Tensor | None = ...,
    num_prefix_tokens: int = ...,
    masked_per_sample: int | None = ...,
    return_metrics: Literal[True],
    backend: str | None = ...,
) -> tuple[torch.Tensor, Metrics]: ...
def masked_linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    linear_bias: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    token_weight: torch.Tensor | None = None,
    num_prefix_tokens: int = 0,
    masked_per_sample: int | None = None,
    return_metrics: bool = False,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, Metrics]:
    """Loss of ``F.linear(input, W, b)`` at the counted tokens, without making all the logits.

    Equals ``F.cross_entropy(F.linear(input[..., P:, :][mask], W, b), target[mask], ...)``. A token
    counts where ``mask`` is True and ``target != ignore_index``; nothing at the others is ever
    looked at, and they cost nothing. Logits, loss and the sums of dW and db are float32 (float64 if
    input, weight or bias is float64). Each gradient is rounded once, to its tensor's dtype. Where
    grad_output is no power of two, a float32 one is rounded once more, and a 16-bit dX takes two
    more matrix products instead. With bfloat16 input and weight on a CPU that has tiles (AMX), the
    gradient of the logits is rounded to bfloat16 before it is multiplied by them, as torch's own
    is. Differentiable twice.

    Args:
        input: [..., T, d] float32, float64, float16 or bfloat16, T = num_prefix_tokens + L; any
            strides (one copy if the last dimension is not dense).
        linear_weight: [K, d] floating, K >= 1.
        target: [..., L] int64 or int32, class ids in [0, K).
        mask: [..., L]; bool, True = counted; another dtype means ``mask != 0``; None = all.
        linear_bias: [K] floating, or None.
        reduction: "mean" | "sum" | "none" ([..., L], zeros where not counted).
        ignore_index: tokens of this target are not counted, inside the mask too.
        label_smoothing: alpha in [0, 1]; the target keeps 1 - alpha, each class gets alpha / K.
        token_weight: [..., L] floating, >= 0: "mean" is sum(w * loss) / sum(w). No gradient.
        num_prefix_tokens: tokens at the front ([cls], registers) that have no target; their
            gradient is zero.
        masked_per_sample: how many tokens every sample's mask holds, where that is fixed. On the
            CPU it is only checked.
        return_metrics: also return :class:`Metrics`.
        backend: "reference", "cpu", "triton" (float64 takes "reference" there, on the same device)
            or None (chosen by device).

    Under autocast, input and weight are rounded to the autocast dtype as ``F.linear`` would (bias
    and all else stay float32), and the gradient of a float32 weight stays unrounded.

    Returns:
        float32 loss (float64 if an operand is float64); with ``return_metrics`` (loss, Metrics).
        Nothing counted (or a total weight of 0): nan for "mean", and the gradients are zeros.

    Raises:
        IndexError: a counted target is outside [0, K), or ``masked_per_sample`` is not what the
            mask holds (CPU; on CUDA the tokens' losses are NaN).
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: a back-end was named that cannot run here.
    """
    floating = _checks.FLOATING
    _checks.require_tensor(OP, "input", input, dtypes=floating)
    _checks.require_tensor(OP, "linear_weight", linear_weight, dtypes=floating)
    if linear_bias is not None:
        _checks.require_tensor(OP, "linear_bias", linear_bias, dtypes=floating)
    arguments.check_int(OP, "num_prefix_tokens", num_prefix_tokens)
    check_operands(input, linear_weight, linear_bias, target, mask, token_weight, num_prefix_tokens)
    arguments.check_options(OP, reduction, ignore_index, label_smoothing)
    if masked_per_sample is not None:
        arguments.check_int(OP, "masked_per_sample", masked_per_sample)
        tokens = target.shape[-1]
        if not 0 <= masked_per_sample <= tokens:
            raise _checks.bad_value(
                OP, "masked_per_sample", f"in [0, L = {tokens}]", masked_per_sample
            )
    device = _checks.require_same_device(
        OP, input=input, linear_weight=linear_weight, linear_bias=linear_bias, target=target,
        mask=mask, token_weight=token_weight,
    )  # fmt: skip
    name = _backend.resolve(OP, backend, device, IMPLEMENTED)
    compute_dtype = None
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        # As autocast does for F.linear: everything but float64.
        autocast_dtype = torch.get_autocast_dtype(device.type)
        if input.dtype != torch.float64:
            input = input.to(autocast_dtype)
        if linear_weight.dtype not in (torch.float64, autocast_dtype):
            compute_dtype = autocast_dtype
    loss, correct, histogram, count = _MaskedLinearCrossEntropy.apply(
        input, linear_weight, linear_bias, target, _rows.as_mask(mask), token_weight,
        (reduction, ignore_index, float(label_smoothing), num_prefix_tokens),
        -1 if masked_per_sample is None else masked_per_sample, return_metrics, compute_dtype, name,
        _needed_in_forward(input, linear_weight, linear_bias, reduction, name, compute_dtype),
    )  # fmt: skip
    if not return_metrics:
        return loss
    return loss, Metrics((correct / count).float(), histogram, count)
