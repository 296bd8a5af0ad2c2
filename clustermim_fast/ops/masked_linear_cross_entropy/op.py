"""``masked_linear_cross_entropy``: linear classifier and loss, without the logits of all rows."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch

from clustermim_fast.ops import _checks
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import rows as _rows
from clustermim_fast.ops.masked_linear_cross_entropy import autograd
from clustermim_fast.ops.masked_linear_cross_entropy.problem import refused_by_cuda
from clustermim_fast.ops.masked_linear_cross_entropy.registered import check_operands

OP = "masked_linear_cross_entropy"
IMPLEMENTED = ("reference", "cpu", "triton", "cuda")


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
    more matrix products instead. With bfloat16 input and weight on a CPU that has tiles (AMX), and
    with both of one 16-bit dtype on a GPU, the gradient of the logits is rounded to that dtype
    before it is multiplied by them, as torch's own is; a GPU's bfloat16 softmax of more than 256
    classes (128 but on Hopper) has been through float16, for db too. Differentiable twice.

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
        masked_per_sample: how many tokens every sample's mask holds, where that is fixed: sizes the
            work on a GPU, where the host does not know it else. On the CPU it is only checked.
        return_metrics: also return :class:`Metrics`.
        backend: "reference", "cpu", "triton" (which refuses float64 operands), "cuda" (Hopper;
            input and weight of one 16-bit dtype, K <= 128, d a multiple of 8 up to 512) or None
            (chosen by device).

    Under autocast, input and weight are rounded to the autocast dtype as ``F.linear`` would (bias
    and all else stay float32), and the gradient of a float32 weight stays unrounded.

    Returns:
        float32 loss (float64 if an operand is float64); with ``return_metrics`` (loss, Metrics).
        Nothing counted (or a total weight of 0): nan for "mean", and the gradients are zeros.

    Raises:
        IndexError: a counted target is outside [0, K), or ``masked_per_sample`` is not what the
            mask holds (CPU; on CUDA the tokens' losses are NaN, and where a mask holds more, maybe
            those of later samples too).
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
    compute_dtype = None
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        # As autocast does for F.linear: everything but float64.
        autocast_dtype = torch.get_autocast_dtype(device.type)
        if input.dtype != torch.float64:
            input = input.to(autocast_dtype)
        if linear_weight.dtype not in (torch.float64, autocast_dtype):
            compute_dtype = autocast_dtype
    name = arguments.choose_backend(
        OP, backend, device, IMPLEMENTED,
        lambda: refused_by_cuda(input, linear_weight, compute_dtype),
        input=input, linear_weight=linear_weight, linear_bias=linear_bias,
    )  # fmt: skip
    loss, correct, histogram, count = autograd.MaskedLinearCrossEntropy.apply(
        input, linear_weight, linear_bias, target, _rows.as_mask(mask), token_weight,
        (reduction, ignore_index, float(label_smoothing), num_prefix_tokens,
         -1 if masked_per_sample is None else masked_per_sample),
        return_metrics, compute_dtype, name,
        autograd.needed_in_forward(
            input, linear_weight, linear_bias, reduction, name, compute_dtype
        ),
    )  # fmt: skip
    if not return_metrics:
        return loss
    return loss, Metrics((correct / count).float(), histogram, count)
