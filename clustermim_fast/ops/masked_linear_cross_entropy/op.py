"""``masked_linear_cross_entropy``: a linear classifier and its loss, without the logits of all rows."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch

from clustermim_fast.ops import _backend, _checks
from clustermim_fast.ops._library import define_op
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import rows as _rows
from clustermim_fast.ops.masked_cross_entropy.op import check_row_list
from clustermim_fast.ops.masked_linear_cross_entropy import cpu, reference

OP = "masked_linear_cross_entropy"
IMPLEMENTED = ("reference", "cpu")


class Metrics(NamedTuple):
    """What the loss sees anyway; tensors on the input's device, read them when you log.

    accuracy: float32 [], correct / counted (nan when nothing is counted).
    histogram: int64 [K], how often each class is the largest logit of a counted token (lowest id on
        ties; a token whose loss is NaN has none).
    count: int64 [], counted tokens.
    """

    accuracy: torch.Tensor
    histogram: torch.Tensor
    count: torch.Tensor


def _check_memory(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    prefix: int,
) -> None:
    """Shapes that agree: what the kernels read without looking, and what the public function refuses."""
    if input.dim() < 2:
        raise _checks.bad_value(OP, "input", "[..., T, d]", _checks.describe(input))
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != input.shape[-1]:
        expected = f"[K, d] with K >= 1 and d = input.shape[-1] = {input.shape[-1]}"
        raise _checks.bad_value(OP, "linear_weight", expected, _checks.describe(weight))
    if bias is not None and bias.shape != weight.shape[:1]:
        expected = f"[K] with K = linear_weight.shape[0] = {weight.shape[0]}"
        raise _checks.bad_value(OP, "linear_bias", expected, _checks.describe(bias))
    if not 0 <= prefix <= input.shape[-2]:
        raise _checks.bad_value(OP, "num_prefix_tokens", f"in [0, T = {input.shape[-2]}]", prefix)
    shape = (*input.shape[:-2], input.shape[-2] - prefix)
    what = "input.shape[:-1], less num_prefix_tokens"
    arguments.check_tokens(OP, target, mask, token_weight, shape, what)


def _forward_impl(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    prefix: int,
    masked_per_sample: int,
    metrics: bool,
    backend: str,
) -> tuple[torch.Tensor, ...]:
    _check_memory(input, weight, bias, target, mask, token_weight, prefix)
    forward = cpu.forward if backend == "cpu" else reference.forward
    with torch.autocast(input.device.type, enabled=False):
        return forward(
            input, weight, bias, target, mask, token_weight, reduction, ignore_index,
            label_smoothing, prefix, masked_per_sample, metrics,
        )  # fmt: skip


def _forward_fake(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    reduction: str,
    *_: Any,
) -> tuple[torch.Tensor, ...]:
    acc = arguments.accumulation_dtype(input, weight, bias)
    return (
        input.new_empty(target.shape if reduction == "none" else (), dtype=acc),
        target.new_empty((target.numel(),), dtype=torch.int64),
        target.new_empty((), dtype=torch.int64),
        input.new_empty((2, target.numel()), dtype=acc),
        input.new_empty((), dtype=torch.float64),
        target.new_empty((), dtype=torch.int64),
        target.new_empty((weight.shape[0],), dtype=torch.int64),
    )


def _backward_impl(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    stats: torch.Tensor,
    divisor: torch.Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    prefix: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_memory(input, weight, bias, target, None, token_weight, prefix)
    check_row_list(OP, target, rows, count, stats, divisor)
    with torch.autocast(input.device.type, enabled=False):
        if backend == "cpu":
            return cpu.backward(
                grad_loss, input, weight, bias, target, token_weight, rows, count, stats, divisor,
                reduction, label_smoothing, prefix, need_input, need_weight, need_bias,
            )  # fmt: skip
        return reference.backward(
            grad_loss, input, weight, bias, target, token_weight, rows, count, divisor, reduction,
            ignore_index, label_smoothing, prefix, need_input, need_weight, need_bias,
        )  # fmt: skip


def _backward_fake(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    stats: torch.Tensor,
    divisor: torch.Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    prefix: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    acc = arguments.accumulation_dtype(input, weight, bias)
    return (
        input.new_empty(input.shape if need_input else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,), dtype=acc),
        weight.new_empty(weight.shape[:1] if need_bias else (0,), dtype=acc),
    )


_forward_op = define_op(
    "masked_linear_cross_entropy(Tensor input, Tensor weight, Tensor? bias, Tensor target,"
    " Tensor? mask, Tensor? token_weight, str reduction, int ignore_index, float label_smoothing,"
    " int num_prefix_tokens, int masked_per_sample, bool metrics, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    impl=_forward_impl,
    fake=_forward_fake,
)
# Gradients come in the accumulation dtype for weight and bias (rounded once, by the caller), and have
# size 0 where they are not needed.
_backward_op = define_op(
    "masked_linear_cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor weight,"
    " Tensor? bias, Tensor target, Tensor? token_weight, Tensor rows, Tensor count, Tensor stats,"
    " Tensor divisor, str reduction, int ignore_index, float label_smoothing,"
    " int num_prefix_tokens, bool need_input, bool need_weight, bool need_bias, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    impl=_backward_impl,
    fake=_backward_fake,
)


class _MaskedLinearCrossEntropy(torch.autograd.Function):
    """Gradient mode "recompute": the forward keeps what it was given and each row's softmax
    statistics; the backward makes the logits again, knowing grad_output and the divisor. That is right
    for any grad_output, float16 with a loss scale, and a second backward. (Gradients computed in the
    forward, for a grad_output of 1, would join here: as outputs of the forward op, kept unscaled.)
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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        rounded = weight if compute_dtype is None else weight.to(compute_dtype)
        loss, rows, count, stats, divisor, correct, histogram = _forward_op(
            input, rounded, bias, target, mask, token_weight, *options, masked_per_sample, metrics,
            backend,
        )  # fmt: skip
        ctx.save_for_backward(
            input, weight, bias, target, mask, token_weight, rows, count, stats, divisor
        )
        ctx.options, ctx.compute_dtype, ctx.backend = options, compute_dtype, backend
        ctx.masked_per_sample = masked_per_sample
        count_out = count.clone()
        ctx.mark_non_differentiable(correct, histogram, count_out)
        return loss, correct, histogram, count_out

    @staticmethod
    def backward(
        ctx: Any, grad_loss: torch.Tensor, *_: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        input, weight, bias, target, mask, token_weight, rows, count, stats, divisor = (
            ctx.saved_tensors
        )
        needs = (
            ctx.needs_input_grad[0],
            ctx.needs_input_grad[1],
            bias is not None and ctx.needs_input_grad[2],
        )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grads = _differentiable_grads(ctx, grad_loss, needs)
        else:
            rounded = weight if ctx.compute_dtype is None else weight.to(ctx.compute_dtype)
            found = _backward_op(
                grad_loss, input, rounded, bias, target, token_weight, rows, count, stats, divisor,
                *ctx.options, *needs, ctx.backend,
            )  # fmt: skip
            grads = [
                grad.to(like.dtype) if needed else None
                for grad, like, needed in zip(found, (input, weight, bias), needs, strict=True)
            ]
        return (*grads, None, None, None, None, None, None, None, None)


def _differentiable_grads(
    ctx: Any, grad_loss: torch.Tensor, needs: tuple[bool, bool, bool]
) -> list[torch.Tensor | None]:
    """create_graph: the composite's own gradients, which can be differentiated again."""
    input, weight, bias, target, mask, token_weight, rows, count, _, _ = ctx.saved_tensors
    # Views, so that a tensor given twice keeps two gradients.
    given = [None if t is None else t.view_as(t) for t in (input, weight, bias)]
    x, w, b = given
    rounded = w if ctx.compute_dtype is None or w is None else w.to(ctx.compute_dtype)
    with torch.autocast(input.device.type, enabled=False):
        loss = reference.composite(
            x, rounded, b, target, mask, token_weight, rows, count, *ctx.options,
            ctx.masked_per_sample,
        )[0]  # fmt: skip
        wanted = [t for t, needed in zip(given, needs, strict=True) if needed]
        found = iter(torch.autograd.grad(loss, wanted, grad_loss, create_graph=True))
    return [next(found) if needed else None for needed in needs]


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
    counts where ``mask`` is True and ``target != ignore_index``; nothing at the others is ever looked
    at, and they cost nothing. Logits, loss and the accumulation of dW and db are float32 (float64 if
    input, weight or bias is float64); each gradient is rounded once, to its tensor's dtype.
    Differentiable twice.

    Args:
        input: [..., T, d] float32, float64, float16 or bfloat16, T = num_prefix_tokens + L; any
            strides (one copy if the last dimension is not dense).
        linear_weight: [K, d] floating, K >= 1.
        target: [..., L] int64 or int32, class ids in [0, K).
        mask: [..., L]; bool, True = counted; another dtype means ``mask != 0``; None = all.
        linear_bias: [K] floating, or None.
        reduction: "mean" | "sum" | "none" ([..., L], zeros where not counted).
        ignore_index: tokens of this target are not counted, inside the mask too.
        label_smoothing: alpha in [0, 1]; the target keeps 1 - alpha, and every class gets alpha / K.
        token_weight: [..., L] floating, >= 0: "mean" is sum(w * loss) / sum(w). No gradient.
        num_prefix_tokens: tokens at the front ([cls], registers) that have no target; their gradient
            is zero.
        masked_per_sample: how many tokens every sample's mask holds, where that is fixed. Not needed
            on the CPU, where it is only checked.
        return_metrics: also return :class:`Metrics`.
        backend: "reference", "cpu" or None (chosen by device).

    Under autocast, input and weight are rounded to the autocast dtype as ``F.linear`` would (bias and
    all else stay float32), and the gradient of a float32 weight stays unrounded.

    Returns:
        float32 loss (float64 if an operand is float64); with ``return_metrics`` (loss, Metrics).
        Nothing counted (or a total weight of 0): nan for "mean", and the gradients are zeros.

    Raises:
        IndexError: a counted target is outside [0, K), or ``masked_per_sample`` is not what the mask
            holds (CPU; on CUDA the tokens' losses are NaN).
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: a back-end was named that cannot run here.
    """
    floating = _checks.FLOATING
    _checks.require_tensor(OP, "input", input, dtypes=floating)
    _checks.require_tensor(OP, "linear_weight", linear_weight, dtypes=floating)
    if linear_bias is not None:
        _checks.require_tensor(OP, "linear_bias", linear_bias, dtypes=floating)
    arguments.check_int(OP, "num_prefix_tokens", num_prefix_tokens)
    _check_memory(input, linear_weight, linear_bias, target, mask, token_weight, num_prefix_tokens)
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
    if torch.is_autocast_enabled(device.type):
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
    )  # fmt: skip
    if not return_metrics:
        return loss
    return loss, Metrics((correct / count).float(), histogram, count)
