"""Kernels of the linear loss for many classes and 16-bit operands: logits to their gradient dZ.

dZ = p - (1 - smoothing) onehot is rounded to the operands' dtype for the products that make dX and
dW (triton_products.py); db is summed from float32.

Where the forward pass makes the gradients too, a tile of logits is there before its rows' sums
are. It is kept as E = 2^15 exp(z - top) in float16, top the largest logit of the row in that tile
of COLUMNS classes: p is E times one number for each row and tile, and dZ takes E's place. That
rounds p once more: by 2^-11 of itself (11 bits, to nearest), or, where E is below float16's least
normal number, by half a step of 2^-24, which is 2^-40 of the 2^15 that stand for the tile's
largest p. bfloat16 rounds the same p by 2^-8 afterwards; float16 never takes this way. The target's
own p is made from its float32 logit, since the one-hot may cancel it.

With the rows' sums known (a backward pass of its own) dZ comes straight from the logits.

All of them gather the counted tokens by pointer and have nothing to do beyond the device's count.
What is rounded, shifted and taken off for smoothing is as in triton_fused.py; sum(scale x), which
smoothing takes off dW, comes out of the same product, from EXTRA columns behind dZ.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.masked_cross_entropy.triton_rows import token_offsets
from clustermim_fast.ops.masked_linear_cross_entropy.triton_fused import tile_logits

EXTRA = 3  # columns behind dZ


@triton.jit
def logit_tiles(
    x_ptr, w_ptr, bias_ptr, target_ptr, rows_ptr, count_ptr,
    e_ptr, tops_ptr, totals_ptr, zsums_ptr, best_ptr, hit_ptr,
    first, end, K, D, tiles, e_row, per_sample, prefix, x_sample, x_row, w_row,
    KEEP: tl.constexpr, SMOOTH: tl.constexpr, METRICS: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """Slots [first, end): E (KEEP), and of each row and tile the largest logit, sum exp, sum z
    (SMOOTH) and first largest class (METRICS); of each row the target's logit.

    Weight and bias have whole tiles of classes, of which those past K (PADDED) hold 0.
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    n = tl.minimum(tl.load(count_ptr), end)
    start = first + (pid // tiles).to(tl.int64) * ROWS
    if start >= n:
        return
    slots = start + tl.arange(0, ROWS)
    live = slots < n
    tokens = tl.load(rows_ptr + slots, mask=live, other=0)
    base = token_offsets(tokens, per_sample, prefix, x_sample, x_row)
    columns = tl.arange(0, COLUMNS)
    ks = tile * COLUMNS + columns
    z = tile_logits(x_ptr, w_ptr, base, live, ks, D, w_row, ROWS, COLUMNS, DEPTH, EVEN_D)
    at = slots - first
    z += tl.load(bias_ptr + ks)[None, :]
    if SMOOTH:  # classes that are not there add 0
        tl.store(zsums_ptr + at * tiles + tile, tl.sum(z, axis=1), mask=live)
    if PADDED:
        z = tl.where((columns < K - tile * COLUMNS)[None, :], z, float("-inf"))
    target = tl.load(target_ptr + tokens, mask=live, other=-1).to(tl.int64)
    here = (target >= tile * COLUMNS) & (target < tl.minimum((tile + 1) * COLUMNS, K))
    column = tl.where(here, target - tile * COLUMNS, -1).to(tl.int32)
    hit = tl.sum(tl.where(columns[None, :] == column[:, None], z, 0.0), axis=1)
    tl.store(hit_ptr + at, hit, mask=column >= 0)
    top = tl.max(z, axis=1)
    if METRICS:
        best = tl.min(tl.where(z == top[:, None], ks[None, :], K), axis=1)
        tl.store(best_ptr + at * tiles + tile, best, mask=live)
    tl.store(tops_ptr + at * tiles + tile, top, mask=live)
    top = tl.where(top == float("-inf"), 0.0, top)
    below = top[:, None] - z
    e = tl.exp(-below)
    tl.store(totals_ptr + at * tiles + tile, tl.sum(e, axis=1), mask=live)
    if KEEP:
        e_at = e_ptr + at[:, None] * e_row + ks[None, :]
        tl.store(e_at, (e * 32768.0).to(tl.float16), mask=live[:, None])


@triton.jit
def combine_tiles(
    tops_ptr, totals_ptr, zsums_ptr, best_ptr, hit_ptr, target_ptr, token_weight_ptr, wrong_ptr,
    rows_ptr, count_ptr, stats_ptr, loss_ptr, sums_ptr, correct_ptr, histogram_ptr, relative_ptr,
    N, first, end, K, tiles, per_sample, smoothing,
    GRAD: tl.constexpr, SMOOTH: tl.constexpr, TOKEN_WEIGHT: tl.constexpr, WRONG: tl.constexpr,
    EACH: tl.constexpr, METRICS: tl.constexpr, RELATIVE: tl.constexpr, ROWS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Losses and stats.

    GRAD: ``tops`` becomes what E is multiplied by, ``hit`` the gradient of the target's logit.
    """
    pid = tl.program_id(0)
    slots = first + pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = (slots < end) & (slots < tl.load(count_ptr))
    tokens = tl.load(rows_ptr + slots, mask=live, other=0)
    target = tl.load(target_ptr + tokens, mask=live, other=0).to(tl.int64)
    known = (target >= 0) & (target < K)
    lanes = tl.arange(0, TILES)
    at = (slots - first)[:, None] * tiles + lanes[None, :]
    there = live[:, None] & (lanes < tiles)[None, :]
    tops = tl.load(tops_ptr + at, mask=there, other=float("-inf"))
    totals = tl.load(totals_ptr + at, mask=there, other=0.0)
    top = tl.max(tops, axis=1)
    under = tl.exp(tops - top[:, None])
    total = tl.sum(tl.where(there, under * totals, 0.0), axis=1)
    hit = tl.load(hit_ptr + slots - first, mask=live & known, other=0.0)
    if WRONG:
        sample = tokens.to(tl.int32) // per_sample
        known = known & (tl.load(wrong_ptr + sample, mask=live, other=0) == 0)
    known = known & (total == total)
    log_total = tl.log(total)
    loss = (1.0 - smoothing) * (log_total + (top - hit))
    if SMOOTH:
        zsums = tl.load(zsums_ptr + at, mask=there, other=0.0)
        loss += smoothing * (log_total + (top - tl.sum(zsums, axis=1) / K))
    loss = tl.where(known, loss, float("nan"))
    tl.store(stats_ptr + slots, tl.where(known, top, float("nan")), mask=live)
    tl.store(stats_ptr + N + slots, total, mask=live)
    weighted = loss.to(tl.float64)
    if TOKEN_WEIGHT:
        weighted *= tl.load(token_weight_ptr + tokens, mask=live, other=0.0).to(tl.float64)
    if EACH:
        tl.store(loss_ptr + tokens, weighted.to(tl.float32), mask=live)
    else:
        tl.store(sums_ptr + pid, tl.sum(tl.where(live, weighted, 0.0), axis=0))
    if METRICS:  # whole numbers: the order of the additions does not show
        bests = tl.load(best_ptr + at, mask=there, other=0)
        best = tl.min(tl.where(there & (tops == top[:, None]), bests, K), axis=1)
        valid = live & (loss == loss)
        tl.atomic_add(histogram_ptr + best, 1, mask=valid, sem="relaxed")
        right = tl.sum((valid & (best == target)).to(tl.int64), axis=0)
        tl.atomic_add(correct_ptr, right, sem="relaxed")
    if GRAD:
        relative = tl.where(live, 1.0, 0.0)
        if RELATIVE:
            relative = tl.load(relative_ptr + slots, mask=live, other=0.0)
        share = tl.where(known, relative / total, float("nan"))
        hard = (1.0 - smoothing) * relative
        tl.debug_barrier()  # other threads have read what is overwritten from here on
        tl.store(hit_ptr + slots - first, tl.exp(hit - top) * share - hard, mask=live)
        tl.store(tops_ptr + at, under * share[:, None], mask=there)


@triton.jit
def _scale_behind(dz, ks, K, scale, dtype: tl.constexpr):
    """``dz``; in the EXTRA columns behind class K numbers of ``dtype`` that add up to ``scale``."""
    part = scale.to(dtype).to(tl.float32)
    dz = tl.where(ks[None, :] == K, part[:, None], dz)
    scale -= part
    part = scale.to(dtype).to(tl.float32)
    dz = tl.where(ks[None, :] == K + 1, part[:, None], dz)
    return tl.where(ks[None, :] == K + 2, (scale - part)[:, None], dz)


@triton.jit
def grad_tiles(
    e_ptr, dz_ptr, scales_ptr, hit_ptr, target_ptr, rows_ptr, count_ptr, relative_ptr, db_ptr,
    first, end, K, tiles, row, smoothing, shift,
    RELATIVE: tl.constexpr, SMOOTH: tl.constexpr, DB: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """dZ, shifted, from E in the same place; behind the classes SMOOTH its scale, and zeros.

    DB: column sums, with the smoothing's constant part, are added to db [programs, K].
    """
    pid = tl.program_id(0)
    tile = tl.program_id(1)
    ks = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = ks < K
    n = tl.minimum(tl.load(count_ptr), end)
    db = tl.zeros([COLUMNS], tl.float32)
    for start in range(first + pid * ROWS, n, tl.num_programs(0) * ROWS):
        slots = start + tl.arange(0, ROWS).to(tl.int64)
        live = slots < n
        made = slots < tl.where(tile < tiles, n, 0)
        tokens = tl.load(rows_ptr + slots, mask=live, other=0)
        target = tl.load(target_ptr + tokens, mask=live, other=-1).to(tl.int32)
        at = slots - first
        scale = tl.load(scales_ptr + at * tiles + tile, mask=made, other=0.0)
        hit = tl.load(hit_ptr + at, mask=live, other=0.0)
        offsets = at[:, None] * row + ks[None, :]
        e = tl.load(e_ptr + offsets, mask=made[:, None], other=0.0).to(tl.float32)
        onehot = ks[None, :] == target[:, None]
        dz = tl.where(onehot, hit[:, None], e * (scale * (1.0 / 32768.0))[:, None])
        relative = tl.where(live, 1.0, 0.0)
        if RELATIVE:
            relative = tl.load(relative_ptr + slots, mask=live, other=0.0)
        if DB:
            if SMOOTH:
                db += tl.sum(dz - (relative * (smoothing / K))[:, None], axis=0)
            else:
                db += tl.sum(dz, axis=0)
        dz = tl.where(inside[None, :], dz * shift, 0.0)
        if SMOOTH:
            dz = _scale_behind(dz, ks, K, relative * shift, dz_ptr.dtype.element_ty)
        tl.debug_barrier()  # other threads have read E
        tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=live[:, None])
    if DB:
        db_at = db_ptr + pid.to(tl.int64) * K + ks
        db += tl.load(db_at, mask=inside, other=0.0)
        tl.store(db_at, db, mask=inside)


@triton.jit
def logit_gradients(
    x_ptr, w_ptr, bias_ptr, target_ptr, rows_ptr, count_ptr, stats_ptr, relative_ptr, dz_ptr,
    db_ptr,
    N, first, end, K, D, tiles, row_tiles, row, per_sample, prefix, x_sample, x_row, w_row,
    smoothing, shift,
    RELATIVE: tl.constexpr, SMOOTH: tl.constexpr, DB: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """dZ of the slots [first, end), whose stats are known, as ``grad_tiles`` leaves it.

    The grid has ``row_tiles`` tiles of a row, of which ``tiles`` are of classes. DB: column sums,
    with the smoothing's constant part, are added to db [tiles of tokens, K].
    """
    pid = tl.program_id(0)
    tile = pid % row_tiles
    n = tl.minimum(tl.load(count_ptr), end)
    start = first + (pid // row_tiles).to(tl.int64) * ROWS
    if start >= n:
        return
    slots = start + tl.arange(0, ROWS)
    live = slots < n
    tokens = tl.load(rows_ptr + slots, mask=live, other=0)
    base = token_offsets(tokens, per_sample, prefix, x_sample, x_row)
    ks = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = ks < K
    depth = tl.where(tile < tiles, D, 0)
    z = tile_logits(x_ptr, w_ptr, base, live, ks, depth, w_row, ROWS, COLUMNS, DEPTH, EVEN_D)
    z += tl.load(bias_ptr + ks, mask=inside, other=float("-inf"))[None, :]
    top = tl.load(stats_ptr + slots, mask=live, other=float("inf"))
    total = tl.load(stats_ptr + N + slots, mask=live, other=1.0)
    target = tl.load(target_ptr + tokens, mask=live, other=-1).to(tl.int32)
    relative = tl.where(live, 1.0, 0.0)
    if RELATIVE:
        relative = tl.load(relative_ptr + slots, mask=live, other=0.0)
    dz = tl.exp(z - top[:, None]) * (relative / total)[:, None]
    hard = (1.0 - smoothing) * relative
    dz = tl.where(ks[None, :] == target[:, None], dz - hard[:, None], dz)
    if DB:
        db_at = db_ptr + (pid // row_tiles).to(tl.int64) * K + ks
        db = tl.load(db_at, mask=inside, other=0.0)
        if SMOOTH:
            db += tl.sum(dz - (relative * (smoothing / K))[:, None], axis=0)
        else:
            db += tl.sum(dz, axis=0)
        tl.store(db_at, db, mask=inside)
    dz *= shift
    if SMOOTH:
        dz = _scale_behind(dz, ks, K, relative * shift, dz_ptr.dtype.element_ty)
    at = (slots - first)[:, None] * row + ks[None, :]
    tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=live[:, None])
