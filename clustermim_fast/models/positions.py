"""Fixed two-dimensional sine-cosine position embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sincos_positions(grid: tuple[int, int], dim: int, num_prefix_tokens: int = 0) -> Tensor:
    """Position embedding of a grid of patches, float32 [num_prefix_tokens + rows * columns, dim].

    The first half of the channels encodes the column x, the second the row y; each half is
    [sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (dim / 4)), i = 0 .. dim / 4 - 1 (as MAE).
    Rows of prefix tokens are zero. Patches are in row-major order.

    Raises:
        ValueError: dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"embed_dim must be a multiple of 4 for sine-cosine positions, got {dim}")
    rows, columns = grid
    quarter = dim // 4
    exponent = torch.arange(quarter, dtype=torch.float64) / quarter
    frequency = torch.exp(-math.log(10000.0) * exponent)
    y = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    x = torch.arange(columns, dtype=torch.float64).repeat(rows)
    halves = []
    for position in (x, y):
        angle = position[:, None] * frequency[None, :]
        halves += [angle.sin(), angle.cos()]
    table = torch.cat(halves, dim=1).float()
    return torch.cat([table.new_zeros(num_prefix_tokens, dim), table])
