"""The definition of right for ``masked_linear_cross_entropy``: plain torch on the counted rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import reference as _logits
from clustermim_fast.ops.masked_cross_entropy import rows as _rows

OP = "masked_linear_cross_entropy"


def _check_hint(target: torch.Tensor, mask: torch.Tensor | None, hint: int) -> torch.Tensor | None:
    """Tokens [N] of samples whose mask holds another number; on the CPU IndexError instead."""
    if hint < 0 or target.numel() == 0:
        return None
    tokens = target.shape[-1] if target.dim() else 1
    mask = _rows.as_mask(mask)
    mask = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    masked = mask.reshape(-1, tokens).sum(1)
    if target.device.type != "cpu":
        return (masked != hint).repeat_interleave(tokens)
    wrong = (masked != hint).nonzero()
    if wrong.numel():
        sample = int(wrong[0])
        raise arguments.hint_error(OP, hint, sample, int(masked[sample]))
    return None


def _listed_inputs(
    input: torch.Tensor,
    listed: torch.Tensor,
    live: torch.Tensor | None,
    prefix: int,
    acc: torch.dtype,
) -> torch.Tensor:
    """Input vectors [n, d] of the listed tokens, zeros for the ones that do not count."""
    tokens = input.shape[-2]
    x = input.reshape(input.shape[:-2].numel(), tokens, input.shape[-1])[:, prefix:]
    x = x[listed // max(tokens - prefix, 1), listed % max(tokens - prefix, 1)].to(acc)
    return x if live is None else torch.where(live[:, None], x, 0.0)


def composite(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    prefix: int,
    masked_per_sample: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, logits [n, K] and targets of the listed rows, divisor): differentiable repeatedly."""
    acc = arguments.accumulation_dtype(input, weight, bias)
    listed, live = _rows.take_counted(rows, count)
    wrong_samples = _check_hint(target, mask, masked_per_sample)
    x = _listed_inputs(input, listed, live, prefix, acc)
    z = F.linear(x, weight.to(acc), None if bias is None else bias.to(acc))
    t, wrong = _logits.listed_targets(OP, target, listed, live, weight.shape[0], ignore_index)
    if wrong is not None and wrong_samples is not None:
        wrong = wrong | wrong_samples[listed]
    losses = _logits.row_losses(z, t, live, wrong, None, label_smoothing)
    weights = _rows.row_weights(listed, live, token_weight)
    if weights is not None and live is None:
        arguments.check_token_weight_values(OP, weights)
    divisor = _rows.mean_divisor(count, weights, None, t)
    loss = _rows.reduce_rows(losses, listed, weights, divisor, target.shape, reduction)
    return loss, z, t, divisor


def forward(
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
) -> tuple[torch.Tensor, ...]:
    """The outputs of the registered forward op; see its public function for the arguments."""
    rows, count = _rows.row_list(target, mask, ignore_index)
    loss, z, t, divisor = composite(
        input, weight, bias, target, mask, token_weight, rows, count, reduction, ignore_index,
        label_smoothing, prefix, masked_per_sample,
    )  # fmt: skip
    listed, live = _rows.take_counted(rows, count)
    stats = _logits.softmax_stats(z, listed, rows.numel())
    correct = torch.zeros_like(count)
    histogram = torch.zeros(weight.shape[0], dtype=torch.int64, device=z.device)
    if metrics:
        # A row whose loss is NaN has no argmax.
        valid = torch.isfinite(z.logsumexp(-1))
        valid = valid if live is None else valid & live
        best = z.argmax(-1)
        correct = (valid & (best == t)).sum()
        histogram = histogram.scatter_add(0, best, valid.long())
    return loss, rows, count, stats, divisor, correct, histogram


def backward(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    divisor: torch.Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    prefix: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs of the registered backward op; see its public function for the arguments."""
    acc = arguments.accumulation_dtype(input, weight, bias)
    listed, live = _rows.take_counted(rows, count)
    x = _listed_inputs(input, listed, live, prefix, acc)
    w = weight.to(acc)
    z = F.linear(x, w, None if bias is None else bias.to(acc))
    t, wrong = _logits.listed_targets(OP, target, listed, live, weight.shape[0], ignore_index)
    weights = _rows.row_weights(listed, live, token_weight)
    scale = _rows.row_scales(grad_loss, listed, weights, divisor, reduction)
    if wrong is not None:
        scale = torch.where(wrong, torch.nan, scale)
    grad = _logits.grad_rows(z, t, scale, None, label_smoothing)
    if live is not None:
        grad = torch.where(live[:, None], grad, 0.0)
    grad_input = input.new_zeros(input.shape if need_input else (0,))
    if need_input:
        tokens = input.shape[-2] - prefix
        view = grad_input.view(input.shape[:-2].numel(), input.shape[-2], input.shape[-1])
        where = listed // max(tokens, 1), listed % max(tokens, 1) + prefix
        view[where] = (grad @ w).to(input.dtype)
    grad_weight = grad.T @ x if need_weight else z.new_empty(0)
    return grad_input, grad_weight, grad.sum(0) if need_bias else z.new_empty(0)
