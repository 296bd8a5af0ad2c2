"""``masked_cross_entropy``: cross-entropy of given logits, at the counted tokens only."""

from __future__ import annotations

from typing import Any

import torch

from clustermim_fast.ops import _checks, _triton
from clustermim_fast.ops._library import define_op
from clustermim_fast.ops.masked_cross_entropy import arguments, cpu, reference
from clustermim_fast.ops.masked_cross_entropy import rows as _rows

OP = "masked_cross_entropy"
WHAT = "logits.shape[:-1]: classes stand last"
IMPLEMENTED = ("reference", "cpu", "triton")


def _forward_impl(
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    _check_memory(logits, target, mask, token_weight, class_weight)
    arguments_ = (
        logits, target, mask, token_weight, class_weight, reduction, ignore_index, label_smoothing
    )  # fmt: skip
    if backend == "triton":
        from clustermim_fast.ops.masked_cross_entropy import triton_kernel

        with _triton.launching_on(logits):
            return triton_kernel.forward(*arguments_)
    return (cpu if backend == "cpu" else reference).forward(*arguments_)


def _forward_fake(
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    acc = arguments.accumulation_dtype(logits)
    return (
        logits.new_empty(target.shape if reduction == "none" else (), dtype=acc),
        target.new_empty((target.numel(),), dtype=torch.int64),
        target.new_empty((), dtype=torch.int64),
        logits.new_empty((2, target.numel()), dtype=acc),
        logits.new_empty((), dtype=torch.float64),
    )


def _backward_impl(
    grad_loss: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    stats: torch.Tensor,
    divisor: torch.Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    backend: str,
) -> torch.Tensor:
    _check_memory(logits, target, None, token_weight, class_weight)
    check_row_list(OP, target, rows, count, stats, divisor)
    if backend == "cpu":
        return cpu.backward(
            grad_loss, logits, target, token_weight, class_weight, rows, count, stats, divisor,
            reduction, label_smoothing,
        )  # fmt: skip
    if backend == "triton":
        from clustermim_fast.ops.masked_cross_entropy import triton_kernel

        with _triton.launching_on(logits):
            return triton_kernel.backward(
                grad_loss, logits, target, token_weight, class_weight, rows, count, stats, divisor,
                reduction, label_smoothing,
            )  # fmt: skip
    return reference.backward(
        grad_loss, logits, target, token_weight, class_weight, rows, count, divisor,
        reduction, ignore_index, label_smoothing,
    )  # fmt: skip


def _backward_fake(grad_loss: torch.Tensor, logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return logits.new_empty(logits.shape)


def _check_memory(
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    class_weight: torch.Tensor | None,
) -> None:
    """What the kernels read without looking: shapes that agree."""
    arguments.check_tokens(OP, target, mask, token_weight, logits.shape[:-1], WHAT)
    if class_weight is not None and class_weight.shape != logits.shape[-1:]:
        raise _checks.bad_value(
            OP, "weight", f"[K] with K = {logits.shape[-1]}", _checks.describe(class_weight)
        )


def check_row_list(
    op: str,
    target: torch.Tensor,
    rows: torch.Tensor,
    count: torch.Tensor,
    stats: torch.Tensor,
    divisor: torch.Tensor,
) -> None:
    """What a forward op hands to its backward op has the sizes that the kernels rely on."""
    tokens = target.numel()
    shapes = (tuple(rows.shape), tuple(count.shape), tuple(stats.shape), tuple(divisor.shape))
    if shapes != ((tokens,), (), (2, tokens), ()) or rows.dtype != torch.int64:
        raise _checks.bad_value(op, "rows, count, stats, divisor", "those of the forward", shapes)


_forward_op = define_op(
    "masked_cross_entropy(Tensor logits, Tensor target, Tensor? mask, Tensor? token_weight,"
    " Tensor? class_weight, str reduction, int ignore_index, float label_smoothing, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    impl=_forward_impl,
    fake=_forward_fake,
)
_backward_op = define_op(
    "masked_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target,"
    " Tensor? token_weight, Tensor? class_weight, Tensor rows, Tensor count, Tensor stats,"
    " Tensor divisor, str reduction, int ignore_index, float label_smoothing, str backend)"
    " -> Tensor",
    impl=_backward_impl,
    fake=_backward_fake,
)


class _MaskedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        token_weight: torch.Tensor | None,
        class_weight: torch.Tensor | None,
        reduction: str,
        ignore_index: int,
        label_smoothing: float,
        backend: str,
    ) -> torch.Tensor:
        loss, rows, count, stats, divisor = _forward_op(
            logits, target, mask, token_weight, class_weight, reduction, ignore_index,
            label_smoothing, backend,
        )  # fmt: skip
        ctx.save_for_backward(
            logits, target, token_weight, class_weight, rows, count, stats, divisor
        )
        ctx.options = (reduction, ignore_index, label_smoothing)
        ctx.backend = backend
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, target, token_weight, class_weight, rows, count, stats, divisor = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph: the composite's own gradient, which can be differentiated again.
            z = logits.view_as(logits)
            loss = reference.composite(
                z, target, token_weight, class_weight, rows, count, *ctx.options
            )[0]
            grad = torch.autograd.grad(loss, z, grad_loss, create_graph=True)[0]
        else:
            grad = _backward_op(
                grad_loss, logits, target, token_weight, class_weight, rows, count, stats, divisor,
                *ctx.options, ctx.backend,
            )  # fmt: skip
        return grad, None, None, None, None, None, None, None, None


def masked_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: torch.Tensor | None = None,
    token_weight: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Cross-entropy of the counted tokens: ``F.cross_entropy(logits[mask], target[mask], ...)``.

    A token counts where ``mask`` is True and ``target != ignore_index``. Nothing at the others is
    ever looked at, be it NaN logits or a target out of range. The softmax runs in float32 (float64
    for float64 logits); the gradient is rounded once, to the dtype of ``logits``. The caller's
    logits are never overwritten. Differentiable twice.

    Args:
        logits: [..., L, K] float32, float64, float16 or bfloat16, any strides (one copy if the last
            dimension is not dense).
        target: [..., L] int64 or int32, class ids in [0, K).
        mask: [..., L]; bool, True = counted; another dtype means ``mask != 0``; None = all.
        reduction: "mean" | "sum" | "none" ([..., L], zeros where not counted).
        ignore_index: tokens of this target are not counted, inside the mask too.
        label_smoothing: alpha in [0, 1]; the target keeps 1 - alpha, each class gets alpha / K.
        weight: [K] floating, class weights with torch's meaning: "mean" divides by the sum of the
            targets' weights. No gradient.
        token_weight: [..., L] floating, >= 0: "mean" is sum(w * loss) / sum(w). No gradient.
        backend: "reference", "cpu", "triton" (which refuses float64 logits)
            or None (chosen by device).

    Returns:
        float32 (float64 for float64 logits). Nothing counted (or a total weight of 0): nan for
        "mean", and the gradients are zeros.

    Raises:
        IndexError: a counted target is outside [0, K) (CPU; on CUDA that token's loss is NaN).
        TypeError, ValueError: naming the argument, what was expected and what came.
        RuntimeError: a back-end was named that cannot run here.
    """
    _checks.require_tensor(OP, "logits", logits, dtypes=_checks.FLOATING)
    if logits.dim() < 1 or logits.shape[-1] == 0:
        raise _checks.bad_value(OP, "logits", "[..., L, K] with K >= 1", _checks.describe(logits))
    arguments.check_tokens(OP, target, mask, token_weight, logits.shape[:-1], WHAT)
    arguments.check_options(OP, reduction, ignore_index, label_smoothing)
    if weight is not None:
        _checks.require_tensor(OP, "weight", weight, dtypes=_checks.FLOATING)
        arguments.refuse_grad(OP, "weight", weight)
        if weight.shape != logits.shape[-1:]:
            raise _checks.bad_value(
                OP, "weight", f"[K] with K = {logits.shape[-1]}", _checks.describe(weight)
            )
    device = _checks.require_same_device(
        OP, logits=logits, target=target, mask=mask, weight=weight, token_weight=token_weight
    )
    name = arguments.choose_backend(OP, backend, device, IMPLEMENTED, logits=logits)
    return _MaskedCrossEntropy.apply(
        logits, target, _rows.as_mask(mask), token_weight, weight, reduction, ignore_index,
        float(label_smoothing), name,
    )  # fmt: skip
