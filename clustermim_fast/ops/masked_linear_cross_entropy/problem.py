"""What the back-ends of the CPU compute from, and what all of them share."""

from __future__ import annotations

from typing import NamedTuple

import torch

from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_cross_entropy import arguments


def as_samples(input: torch.Tensor) -> torch.Tensor:
    """[..., T, d] as [S, T, d] with dense rows; a view unless the strides allow none."""
    x = input.reshape(input.shape[:-2].numel(), *input.shape[-2:])
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def logits_stay(input: torch.Tensor, weight: torch.dtype, num_classes: int) -> bool:
    """On Triton: does one kernel hold a token's logits from their product to their gradient?

    256 of them fit the registers beside Hopper's asynchronous products, else 128.
    """
    hopper = _triton.properties(input.device).capability // 10 == 9
    narrow = input.dtype == weight and weight.itemsize == 2
    return narrow and num_classes <= (256 if hopper else 128)


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
