"""Kernels of the linear loss for few classes (up to 256) and 16-bit operands: no logits in memory.

A program takes tiles of ROWS counted tokens, gathered by pointer, and all classes: logits, softmax,
loss, and the gradient of the logits dZ = p - (1 - smoothing) onehot, rounded to the operands' dtype
for two products: dX, written to its rows at once, and dW, which a second kernel sums up from dZ
(16 bits, [N, KP]), split over the tokens into float32 parts that a third adds in a fixed order.

dX and dW are multiplied by ``factor`` (grad_output over the divisor) in float32, after their
products, so that a loss scale and 1 / N never meet 16 bits; float16's dZ is shifted by 2^15.
Smoothing's constant part is rank one and taken off the results: dX -= scale smoothing mean(W),
dW_k -= smoothing / K sum(scale x).
"""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.masked_cross_entropy.triton_rows import token_offsets


@triton.jit
def tile_logits(
    x_ptr, w_ptr, base, live, ks, D, w_row,
    ROWS: tl.constexpr, KP: tl.constexpr, DEPTH: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """float32 [ROWS, KP]: tokens times classes."""
    z = tl.zeros([ROWS, KP], tl.float32)
    for d in range(0, D, DEPTH):
        ds = d + tl.arange(0, DEPTH)
        x_at = x_ptr + base[:, None] + ds[None, :]
        w_at = w_ptr + ks[:, None] * w_row + ds[None, :]
        if EVEN_D:
            x = tl.load(x_at, mask=live[:, None], other=0.0)
            w = tl.load(w_at)
        else:
            there = (ds < D)[None, :]
            x = tl.load(x_at, mask=live[:, None] & there, other=0.0)
            w = tl.load(w_at, mask=there, other=0.0)
        z = tl.dot(x, tl.trans(w), z)
    return z


@triton.jit
def _is_power_of_two(value):
    """Or 0 or inf: no product of a finite number with it is rounded."""
    return (value.to(tl.int32, bitcast=True) & 0x7FFFFF) == 0


@triton.jit
def scale_rows(
    rows_ptr, count_ptr, grad_ptr, dx_ptr, D, per_sample, prefix, dx_sample, dx_row,
    ALWAYS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dX times grad_output, unless ALWAYS if that is a power of two; 1 has nothing read."""
    grad = tl.load(grad_ptr)
    n = tl.where((_is_power_of_two(grad) | ALWAYS) & (grad != 1.0), tl.load(count_ptr), 0)
    for start in range(tl.program_id(0) * ROWS, n, tl.num_programs(0) * ROWS):
        slots = start + tl.arange(0, ROWS).to(tl.int64)
        live = slots < n
        tokens = tl.load(rows_ptr + slots, mask=live, other=0)
        base = token_offsets(tokens, per_sample, prefix, dx_sample, dx_row)
        for d in range(0, D, WIDTH):
            ds = d + tl.arange(0, WIDTH)
            at = dx_ptr + base[:, None] + ds[None, :]
            mask = live[:, None] & (ds < D)[None, :]
            dx = tl.load(at, mask=mask, other=0.0).to(tl.float32) * grad
            tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _zero_rows(
    dx_ptr, base, listed, D, ROWS: tl.constexpr, WIDTH: tl.constexpr, EVEN_WIDTH: tl.constexpr
):  # fmt: skip
    nothing = tl.zeros([ROWS, WIDTH], dx_ptr.dtype.element_ty)
    for d in range(0, D, WIDTH):
        ds = d + tl.arange(0, WIDTH)
        at = dx_ptr + base[:, None] + ds[None, :]
        if EVEN_WIDTH:
            tl.store(at, nothing, mask=listed[:, None])
        else:
            tl.store(at, nothing, mask=listed[:, None] & (ds < D)[None, :])


@triton.jit
def linear_rows(
    x_ptr, w_ptr, bias_ptr, target_ptr, token_weight_ptr, wrong_ptr, rows_ptr, count_ptr,
    stats_ptr, loss_ptr, sums_ptr, correct_ptr, histogram_ptr,
    factor_ptr, relative_ptr, direction_ptr, dz_ptr, dx_ptr, db_ptr, grad_ptr,
    N, K, D, per_sample, prefix, samples, x_sample, x_row, w_row, dx_sample, dx_row, smoothing,
    shift, TOKEN_WEIGHT: tl.constexpr, WRONG: tl.constexpr,
    SMOOTH: tl.constexpr, EACH: tl.constexpr, METRICS: tl.constexpr, LOSS: tl.constexpr,
    RELATIVE: tl.constexpr, AGAIN: tl.constexpr, DX: tl.constexpr, DZ: tl.constexpr,
    DB: tl.constexpr,
    ROWS: tl.constexpr, KP: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    EVEN_D: tl.constexpr, EVEN_WIDTH: tl.constexpr,
):  # fmt: skip
    """LOSS: losses and stats, written. DX, DZ, DB: gradients; without LOSS the stats are read.

    Weight, bias and db have KP classes, of which those past K hold 0, -inf and anything. AGAIN: dX
    is there for a grad_output of 1, and is made again if that is no power of two.
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    n = tl.load(count_ptr)
    if AGAIN:
        n = tl.where(_is_power_of_two(tl.load(grad_ptr)), 0, n)
    ks = tl.arange(0, KP)
    inside = ks < K
    factor = 1.0
    if DX or DZ or DB:
        factor = tl.load(factor_ptr)
    if DB:
        tl.store(db_ptr + pid * KP + ks, tl.zeros([KP], tl.float32))
    losses = tl.zeros([ROWS], tl.float64)
    right = tl.zeros([ROWS], tl.int32)
    chosen = tl.zeros([KP], tl.int32)
    for start in range(pid * ROWS, n, programs * ROWS):
        slots = start + tl.arange(0, ROWS).to(tl.int64)
        live = slots < n
        tokens = tl.load(rows_ptr + slots, mask=live, other=0)
        target = tl.load(target_ptr + tokens, mask=live, other=0).to(tl.int64)
        known = (target >= 0) & (target < K)
        target = tl.where(known, target, -1).to(tl.int32)
        base = token_offsets(tokens, per_sample, prefix, x_sample, x_row)
        z = tile_logits(
            x_ptr, w_ptr, base, live, ks, D, w_row, ROWS, KP, DEPTH, EVEN_D
        ) + tl.load(bias_ptr + ks)[None, :]  # fmt: skip
        top = tl.max(z, axis=1)
        below = top[:, None] - z
        p = tl.exp(-below)
        total = tl.sum(p, axis=1)
        onehot = ks[None, :] == target[:, None]
        if LOSS:
            if WRONG:
                sample = tokens.to(tl.int32) // per_sample
                known = known & (tl.load(wrong_ptr + sample, mask=live, other=0) == 0)
            known = known & (total == total)
            log_total = tl.log(total)
            if SMOOTH:
                each = smoothing / K
                share = tl.where(onehot, 1.0 - smoothing + each, each)
                loss = log_total + tl.sum(tl.where(inside[None, :], below * share, 0.0), axis=1)
            else:
                loss = log_total + tl.sum(tl.where(onehot, below, 0.0), axis=1)
            loss = tl.where(known, loss, float("nan"))
            tl.store(stats_ptr + slots, tl.where(known, top, float("nan")), mask=live)
            tl.store(stats_ptr + N + slots, total, mask=live)
            weighted = loss.to(tl.float64)
            if TOKEN_WEIGHT:
                weighted *= tl.load(token_weight_ptr + tokens, mask=live, other=0.0).to(tl.float64)
            if EACH:
                tl.store(loss_ptr + tokens, weighted.to(tl.float32), mask=live)
            else:
                losses += tl.where(live, weighted, 0.0)
            if METRICS:
                best = tl.min(tl.where(below == 0.0, ks[None, :], KP), axis=1)
                best = tl.where(live & (loss == loss), best, -2)
                right += (best == target).to(tl.int32)
                chosen += tl.sum((best[:, None] == ks[None, :]).to(tl.int32), axis=0)
        else:
            saved = tl.load(stats_ptr + slots, mask=live, other=0.0)
            known = known & (saved == saved)
        if DX or DZ or DB:
            relative = tl.where(live, 1.0, 0.0)
            if RELATIVE:
                relative = tl.load(relative_ptr + slots, mask=live, other=0.0)
            share = tl.where(known | ~live, relative / total, float("nan"))
            hard = (1.0 - smoothing) * relative
            dz = p * share[:, None] - tl.where(onehot, hard[:, None], 0.0)
            if DB:
                # In memory, not in registers: they are short.
                db = tl.load(db_ptr + pid * KP + ks)
                if SMOOTH:
                    db += tl.sum(dz - (relative * (smoothing / K))[:, None], axis=0)
                else:
                    db += tl.sum(dz, axis=0)
                tl.store(db_ptr + pid * KP + ks, db)
        if DX or DZ:
            dz_narrow = (dz * shift).to(w_ptr.dtype.element_ty)
            if DZ:
                tl.store(dz_ptr + slots[:, None] * KP + ks[None, :], dz_narrow, mask=live[:, None])
            if DX:
                scale = factor * relative
                dx_base = token_offsets(tokens, per_sample, prefix, dx_sample, dx_row)
                for d in range(0, D, WIDTH):
                    ds = d + tl.arange(0, WIDTH)
                    at = w_ptr + ks[:, None] * w_row + ds[None, :]
                    if EVEN_WIDTH:
                        w = tl.load(at)
                    else:
                        w = tl.load(at, mask=(ds < D)[None, :], other=0.0)
                    dx = tl.dot(dz_narrow, w) * (factor / shift)
                    at = dx_ptr + dx_base[:, None] + ds[None, :]
                    if EVEN_WIDTH:
                        if SMOOTH:
                            direction = tl.load(direction_ptr + ds)
                            dx -= scale[:, None] * direction[None, :]
                        tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=live[:, None])
                    else:
                        there = ds < D
                        if SMOOTH:
                            direction = tl.load(direction_ptr + ds, mask=there, other=0.0)
                            dx -= scale[:, None] * direction[None, :]
                        narrow = dx.to(dx_ptr.dtype.element_ty)
                        tl.store(at, narrow, mask=live[:, None] & there[None, :])
    if LOSS and not EACH:
        tl.store(sums_ptr + pid, tl.sum(losses, axis=0))
    if LOSS and METRICS:  # whole numbers: the order of the additions does not show
        tl.atomic_add(histogram_ptr + ks, chosen.to(tl.int64), mask=chosen > 0, sem="relaxed")
        tl.atomic_add(correct_ptr, tl.sum(right, axis=0).to(tl.int64), sem="relaxed")
    if (LOSS or DX) and not AGAIN:  # what does not count
        for start in range(n + pid * ROWS, N, programs * ROWS):
            slots = start + tl.arange(0, ROWS).to(tl.int64)
            listed = slots < N
            tokens = tl.load(rows_ptr + slots, mask=listed, other=0)
            if LOSS:
                tl.store(stats_ptr + slots, tl.zeros([ROWS], tl.float32), mask=listed)
                tl.store(stats_ptr + N + slots, tl.zeros([ROWS], tl.float32), mask=listed)
                if EACH:
                    tl.store(loss_ptr + tokens, tl.zeros([ROWS], tl.float32), mask=listed)
            if DX:
                base = token_offsets(tokens, per_sample, prefix, dx_sample, dx_row)
                _zero_rows(dx_ptr, base, listed, D, ROWS, WIDTH, EVEN_WIDTH)
    if DX and not AGAIN:  # the prefixes
        for start in range(pid * ROWS, samples * prefix, programs * ROWS):
            tokens = start + tl.arange(0, ROWS)
            base = token_offsets(tokens, prefix, 0, dx_sample, dx_row)
            _zero_rows(dx_ptr, base, tokens < samples * prefix, D, ROWS, WIDTH, EVEN_WIDTH)


@triton.jit
def prepare(
    w_ptr, bias_ptr, padded_ptr, direction_ptr, K, D, classes, w_row, smoothing,
    BIAS: tl.constexpr, DIRECTION: tl.constexpr, KP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The bias of ``classes``, -inf behind the last of K; what smoothing takes off dX for a row of
    scale 1."""
    pid = tl.program_id(0)
    ks = tl.arange(0, KP)
    inside = ks < K
    if pid == 0:
        bias = tl.zeros([KP], tl.float32)
        if BIAS:
            bias = tl.load(bias_ptr + ks, mask=inside, other=0.0)
        tl.store(padded_ptr + ks, tl.where(inside, bias, float("-inf")), mask=ks < classes)
    if DIRECTION:
        ds = pid * WIDTH + tl.arange(0, WIDTH)
        there = ds < D
        at = w_ptr + ks[:, None] * w_row + ds[None, :]
        w = tl.load(at, mask=inside[:, None] & there[None, :], other=0.0).to(tl.float64)
        direction = (tl.sum(w, axis=0) / K).to(tl.float32) * smoothing
        tl.store(direction_ptr + ds, direction, mask=there)


@triton.jit
def weight_parts(
    x_ptr, dz_ptr, rows_ptr, count_ptr, factor_ptr, relative_ptr, parts_ptr, sums_ptr,
    K, D, splits, per_sample, prefix, x_sample, x_row, shift,
    SMOOTH: tl.constexpr, RELATIVE: tl.constexpr, ROWS: tl.constexpr, KP: tl.constexpr,
    WIDTH: tl.constexpr, EVEN_WIDTH: tl.constexpr,
):  # fmt: skip
    """dW of one span of tokens, [splits, K, D], and (SMOOTH) sum(scale x), [splits, D]."""
    pid = tl.program_id(0)
    columns = tl.cdiv(D, WIDTH)
    split = pid // columns
    ds = (pid % columns) * WIDTH + tl.arange(0, WIDTH)
    there = ds < D
    ks = tl.arange(0, KP)
    n = tl.load(count_ptr)
    span = tl.cdiv(tl.cdiv(n, ROWS), splits) * ROWS
    begin = split * span
    end = tl.minimum(begin + span, n)
    factor = tl.load(factor_ptr)
    dw = tl.zeros([WIDTH, KP], tl.float32)  # transposed: tensor cores want 64 rows
    inputs = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(begin, end, ROWS):
        slots = start + tl.arange(0, ROWS).to(tl.int64)
        live = slots < end
        tokens = tl.load(rows_ptr + slots, mask=live, other=0)
        base = token_offsets(tokens, per_sample, prefix, x_sample, x_row)
        x_mask = live[:, None]
        if not EVEN_WIDTH:
            x_mask = x_mask & there[None, :]
        x = tl.load(x_ptr + base[:, None] + ds[None, :], mask=x_mask, other=0.0)
        dz = tl.load(dz_ptr + slots[:, None] * KP + ks[None, :], mask=live[:, None], other=0.0)
        dw = tl.dot(tl.trans(x), dz, dw)
        if SMOOTH:
            if RELATIVE:
                relative = tl.load(relative_ptr + slots, mask=live, other=0.0)
                inputs += x.to(tl.float32) * relative[:, None]
            else:
                inputs += x.to(tl.float32)
    at = parts_ptr + (split.to(tl.int64) * K + ks[:, None]) * D + ds[None, :]
    tl.store(at, tl.trans(dw) * (factor / shift), mask=(ks < K)[:, None] & there[None, :])
    if SMOOTH:
        at = sums_ptr + split.to(tl.int64) * D + ds
        tl.store(at, tl.sum(inputs, axis=0) * factor, mask=there)


@triton.jit
def add_parts(
    parts_ptr, sums_ptr, out_ptr, parts, size, D, share,
    SMOOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [size] = sum of parts [parts, size], less share * sum of sums [parts, D], by column."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(parts):
        offset = tl.full([BLOCK], 0, tl.int64) + part
        total += tl.load(parts_ptr + offset * size + at, mask=there, other=0.0)
    if SMOOTH:
        inputs = tl.zeros([BLOCK], tl.float32)
        for part in range(parts):
            offset = tl.full([BLOCK], 0, tl.int64) + part
            inputs += tl.load(sums_ptr + offset * D + at % D, mask=there, other=0.0)
        total -= share * inputs
    tl.store(out_ptr + at, total, mask=there)
