"""Patches and the images or feature maps that they tile."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, L, p p C], patches row-major, values in (row, column, channel) order."""
    batch, channels, height, width = images.shape
    p = patch_size
    grid = images.reshape(batch, channels, height // p, p, width // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)


def expand_mask(mask: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """bool [B, L] of a grid of patches -> bool [B, 1, H, W] of a map whose sides are multiples."""
    maps = mask.view(len(mask), 1, *grid)
    return maps.repeat_interleave(size[0] // grid[0], 2).repeat_interleave(size[1] // grid[1], 3)
