"""Which tokens count, on the device: a stable partition and the divisor of "mean", two launches.

The number of counted tokens stays on the device: grids are sized for all tokens, and a program that
finds none of the counted ones has nothing to do. Every sum runs in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048  # tokens looked at together
SPANS = 512  # programs at most: each sums up what those before it have found
MOST_TOKENS = 2**30  # a stride beyond the last one still fits 32 bits


@triton.jit
def _counted(
    target_ptr, mask_ptr, tokens, N, ignore_index, HAS_MASK: tl.constexpr
):  # fmt: skip
    """bool: mask, and target is not ``ignore_index``."""
    inside = tokens < N
    counted = tl.load(target_ptr + tokens, mask=inside, other=0).to(tl.int64) != ignore_index
    if HAS_MASK:
        counted = counted & (tl.load(mask_ptr + tokens, mask=inside, other=0) != 0)
    return counted & inside


@triton.jit
def _count_spans(
    target_ptr, mask_ptr, token_weight_ptr, class_weight_ptr, counts_ptr, sums_ptr,
    N, span, K, ignore_index,
    HAS_MASK: tl.constexpr, HAS_TOKEN_WEIGHT: tl.constexpr, HAS_CLASS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Counted tokens of each span, and the sum of their weights."""
    pid = tl.program_id(0)
    begin = pid.to(tl.int64) * span
    count = tl.zeros([BLOCK], tl.int32)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, span, BLOCK):
        tokens = begin + start + tl.arange(0, BLOCK)
        counted = _counted(target_ptr, mask_ptr, tokens, N, ignore_index, HAS_MASK)
        count += counted.to(tl.int32)
        if HAS_TOKEN_WEIGHT or HAS_CLASS_WEIGHT:
            weight = tl.where(counted, 1.0, 0.0).to(tl.float64)
            if HAS_TOKEN_WEIGHT:
                weight = tl.load(token_weight_ptr + tokens, mask=counted, other=0.0).to(tl.float64)
            if HAS_CLASS_WEIGHT:
                target = tl.load(target_ptr + tokens, mask=counted, other=0).to(tl.int64)
                known = counted & (target >= 0) & (target < K)
                of_class = tl.load(class_weight_ptr + target, mask=known, other=0.0)
                weight = tl.where(counted, weight * of_class.to(tl.float64), 0.0)
            total += weight
    tl.store(counts_ptr + pid, tl.sum(count, axis=0))
    if HAS_TOKEN_WEIGHT or HAS_CLASS_WEIGHT:
        tl.store(sums_ptr + pid, tl.sum(total, axis=0))


