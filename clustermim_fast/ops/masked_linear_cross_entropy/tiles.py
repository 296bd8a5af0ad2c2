"""``masked_linear_cross_entropy`` of bfloat16 operands on a CPU with tiles (AMX): one C++ call.

Logits, softmax and the products of all gradients follow each other block by block, in float32
between the products; csrc/masked_cross_entropy/linear_rows.h says what is rounded where.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from clustermim_fast.ops import _backend

PANEL = 32  # classes and values that the products take together


def usable(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Can these operands take this path on this machine?"""
    narrow = input.dtype == weight.dtype == torch.bfloat16
    wide_bias = bias is not None and bias.dtype == torch.float64
    return narrow and not wide_bias and input.shape[-1] > 0 and _backend.core().linear_rows_usable()


class Rows(NamedTuple):
    """What the rows of one call give; the gradients that were not asked for are None."""

    losses: torch.Tensor  # [n] float32
    argmax: torch.Tensor  # [n] int64, size 0 unless asked for
    grad_weight: torch.Tensor | None  # [K, d] float32
    grad_bias: torch.Tensor | None  # [K] float32


def run(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    rows: torch.Tensor,
    stats: torch.Tensor,
    label_smoothing: float,
    metrics: bool,
    scale: torch.Tensor | None,
    grad_tokens: torch.Tensor | None,
    need_weight: bool,
    need_bias: bool,
) -> Rows:
    """Losses of ``rows`` of ``tokens`` [S, L, d] and, given ``scale`` [n], their gradients.

    ``stats`` [2, tokens] gets each row's softmax statistics, ``grad_tokens`` [S, L, d] its dX;
    nothing else of the two is written.
    """
    (num_classes, dim), n = weight.shape, rows.numel()
    weight = weight if weight.stride(1) == 1 or dim == 1 else weight.contiguous()
    wide = None if bias is None else bias.float().contiguous()
    losses = torch.empty(n)
    argmax = torch.empty(n if metrics else 0, dtype=torch.int64)
    whole_classes, whole_dim = (-(-size // PANEL) * PANEL for size in (num_classes, dim))
    grad_weight = torch.empty(whole_classes, whole_dim) if need_weight else None
    grad_bias = torch.empty(whole_classes) if need_bias else None

    def address(tensor: torch.Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    _backend.core().linear_cross_entropy_rows(
        input=tokens.data_ptr(),
        sample_stride=tokens.stride(0),
        row_stride=tokens.stride(1),
        rows_per_sample=max(tokens.shape[1], 1),
        dim=dim,
        rows=rows.data_ptr(),
        num_rows=n,
        num_tokens=target.numel(),
        weight=weight.data_ptr(),
        weight_stride=weight.stride(0),
        num_classes=num_classes,
        bias=address(wide),
        target=target.data_ptr(),
        # With one class the two parts of a gradient of zero would be rounded apart.
        label_smoothing=label_smoothing if num_classes > 1 else 0.0,
        stats=stats.data_ptr(),
        loss=losses.data_ptr(),
        argmax=address(argmax) if metrics else 0,
        scale=address(scale),
        grad_input=address(grad_tokens),
        grad_sample_stride=0 if grad_tokens is None else grad_tokens.stride(0),
        grad_row_stride=0 if grad_tokens is None else grad_tokens.stride(1),
        grad_weight=address(grad_weight),
        grad_bias=address(grad_bias),
        threads=torch.get_num_threads(),
    )
    return Rows(
        losses,
        argmax,
        None if grad_weight is None else grad_weight[:num_classes, :dim].contiguous(),
        None if grad_bias is None else grad_bias[:num_classes],
    )
