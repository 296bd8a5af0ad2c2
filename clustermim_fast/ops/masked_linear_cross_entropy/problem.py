"""What the back-ends of the CPU compute from."""

from __future__ import annotations

from typing import NamedTuple

import torch

from clustermim_fast.ops.masked_cross_entropy import arguments


def as_samples(input: torch.Tensor) -> torch.Tensor:
    """[..., T, d] as [S, T, d] with dense rows; a view unless the strides allow none."""
    x = input.reshape(input.shape[:-2].numel(), *input.shape[-2:])
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


class Needs(NamedTuple):
    """Which gradients are wanted."""

    input: bool
    weight: bool
    bias: bool


class Problem(NamedTuple):
    """The counted tokens of one call."""

    input: torch.Tensor  # [..., P + L, d]
    weight: torch.Tensor  # [K, d]
    bias: torch.Tensor | None  # [K]
    target: torch.Tensor  # [..., L] int64, contiguous
    rows: torch.Tensor  # [tokens] int64: the n counted ones, then the others
    n: int
    stats: torch.Tensor  # [2, tokens]: max_k z_k and sum_k exp(z_k - max) of the counted ones
    label_smoothing: float
    prefix: int  # P

    @property
    def counted(self) -> torch.Tensor:
        """[n], in order."""
        return self.rows[: self.n]

    @property
    def acc(self) -> torch.dtype:
        """Of logits, losses and sums."""
        return arguments.accumulation_dtype(self.input, self.weight, self.bias)

    def tokens(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """[S, L, d] with dense rows, of ``dtype``."""
        x = self.input if dtype is None else self.input.to(dtype)
        return as_samples(x)[:, self.prefix :]
