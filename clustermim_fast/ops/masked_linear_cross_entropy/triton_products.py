"""Kernels of the linear loss for many classes and 16-bit operands: dX and dW from dZ.

They gather the counted tokens by pointer and have nothing to do beyond the device's count.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clustermim_fast.ops.masked_cross_entropy.triton_rows import token_offsets


@triton.jit
def input_gradient(
    dz_ptr, w_ptr, rows_ptr, count_ptr, factor_ptr, relative_ptr, direction_ptr, dx_ptr,
    first, end, K, D, columns, row, per_sample, prefix, w_row, dx_sample, dx_row, shift,
    SMOOTH: tl.constexpr, RELATIVE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    WIDTH: tl.constexpr, EVEN_WIDTH: tl.constexpr,
):  # fmt: skip
    """dX of the counted slots of [first, end), to where the tokens lie."""
    pid = tl.program_id(0)
    n = tl.minimum(tl.load(count_ptr), end)
    start = first + (pid // columns).to(tl.int64) * ROWS
    if start >= n:
        return
    slots = start + tl.arange(0, ROWS)
    live = slots < n
    ds = (pid % columns) * WIDTH + tl.arange(0, WIDTH)
    there = ds < D
    dz_base = dz_ptr + (slots - first)[:, None] * row
    dx = tl.zeros([ROWS, WIDTH], tl.float32)
    for k in range(0, K, DEPTH):  # behind K weights are 0
        ks = k + tl.arange(0, DEPTH)
        dz = tl.load(dz_base + ks[None, :], mask=live[:, None], other=0.0)
        w_at = w_ptr + ks[:, None] * w_row + ds[None, :]
        if EVEN_WIDTH:
            w = tl.load(w_at)
        else:
            w = tl.load(w_at, mask=there[None, :], other=0.0)
        dx = tl.dot(dz, w, dx)
    factor = tl.load(factor_ptr)
    dx *= factor / shift
    mask = live[:, None]
    if not EVEN_WIDTH:
        mask = mask & there[None, :]
    if SMOOTH:
        scale = tl.zeros([ROWS], tl.float32) + factor
        if RELATIVE:
            scale *= tl.load(relative_ptr + slots, mask=live, other=0.0)
        direction = tl.load(direction_ptr + ds, mask=there, other=0.0)
        dx -= scale[:, None] * direction[None, :]
    tokens = tl.load(rows_ptr + slots, mask=live, other=0)
    base = token_offsets(tokens, per_sample, prefix, dx_sample, dx_row)
    tl.store(dx_ptr + base[:, None] + ds[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradient(
    x_ptr, dz_ptr, rows_ptr, count_ptr, parts_ptr,
    first, end, D, splits, tiles, columns, row, per_sample, prefix, x_sample, x_row,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr, EVEN_WIDTH: tl.constexpr,
):  # fmt: skip
    """dZ^T X of one span of the slots [first, end), added to parts [splits, tiles * CLASSES, D]."""
    pid = tl.program_id(0)
    split = pid // (tiles * columns)
    ks = (pid // columns) % tiles * CLASSES + tl.arange(0, CLASSES)
    ds = (pid % columns) * WIDTH + tl.arange(0, WIDTH)
    there = ds < D
    n = tl.minimum(tl.load(count_ptr), end)
    span = tl.cdiv(tl.cdiv(n - first, ROWS), splits) * ROWS
    begin = first + split * span
    stop = tl.minimum(begin + span, n)
    at = parts_ptr + (split.to(tl.int64) * tiles * CLASSES + ks[:, None]) * D + ds[None, :]
    if EVEN_WIDTH:
        dw = tl.load(at)
    else:
        dw = tl.load(at, mask=there[None, :], other=0.0)
    for start in range(begin, stop, ROWS):
        slots = start + tl.arange(0, ROWS).to(tl.int64)
        live = slots < stop
        tokens = tl.load(rows_ptr + slots, mask=live, other=0)
        base = token_offsets(tokens, per_sample, prefix, x_sample, x_row)
        x_mask = live[:, None]
        if not EVEN_WIDTH:
            x_mask = x_mask & there[None, :]
        x = tl.load(x_ptr + base[:, None] + ds[None, :], mask=x_mask, other=0.0)
        dz_at = dz_ptr + (slots - first)[:, None] * row + ks[None, :]
        dz = tl.load(dz_at, mask=live[:, None], other=0.0)
        dw = tl.dot(tl.trans(dz), x, dw)
    if EVEN_WIDTH:
        tl.store(at, dw)
    else:
        tl.store(at, dw, mask=there[None, :])
