"""``masked_cross_entropy`` on the C++ core: counted rows only."""

from __future__ import annotations

import torch

from clustermim_fast.ops import _backend
from clustermim_fast.ops.masked_cross_entropy import arguments
from clustermim_fast.ops.masked_cross_entropy import rows as _rows

OP = "masked_cross_entropy"


def address(tensor: torch.Tensor | None) -> int:
    """What the core takes for a tensor; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def row_list(
    op: str,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    ignore_index: int,
    num_classes: int,
    masked_per_sample: int = -1,
) -> tuple[torch.Tensor, int]:
    """Rows int64 [N], the counted first, each part in order, and how many count.

    ``target`` is int64 and contiguous. Raises IndexError for a counted target outside
    [0, num_classes) and for a sample whose mask does not hold ``masked_per_sample`` tokens.
    """
    mask = _rows.as_mask(mask)
    mask = None if mask is None else mask.contiguous()
    rows = torch.empty(target.numel(), dtype=torch.int64)
    count, wrong_target, wrong_sample, found = _backend.core().masked_row_list(
        target=target.data_ptr(),
        mask=address(mask),
        num_tokens=target.numel(),
        tokens_per_sample=target.shape[-1] if target.dim() else 1,
        ignore_index=ignore_index,
        num_classes=num_classes,
        masked_per_sample=masked_per_sample,
        rows=rows.data_ptr(),
    )
    if wrong_sample >= 0:
        raise arguments.hint_error(op, masked_per_sample, wrong_sample, found)
    if wrong_target >= 0:
        raise arguments.target_error(op, target, wrong_target, num_classes, ignore_index)
    return rows, count


def _as_samples(logits: torch.Tensor) -> torch.Tensor:
    """[S, L, K] with dense rows; a view unless the strides allow none."""
    num_classes = logits.shape[-1]
    tokens = logits.shape[-2] if logits.dim() >= 2 else 1
    view = logits.reshape(logits.shape[:-2].numel(), tokens, num_classes)
    return view if view.stride(2) == 1 or num_classes == 1 else view.contiguous()


def _constants(
    class_weight: torch.Tensor | None, acc: torch.dtype
) -> tuple[torch.Tensor | None, float]:
    """Class weights as the kernel reads them, and their sum."""
    if class_weight is None:
        return None, 0.0
    weight = class_weight.to(acc).contiguous()
    return weight, float(weight.sum(dtype=torch.float64))


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
    acc = arguments.accumulation_dtype(logits)
    z = _as_samples(logits)
    num_classes = z.shape[2]
    flat = target.long().contiguous()
    rows, n = row_list(OP, flat, mask, ignore_index, num_classes)
    listed = rows[:n]
    weight, weight_sum = _constants(class_weight, acc)
    stats = torch.zeros(2, flat.numel(), dtype=acc)
    losses = torch.empty(n, dtype=acc)
    _backend.core().cross_entropy_forward(
        logits=z.data_ptr(),
        logits_dtype=_backend.DTYPE_CODES[z.dtype],
        sample_stride=z.stride(0),
        row_stride=z.stride(1),
        rows_per_sample=z.shape[1],
        compact=False,
        num_classes=num_classes,
        rows=listed.data_ptr(),
        num_rows=n,
        num_tokens=flat.numel(),
        target=flat.data_ptr(),
        bias=0,
        class_weight=address(weight),
        class_weight_sum=weight_sum,
        label_smoothing=label_smoothing,
        stats=stats.data_ptr(),
        loss=losses.data_ptr(),
        argmax=0,
        threads=torch.get_num_threads(),
    )
    weights = _rows.row_weights(listed, None, token_weight)
    if weights is not None:
        arguments.check_token_weight_values(OP, weights)
    count = torch.tensor(n)
    divisor = _rows.mean_divisor(count, weights, class_weight, flat.reshape(-1)[listed])
    loss = _rows.reduce_rows(losses, listed, weights, divisor, target.shape, reduction)
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
    acc = arguments.accumulation_dtype(logits)
    z = _as_samples(logits)
    rows, n = rows.contiguous(), int(count)
    flat = target.long().contiguous()
    weight, weight_sum = _constants(class_weight, acc)
    weights = _rows.row_weights(rows[:n], None, token_weight)
    scale = _rows.row_scales(grad_loss, rows[:n], weights, divisor, reduction)
    stats = stats.contiguous()
    out = torch.empty(logits.shape, dtype=logits.dtype)
    _backend.core().cross_entropy_backward(
        logits=z.data_ptr(),
        logits_dtype=_backend.DTYPE_CODES[z.dtype],
        sample_stride=z.stride(0),
        row_stride=z.stride(1),
        rows_per_sample=z.shape[1],
        compact=False,
        num_classes=z.shape[2],
        rows=rows.data_ptr(),
        num_rows=n,
        num_tokens=flat.numel(),
        target=flat.data_ptr(),
        bias=0,
        class_weight=address(weight),
        class_weight_sum=weight_sum,
        label_smoothing=label_smoothing,
        stats=stats.data_ptr(),
        scale=scale.data_ptr(),
        grad=out.data_ptr(),
        zero_rest=True,
        threads=torch.get_num_threads(),
    )
    return out