@triton.jit
def _place(
    target_ptr, mask_ptr, counts_ptr, sums_ptr, rows_ptr, count_ptr, divisor_ptr,
    N, span, ignore_index,
    HAS_MASK: tl.constexpr, WEIGHTED: tl.constexpr, SPANS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes every token of a span to its place: the counted first, each part in order."""
    pid = tl.program_id(0)
    spans = tl.arange(0, SPANS)
    counts = tl.load(counts_ptr + spans, mask=spans < tl.num_programs(0), other=0).to(tl.int64)
    count = tl.sum(counts, axis=0)
    if pid == 0:
        tl.store(count_ptr, count)
        if WEIGHTED:
            sums = tl.load(sums_ptr + spans, mask=spans < tl.num_programs(0), other=0.0)
            tl.store(divisor_ptr, tl.sum(sums, axis=0))
        else:
            tl.store(divisor_ptr, count.to(tl.float64))
    before = tl.sum(tl.where(spans < pid, counts, 0), axis=0)
    begin = pid.to(tl.int64) * span
    for start in range(0, span, BLOCK):
        tokens = begin + start + tl.arange(0, BLOCK)
        counted = _counted(target_ptr, mask_ptr, tokens, N, ignore_index, HAS_MASK)
        ones = counted.to(tl.int32)
        earlier = before + tl.cumsum(ones, axis=0) - ones
        slot = tl.where(counted, earlier, count + tokens - earlier)
        tl.store(rows_ptr + slot, tokens, mask=tokens < N)
        before += tl.sum(ones, axis=0)


def row_list(
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    class_weight: torch.Tensor | None,
    num_classes: int,
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """rows int64 [N], the counted first; count int64 []; the mean's divisor float64 [].

    ``target``, ``mask`` (bool) and ``token_weight`` are contiguous. A class weight is that of the
    target; one out of range weighs nothing.
    """
    num_tokens = target.numel()
    if num_tokens > MOST_TOKENS:
        raise ValueError(f"target: at most 2^30 tokens, got {num_tokens}; split the batch")
    blocks = max(1, triton.cdiv(num_tokens, BLOCK))
    span = BLOCK * triton.cdiv(blocks, SPANS)
    programs = max(1, triton.cdiv(num_tokens, span))
    rows = target.new_empty(num_tokens, dtype=torch.int64)
    count = target.new_empty((), dtype=torch.int64)
    divisor = target.new_empty((), dtype=torch.float64)
    counts = target.new_empty(programs, dtype=torch.int32)
    sums = target.new_empty(programs, dtype=torch.float64)
    weighted = token_weight is not None or class_weight is not None
    mask = None if mask is None else mask.view(torch.uint8)
    _count_spans[(programs,)](
        target, mask, token_weight, class_weight, counts, sums, num_tokens, span, num_classes,
        ignore_index, HAS_MASK=mask is not None, HAS_TOKEN_WEIGHT=token_weight is not None,
        HAS_CLASS_WEIGHT=class_weight is not None, BLOCK=BLOCK, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    _place[(programs,)](
        target, mask, counts, sums, rows, count, divisor, num_tokens, span, ignore_index,
        HAS_MASK=mask is not None, WEIGHTED=weighted, SPANS=SPANS, BLOCK=BLOCK, num_warps=8,
        enable_fp_fusion=True,
    )  # fmt: skip
    return rows, count, divisor


@triton.jit
def _finish(
    sums_ptr, divisor_ptr, loss_ptr, programs, MEAN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, programs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + at, mask=at < programs, other=0.0)
    loss = tl.sum(total, axis=0)
    if MEAN:
        divisor = tl.load(divisor_ptr)
        # Nothing counted, or a total weight of 0: nan, even where a row's loss is infinite.
        mean = loss / tl.where(divisor == 0.0, 1.0, divisor)
        loss = tl.where(divisor == 0.0, float("nan"), mean)
    tl.store(loss_ptr, loss.to(tl.float32))


def finish(sums: torch.Tensor, divisor: torch.Tensor, reduction: str) -> torch.Tensor:
    """float32 []: the loss of the programs' float64 sums of weighted row losses."""
    loss = sums.new_empty((), dtype=torch.float32)
    _finish[(1,)](
        sums,
        divisor,
        loss,
        sums.numel(),
        MEAN=reduction == "mean",
        BLOCK=1024,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return loss


@triton.jit
def _scale(grad_ptr, count_ptr, divisor_ptr, scale_ptr, MEAN: tl.constexpr):
    scale = tl.load(grad_ptr).to(tl.float64)
    nothing = tl.load(count_ptr) == 0
    if MEAN:
        divisor = tl.load(divisor_ptr)
        nothing = nothing | (divisor == 0.0)
        scale /= tl.where(nothing, 1.0, divisor)
    tl.store(scale_ptr, tl.where(nothing, 0.0, scale).to(tl.float32))


def row_scales(
    grad_loss: torch.Tensor,
    rows: torch.Tensor,
    count: torch.Tensor,
    token_weight: torch.Tensor | None,
    divisor: torch.Tensor,
    reduction: str,
) -> torch.Tensor:
    """float32 d(objective) / d(row loss): [1] where all rows have the same, else [N] by slot.

    0 beyond the counted rows, and where there are none.
    """
    if token_weight is None and reduction != "none":
        scale = divisor.new_empty(1, dtype=torch.float32)
        _scale[(1,)](
            grad_loss, count, divisor, scale, MEAN=reduction == "mean", enable_fp_fusion=True
        )
        return scale
    grad = grad_loss.double().reshape(-1)
    if reduction == "mean":
        grad = torch.where(divisor == 0, 0.0, grad / divisor)
    if reduction == "none":
        grad = grad[rows]
    if token_weight is not None:
        grad = grad * token_weight.reshape(-1)[rows].double()
    live = torch.arange(rows.numel(), device=rows.device) < count
    return torch.where(live, grad, 0.0).float()
