"""Pasting centroids over patches: one pass, every pixel read once and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clustermim_fast.ops import _triton

_BLOCK_ROWS, _BLOCK_COLUMNS = 8, 256


@triton.jit
def _replace_patches(
    images, ids, where, pixels, out,
    num_rows, channels, height, width, num_centroids,
    stride_b, stride_c, stride_h, stride_w,
    PATCH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # of [B * C * H]
    x = (tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS))[None, :]
    inside = (row < num_rows)[:, None] & (x < width)
    y, c, b = row % height, row // height % channels, row // height // channels
    across = width // PATCH
    first_patch = (b * (height // PATCH) + y // PATCH) * across
    patch = first_patch[:, None] + x // PATCH
    chosen = tl.load(where + patch, mask=inside, other=0) != 0
    token = tl.load(ids + patch, mask=inside & chosen, other=-1)
    replaced = (token >= 0) & (token < num_centroids)
    at = (b * stride_b + c * stride_c + y * stride_h)[:, None] + x.to(tl.int64) * stride_w
    kept = tl.load(images + at, mask=inside & ~replaced, other=0)
    pixel = (c * PATCH + y % PATCH)[:, None] * PATCH + x % PATCH
    pasted = tl.load(
        pixels + token * (channels * PATCH * PATCH) + pixel, mask=inside & replaced, other=0
    )
    to = row[:, None] * width + x
    tl.store(out + to, tl.where(replaced, pasted, kept), mask=inside)


def replace_patches(
    images: torch.Tensor, ids: torch.Tensor, pixels_KppC: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """As ``replace_patches_reference``; a patch whose id is no centroid's is left alone."""
    batch, channels, height, width = images.shape
    out = images.new_empty(images.shape)
    if out.numel() == 0:
        return out
    num_rows = batch * channels * height
    grid = (triton.cdiv(num_rows, _BLOCK_ROWS), triton.cdiv(width, _BLOCK_COLUMNS))
    with _triton.launching_on(images):
        _replace_patches[grid](
            images, ids.contiguous(), where.contiguous().view(torch.uint8),
            pixels_KppC.permute(0, 3, 1, 2).contiguous(), out,
            num_rows, channels, height, width, pixels_KppC.shape[0], *images.stride(),
            PATCH=pixels_KppC.shape[1], BLOCK_ROWS=_BLOCK_ROWS, BLOCK_COLUMNS=_BLOCK_COLUMNS,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out
