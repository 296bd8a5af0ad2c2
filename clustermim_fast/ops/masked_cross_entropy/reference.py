"""The definition of right for ``masked_cross_entropy``: plain torch on the counted rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import rows as _rows

OP = "masked_cross_entropy"


def listed_targets(
    op: str,
    target: torch.Tensor,
    rows: torch.Tensor,
    live: torch.Tensor | None,
    num_classes: int,
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Targets of the listed rows, safe to index with, and which were out of range (None: none).

    On the CPU a target out of range is IndexError; elsewhere its row's loss becomes NaN.
    """
    listed = target.reshape(-1)[rows].long()
    wrong = (listed < 0) | (listed >= num_classes)
    if live is None:
        if bool(wrong.any()):
            first = int(rows[int(wrong.int().argmax())])
            raise arguments.target_error(op, target, first, num_classes, ignore_index)
        return listed, None
    return torch.where(wrong | ~live, 0, listed), wrong & live


def row_losses(
    logits: torch.Tensor,
    target: torch.Tensor,
    live: torch.Tensor | None,
    wrong: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """F.cross_entropy of each listed row, in the dtype of ``logits`` [n, K]."""
    weight = None if class_weight is None else class_weight.to(logits.dtype)
    loss = F.cross_entropy(
        logits, target, weight, reduction="none", label_smoothing=label_smoothing
    )
    if wrong is not None:
        loss = torch.where(wrong, torch.nan, loss)
    return loss if live is None else torch.where(live, loss, 0.0)


def softmax_stats(logits: torch.Tensor, rows: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """[2, N]: of each listed row the maximum and the sum of exp(logit - maximum); 0 elsewhere."""
    top = logits.amax(-1)
    stats = torch.zeros(2, num_tokens, dtype=logits.dtype, device=logits.device)
    stats[0, rows] = top
    stats[1, rows] = (logits - top[:, None]).exp().sum(-1)
    return stats


def composite(
    logits: torch.Tensor,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, stats [2, N], mean divisor): differentiable as often as wanted."""
    acc = arguments.accumulation_dtype(logits)
    num_classes = logits.shape[-1]
    listed, live = _rows.take_counted(rows, count)
    z = logits.reshape(rows.numel(), num_classes)[listed].to(acc)
    if live is not None:
        z = torch.where(live[:, None], z, 0.0)
    t, wrong = listed_targets(OP, target, listed, live, num_classes, ignore_index)
    losses = row_losses(z, t, live, wrong, class_weight, label_smoothing)
    weights = _rows.row_weights(listed, live, token_weight)
    if weights is not None and live is None:
        arguments.check_token_weight_values(OP, weights)
    divisor = _rows.mean_divisor(count, weights, class_weight, t)
    loss = _rows.reduce_rows(losses, listed, weights, divisor, target.shape, reduction)
    return loss, softmax_stats(z.detach(), listed, rows.numel()), divisor


def forward(
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The outputs of the registered forward op; see its public function for the arguments."""
    rows, count = _rows.row_list(target, mask, ignore_index)
    loss, stats, divisor = composite(
        logits,
        target,
        token_weight,
        class_weight,
        rows,
        count,
        reduction,
        ignore_index,
        label_smoothing,
    )
    return loss, rows, count, stats, divisor


def grad_rows(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    class_weight: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """Gradient of ``sum(scale * row_losses)`` with respect to ``logits`` [n, K], in their dtype."""
    num_classes = logits.shape[-1]
    if class_weight is None:
        class_weight = torch.ones(num_classes, dtype=logits.dtype, device=logits.device)
    weight = class_weight.to(logits.dtype)
    smooth = label_smoothing / num_classes * weight
    hard = (1.0 - label_smoothing) * weight[target]
    onehot = F.one_hot(target, num_classes).to(logits.dtype)
    mass = hard + smooth.sum()
    grad = logits.softmax(-1) * mass[:, None] - smooth - onehot * hard[:, None]
    return (grad * scale[:, None]).to(logits.dtype)


def backward(
    grad_loss: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    divisor: torch.Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    """The outputs of the registered backward op; see its public function for the arguments."""
    acc = arguments.accumulation_dtype(logits)
    num_classes = logits.shape[-1]
    listed, live = _rows.take_counted(rows, count)
    z = logits.reshape(rows.numel(), num_classes)[listed].to(acc)
    t, wrong = listed_targets(OP, target, listed, live, num_classes, ignore_index)
    weights = _rows.row_weights(listed, live, token_weight)
    scale = _rows.row_scales(grad_loss, listed, weights, divisor, reduction)
    if wrong is not None:
        scale = torch.where(wrong, torch.nan, scale)
    grad = grad_rows(z, t, scale, class_weight, label_smoothing)
    if live is not None:
        grad = torch.where(live[:, None], grad, 0.0)
    out = torch.zeros(rows.numel(), num_classes, dtype=logits.dtype, device=logits.device)
    out[listed] = grad.to(logits.dtype)
    return out.reshape(logits.shape)
