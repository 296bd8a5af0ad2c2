"""``masked_cross_entropy`` in Triton: counted rows only, each read once, gradients rounded once."""

from __future__ import annotations

import torch
import triton

from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_cross_entropy import triton_compact
from clustermim_fast.ops.masked_cross_entropy.triton_rows import (
    align,
    as_samples,
    grad_rows,
    loss_rows,
    tile,
)


def contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


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
    z = as_samples(logits)
    num_tokens, num_classes = target.numel(), z.shape[2]
    labels, token_weight = target.contiguous(), contiguous(token_weight)
    weight = None if class_weight is None else class_weight.float().contiguous()
    rows, count, divisor = triton_compact.row_list(
        labels, contiguous(mask), token_weight, weight, num_classes, ignore_index
    )
    blocks = tile(num_classes)
    programs = max(1, triton.cdiv(num_tokens, blocks["ROWS"]))
    each = reduction == "none"
    stats = logits.new_empty(2, num_tokens, dtype=torch.float32)
    loss = logits.new_empty(target.shape, dtype=torch.float32) if each else None
    sums = None if each else logits.new_empty(programs, dtype=torch.float64)
    width = align(num_classes, *z.stride()[:2])
    loss_rows[(programs,)](
        z, None, weight, labels, token_weight, None, rows, count, stats, loss, sums, None, None,
        num_tokens, 0, num_tokens, max(z.shape[1], 1), num_classes // width, z.stride(0) // width,
        z.stride(1) // width, label_smoothing, ALIGN=width, COMPACT=False, BIAS=False,
        CLASS_WEIGHT=weight is not None, TOKEN_WEIGHT=token_weight is not None, WRONG=False,
        SMOOTH=label_smoothing > 0, EACH=each, METRICS=False,
        ONE_BLOCK=num_classes <= blocks["BLOCK"], **blocks,
    )  # fmt: skip
    if sums is not None:
        loss = triton_compact.finish(sums, divisor, reduction)
    assert loss is not None
    return loss, rows, count, stats, divisor


def backward(
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
    label_smoothing: float,
) -> torch.Tensor:
    """The outputs of the registered backward op; see its public function for the arguments."""
    z = as_samples(logits)
    num_tokens, num_classes = target.numel(), z.shape[2]
    weight = None if class_weight is None else class_weight.float().contiguous()
    rows = rows.contiguous()
    scale = triton_compact.row_scales(grad_loss, rows, count, token_weight, divisor, reduction)
    out = logits.new_empty(logits.shape)
    grad = out.view(z.shape)
    blocks = tile(num_classes)
    width = align(num_classes, *z.stride()[:2], *grad.stride()[:2])
    programs = max(1, triton.cdiv(num_tokens, blocks["ROWS"]))
    grad_rows[(programs, triton.cdiv(num_classes, blocks["BLOCK"]))](
        z, None, weight, target.contiguous(), rows, count, stats.contiguous(), scale, grad, None,
        num_tokens, 0, num_tokens, max(z.shape[1], 1), num_classes // width, z.stride(0) // width,
        z.stride(1) // width, grad.stride(0) // width, grad.stride(1) // width, label_smoothing,
        ALIGN=width, COMPACT=False, BIAS=False, CLASS_WEIGHT=weight is not None,
        SCALES=1 if scale.numel() == 1 and reduction != "none" and token_weight is None else 2,
        SMOOTH=label_smoothing > 0, DB=False, DB_MORE=False, **blocks,
        **_triton.all_registers(z.device),
    )  # fmt: skip
    return out
