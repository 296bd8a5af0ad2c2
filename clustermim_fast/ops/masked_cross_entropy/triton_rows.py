"""The row kernels of both losses: loss and softmax statistics of logits, and their gradient.

A program takes tiles of ROWS rows by BLOCK classes. Rows are listed by slot (the counted ones
first); ``count`` stays on the device. Logits lie where the tokens do or, COMPACT, one row for each
slot of a chunk. K and all strides come divided by ALIGN, the largest power of two up to 16 that
divides them all, so that the compiler sees what width of load they allow: 200-byte rows are read 8
bytes at a time. ALIGN multiplies 64 bits: the stride itself may not fit 32 where its part does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MAX_BLOCK = 8192  # classes that are read once, into registers; 16384 spilled on sm_100


@triton.jit
def token_offsets(tokens, per_sample, prefix, stride_sample, stride_row):  # fmt: skip
    """Offsets, in elements, of tokens numbered over all samples, without their prefixes.

    The division is one of 32 bits: there are fewer than 2^31 tokens.
    """
    tokens = tokens.to(tl.int32)
    sample = tokens // per_sample
    token = tokens - sample * per_sample + prefix
    return sample.to(tl.int64) * stride_sample + token.to(tl.int64) * stride_row


@triton.jit
def _logits(
    z_ptr, bias_ptr, base, live, ks, inside, BIAS: tl.constexpr
):  # fmt: skip
    """float32 [ROWS, BLOCK], -inf in classes that are not there."""
    at = z_ptr + base[:, None] + ks[None, :]
    z = tl.load(at, mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(bias_ptr + ks, mask=inside, other=0.0)[None, :]
    return tl.where(inside[None, :], z, float("-inf"))


@triton.jit
def _row_sums(
    z, top, ks, inside, target, class_weight_ptr, SMOOTH: tl.constexpr, CLASS_WEIGHT: tl.constexpr
):  # fmt: skip
    """Of each row: sum exp(z - top), top - z[target]; for smoothing sum (top - z), weighted."""
    below = top[:, None] - z
    total = tl.sum(tl.exp(-below), axis=1)
    hit = tl.sum(tl.where(ks[None, :] == target[:, None], below, 0.0), axis=1)
    spread = tl.zeros_like(top)
    if SMOOTH:
        below = tl.where(inside[None, :], below, 0.0)
        if CLASS_WEIGHT:
            below = below * tl.load(class_weight_ptr + ks, mask=inside, other=0.0)[None, :]
        spread = tl.sum(below, axis=1)
    return total, hit, spread


@triton.jit
def _argmax(z, top, ks, K):
    """The lowest class whose logit is ``top``; K where there is none."""
    return tl.min(tl.where(z == top[:, None], ks[None, :], K), axis=1)


@triton.jit
def loss_rows(
    z_ptr, bias_ptr, class_weight_ptr, target_ptr, token_weight_ptr, wrong_ptr, rows_ptr, count_ptr,
    stats_ptr, loss_ptr, sums_ptr, correct_ptr, histogram_ptr,
    N, first, end, per_sample, k_aligned, sample_aligned, row_aligned, smoothing,
    ALIGN: tl.constexpr, COMPACT: tl.constexpr, BIAS: tl.constexpr, CLASS_WEIGHT: tl.constexpr,
    TOKEN_WEIGHT: tl.constexpr, WRONG: tl.constexpr, SMOOTH: tl.constexpr, EACH: tl.constexpr,
    METRICS: tl.constexpr, ONE_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Slots [first, end): stats [2, N] by slot, the losses (EACH) or their float64 sum a program.

    A target that is no class, or a sample marked in ``wrong``, makes the row's loss and stats NaN.
    """
    pid = tl.program_id(0)
    K = k_aligned * ALIGN
    slots = first + pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    listed = slots < end
    live = listed & (slots < tl.load(count_ptr))
    tokens = tl.load(rows_ptr + slots, mask=listed, other=0)
    target = tl.load(target_ptr + tokens, mask=live, other=0).to(tl.int64)
    wrong = (target < 0) | (target >= K)
    if WRONG:
        wrong = wrong | (
            tl.load(wrong_ptr + tokens.to(tl.int32) // per_sample, mask=live, other=0) != 0
        )
    target = tl.where(wrong, -1, target).to(tl.int32)
    if COMPACT:
        base = (slots - first) * row_aligned * ALIGN
    else:
        base = token_offsets(tokens, per_sample, 0, sample_aligned, row_aligned) * ALIGN
    ks = tl.arange(0, BLOCK)
    best = tl.zeros([ROWS], tl.int32)
    if ONE_BLOCK:
        inside = ks < K
        z = _logits(z_ptr, bias_ptr, base, live, ks, inside, BIAS)
        top = tl.max(z, axis=1)
        total, hit, spread = _row_sums(
            z, top, ks, inside, target, class_weight_ptr, SMOOTH, CLASS_WEIGHT
        )
        if METRICS:
            best = _argmax(z, top, ks, K)
    else:
        top = tl.full([ROWS], float("-inf"), tl.float32)
        for k in range(0, K, BLOCK):
            z = _logits(z_ptr, bias_ptr, base, live, k + ks, k + ks < K, BIAS)
            top = tl.maximum(top, tl.max(z, axis=1))
        total = tl.zeros([ROWS], tl.float32)
        hit = tl.zeros([ROWS], tl.float32)
        spread = tl.zeros([ROWS], tl.float32)
        best += K
        for k in range(0, K, BLOCK):
            inside = k + ks < K
            z = _logits(z_ptr, bias_ptr, base, live, k + ks, inside, BIAS)
            totals, hits, spreads = _row_sums(
                z, top, k + ks, inside, target, class_weight_ptr, SMOOTH, CLASS_WEIGHT
            )
            total += totals
            hit += hits
            spread += spreads
            if METRICS:
                best = tl.minimum(best, _argmax(z, top, k + ks, K))
    top = tl.where(wrong, float("nan"), top)
    log_total = tl.log(total)
    hard = tl.full([ROWS], 1.0, tl.float32) - smoothing
    if CLASS_WEIGHT:
        hard *= tl.load(class_weight_ptr + target, mask=live & ~wrong, other=0.0)
    loss = hard * (log_total + hit)
    if SMOOTH:
        mass = K * 1.0
        if CLASS_WEIGHT:
            mass = 0.0
            for k in range(0, K, BLOCK):
                mass += tl.sum(tl.load(class_weight_ptr + k + ks, mask=k + ks < K, other=0.0))
        loss += smoothing * ((mass * log_total + spread) / K)
    loss = tl.where(top == top, loss, float("nan"))
    tl.store(stats_ptr + slots, tl.where(live, top, 0.0), mask=listed)
    tl.store(stats_ptr + N + slots, tl.where(live, total, 0.0), mask=listed)
    weighted = loss.to(tl.float64)
    if TOKEN_WEIGHT:
        weighted *= tl.load(token_weight_ptr + tokens, mask=live, other=0.0).to(tl.float64)
    weighted = tl.where(live, weighted, 0.0)
    if EACH:
        tl.store(loss_ptr + tokens, weighted.to(tl.float32), mask=listed)
    else:
        tl.store(sums_ptr + pid, tl.sum(weighted, axis=0))
    if METRICS:  # whole numbers: the order of the additions does not show
        valid = live & (loss == loss)
        tl.atomic_add(histogram_ptr + best, 1, mask=valid, sem="relaxed")
        right = tl.sum((valid & (best == target)).to(tl.int64), axis=0)
        tl.atomic_add(correct_ptr, right, sem="relaxed")


@triton.jit
def grad_rows(
    z_ptr, bias_ptr, class_weight_ptr, target_ptr, rows_ptr, count_ptr, stats_ptr, scale_ptr,
    out_ptr, db_ptr,
    N, first, end, per_sample, k_aligned, sample_aligned, row_aligned, out_sample_aligned,
    out_row_aligned, smoothing,
    ALIGN: tl.constexpr, COMPACT: tl.constexpr, BIAS: tl.constexpr, CLASS_WEIGHT: tl.constexpr,
    SCALES: tl.constexpr, SMOOTH: tl.constexpr, DB: tl.constexpr, DB_MORE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = scale * d loss / d z of the slots [first, end); 0 where none counts.

    DB: column sums of it to db [programs, K]; DB_MORE: added to what is there.
    """
    pid = tl.program_id(0)
    K = k_aligned * ALIGN
    ks = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ks < K
    n = tl.load(count_ptr)
    db = tl.zeros([BLOCK], tl.float32)
    uniform = tl.full([BLOCK], 0.0, tl.float32)
    mass = 1.0
    if SMOOTH:
        uniform += smoothing / K
    if CLASS_WEIGHT:
        class_weight = tl.load(class_weight_ptr + ks, mask=inside, other=0.0)
        uniform *= class_weight
        mass = 0.0
        if SMOOTH:
            all_ks = tl.arange(0, BLOCK)
            for k in range(0, K, BLOCK):
                weights = tl.load(class_weight_ptr + k + all_ks, mask=k + all_ks < K, other=0.0)
                mass += tl.sum(weights, axis=0)
            mass *= smoothing / K
    if SCALES == 1:
        scale_of_all = tl.load(scale_ptr)
    for start in range(first + pid * ROWS, end, tl.num_programs(0) * ROWS):
        slots = start + tl.arange(0, ROWS).to(tl.int64)
        listed = slots < end
        live = listed & (slots < n)
        tokens = tl.load(rows_ptr + slots, mask=listed, other=0)
        target = tl.load(target_ptr + tokens, mask=live, other=-1)
        top = tl.load(stats_ptr + slots, mask=live, other=0.0)
        total = tl.load(stats_ptr + N + slots, mask=live, other=1.0)
        if COMPACT:
            base = (slots - first) * row_aligned * ALIGN
            out_base = (slots - first) * (out_row_aligned * ALIGN)
        else:
            base = token_offsets(tokens, per_sample, 0, sample_aligned, row_aligned) * ALIGN
            out_base = token_offsets(tokens, per_sample, 0, out_sample_aligned, out_row_aligned)
            out_base *= ALIGN
        z = _logits(z_ptr, bias_ptr, base, live, ks, inside, BIAS)
        p = tl.exp(z - top[:, None]) / total[:, None]
        hard = 1.0 - smoothing
        if CLASS_WEIGHT:
            known = live & (target >= 0) & (target < K)
            hard = hard * tl.load(class_weight_ptr + target, mask=known, other=0.0)
            p = p * (hard + mass)[:, None]
            hit = tl.where(ks[None, :] == target[:, None], hard[:, None], 0.0)
        else:
            hit = tl.where(ks[None, :] == target[:, None], hard, 0.0)
        grad = p - hit
        if SMOOTH:
            grad -= uniform[None, :]
        if SCALES == 1:
            scale = tl.where(live, scale_of_all, 0.0)
        elif SCALES == 2:
            scale = tl.load(scale_ptr + slots, mask=live, other=0.0)
        else:
            scale = tl.where(live, 1.0, 0.0)
        grad = tl.where(live[:, None], grad * scale[:, None], 0.0)
        if DB:
            db += tl.sum(grad, axis=0)
        out = out_ptr + out_base[:, None] + ks[None, :]
        narrow = grad.to(out_ptr.dtype.element_ty)
        tl.store(out, narrow, mask=listed[:, None] & inside[None, :])
    if DB:
        at = db_ptr + pid.to(tl.int64) * K + ks
        if DB_MORE:
            db += tl.load(at, mask=inside, other=0.0)
        tl.store(at, db, mask=inside)


def align(*sizes: int) -> int:
    """The largest power of two up to 16 that divides all ``sizes``."""
    found = 16
    while any(size % found for size in sizes):
        found //= 2
    return found


def tile(num_classes: int) -> dict[str, int]:
    """ROWS, BLOCK and warps: 32 values a thread, so that a row of up to MAX_BLOCK is read once."""
    block = min(triton.next_power_of_2(num_classes), MAX_BLOCK)
    rows = max(1, min(64, 4096 // block))
    return {
        "ROWS": rows,
        "BLOCK": block,
        "num_warps": max(1, rows * block // 1024),
        "enable_fp_fusion": True,
    }


def as_samples(logits: torch.Tensor) -> torch.Tensor:
    """[S, L, K] with dense rows; a view unless the strides allow none."""
    num_classes = logits.shape[-1]
    tokens = logits.shape[-2] if logits.dim() >= 2 else 1
    view = logits.reshape(logits.shape[:-2].numel(), tokens, num_classes)
    return view if view.stride(2) == 1 or num_classes == 1 else view.contiguous()
