"""The registered ops behind ``masked_linear_cross_entropy``: schemas, fakes, choice of back-end."""

from __future__ import annotations

from typing import Any

import torch

from clustermim_fast.ops import _checks, _triton
from clustermim_fast.ops._library import define_op
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy.op import check_row_list
from clustermim_fast.ops.masked_linear_cross_entropy import cpu, reference
from clustermim_fast.ops.masked_linear_cross_entropy.problem import (
    ON_GPU,
    Needs,
    refused_by_cuda,
)

OP = "masked_linear_cross_entropy"


def check_operands(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    prefix: int,
    backend: str = "",
) -> None:
    """Shapes that agree, and that ``backend`` takes: the kernels read without looking."""
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
    what = "input.shape[:-1], less the num_prefix_tokens in front that have no target"
    arguments.check_tokens(OP, target, mask, token_weight, shape, what)
    refusal = refused_by_cuda(input, weight) if backend == "cuda" else None
    if refusal is not None:
        raise _checks.bad_value(OP, *refusal, 'pass backend="triton"')


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
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    backend: str,
) -> tuple[torch.Tensor, ...]:
    check_operands(input, weight, bias, target, mask, token_weight, prefix, backend)
    arguments_ = (
        input, weight, bias, target, mask, token_weight, reduction, ignore_index, label_smoothing,
        prefix, masked_per_sample, metrics,
    )  # fmt: skip
    with torch.autocast(input.device.type, enabled=False):
        if backend == "cpu":
            return cpu.forward(*arguments_, Needs(need_input, need_weight, need_bias))
        if backend in ON_GPU:
            from clustermim_fast.ops.masked_linear_cross_entropy import triton_kernel

            needs = Needs(need_input, need_weight, need_bias)
            with _triton.launching_on(input):
                return triton_kernel.forward(*arguments_, needs, hopper=backend == "cuda")
        found = reference.forward(*arguments_)
        rows, count, divisor = found[1], found[2], found[4]
        grads = reference.backward(
            torch.ones_like(found[0]), input, weight, bias, target, token_weight, rows, count,
            divisor, reduction, ignore_index, label_smoothing, prefix, need_input, need_weight,
            need_bias,
        )  # fmt: skip
        return (*found, *grads)


def _forward_fake(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    reduction: str,
    *rest: Any,
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
        *_fake_gradients(input, weight, bias, *rest),
    )


def _fake_gradients(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``rest`` ends as both schemas do."""
    need_input, need_weight, need_bias, _ = rest[-4:]
    acc = arguments.accumulation_dtype(input, weight, bias)
    return (
        input.new_empty(input.shape if need_input else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,), dtype=acc),
        weight.new_empty(weight.shape[:1] if need_bias else (0,), dtype=acc),
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
    masked_per_sample: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    backend: str,
) -> tuple[torch.Tensor, ...]:
    check_operands(input, weight, bias, target, None, token_weight, prefix, backend)
    check_row_list(OP, target, rows, count, stats, divisor)
    with torch.autocast(input.device.type, enabled=False):
        if backend == "cpu":
            return cpu.backward(
                grad_loss, input, weight, bias, target, token_weight, rows, count, stats, divisor,
                reduction, label_smoothing, prefix, Needs(need_input, need_weight, need_bias),
            )  # fmt: skip
        if backend in ON_GPU:
            from clustermim_fast.ops.masked_linear_cross_entropy import triton_kernel

            with _triton.launching_on(input):
                return triton_kernel.backward(
                    grad_loss, input, weight, bias, target, token_weight, rows, count, stats,
                    divisor, reduction, label_smoothing, prefix, masked_per_sample,
                    Needs(need_input, need_weight, need_bias), hopper=backend == "cuda",
                )  # fmt: skip
        return reference.backward(
            grad_loss, input, weight, bias, target, token_weight, rows, count, divisor, reduction,
            ignore_index, label_smoothing, prefix, need_input, need_weight, need_bias,
        )  # fmt: skip


# The gradients that the forward gives where it is asked for them are those for a grad_output of 1.
forward_op = define_op(
    "masked_linear_cross_entropy(Tensor input, Tensor weight, Tensor? bias, Tensor target,"
    " Tensor? mask, Tensor? token_weight, str reduction, int ignore_index, float label_smoothing,"
    " int num_prefix_tokens, int masked_per_sample, bool metrics, bool need_input,"
    " bool need_weight, bool need_bias, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    impl=_forward_impl,
    fake=_forward_fake,
)
# Gradients of weight and bias come in the accumulation dtype (the caller rounds them, once); one
# that is not needed has size 0.
backward_op = define_op(
    "masked_linear_cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor weight,"
    " Tensor? bias, Tensor target, Tensor? token_weight, Tensor rows, Tensor count, Tensor stats,"
    " Tensor divisor, str reduction, int ignore_index, float label_smoothing,"
    " int num_prefix_tokens, int masked_per_sample, bool need_input, bool need_weight,"
    " bool need_bias, str backend) -> (Tensor, Tensor, Tensor)",
    impl=_backward_impl,
    fake=lambda _, *given: _fake_gradients(*given),
)
