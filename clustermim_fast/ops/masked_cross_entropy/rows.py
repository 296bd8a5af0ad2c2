"""Which tokens count, what each weighs, and how their losses become one: shared by all back-ends.

Everything is written without a host sync, so that it serves on CUDA as it stands; only
:func:`take_counted` reads the count, and on the CPU alone.
"""

from __future__ import annotations

import torch


def as_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    """bool mask; another dtype means ``mask != 0``."""
    return mask if mask is None or mask.dtype == torch.bool else mask != 0


def row_list(
    target: torch.Tensor, mask: torch.Tensor | None, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stable partition of the tokens: rows int64 [N], the counted first, and count int64 []."""
    counted = target.reshape(-1).long() != ignore_index
    mask = as_mask(mask)
    if mask is not None:
        counted = counted & mask.reshape(-1)
    before = torch.cumsum(counted, 0)
    count = counted.sum()
    token = torch.arange(counted.numel(), device=counted.device)
    slot = torch.where(counted, before - 1, count + token - before)
    return torch.empty_like(slot).scatter_(0, slot, token), count


def take_counted(
    rows: torch.Tensor, count: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The counted rows alone, and None; off the CPU all rows, and which of them count.

    Off the CPU the number of counted rows stays on the device, so shapes must not depend on it.
    """
    if rows.device.type == "cpu":
        return rows[: int(count)], None
    return rows, torch.arange(rows.numel(), device=rows.device) < count


def row_weights(
    rows: torch.Tensor, live: torch.Tensor | None, token_weight: torch.Tensor | None
) -> torch.Tensor | None:
    """float64 weight of each listed row; None when all weigh 1."""
    if token_weight is None:
        return None if live is None else live.double()
    weights = token_weight.reshape(-1)[rows].double()
    return weights if live is None else torch.where(live, weights, 0.0)


def mean_divisor(
    count: torch.Tensor,
    weights: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    target: torch.Tensor,
) -> torch.Tensor:
    """float64 []: what "mean" divides by. ``target``: of the listed rows."""
    if class_weight is None:
        return count.double() if weights is None else weights.sum()
    of_target = class_weight.double()[target]
    return of_target.sum() if weights is None else (of_target * weights).sum()


def reduce_rows(
    row_loss: torch.Tensor,
    rows: torch.Tensor,
    weights: torch.Tensor | None,
    divisor: torch.Tensor,
    shape: torch.Size,
    reduction: str,
) -> torch.Tensor:
    """Losses of the listed rows -> the loss, in their dtype; sums run in float64."""
    weighted = row_loss if weights is None else row_loss * weights
    if reduction == "none":
        out = torch.zeros(shape.numel(), dtype=row_loss.dtype, device=row_loss.device)
        return out.index_put((rows,), weighted.to(row_loss.dtype)).reshape(shape)
    if reduction == "mean":
        # Nothing counted: nan, and no 0/0 in the graph, so that the gradients are zeros.
        empty = divisor == 0
        scaled = weighted.double() / torch.where(empty, torch.inf, divisor)
        return (scaled.sum() + torch.where(empty, torch.nan, 0.0)).to(row_loss.dtype)
    return weighted.sum(dtype=torch.float64).to(row_loss.dtype)


def row_scales(
    grad_loss: torch.Tensor,
    rows: torch.Tensor,
    weights: torch.Tensor | None,
    divisor: torch.Tensor,
    reduction: str,
) -> torch.Tensor:
    """float64 d(objective) / d(row loss) of each listed row."""
    if reduction == "none":
        scale = grad_loss.reshape(-1)[rows].double()
    else:
        scale = grad_loss.double()
        if reduction == "mean":
            scale = torch.where(divisor == 0, 0.0, scale / divisor)
        scale = scale.expand(rows.shape)
    return (scale if weights is None else scale * weights).contiguous()
