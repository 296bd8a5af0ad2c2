"""What the back-ends of the CPU compute from, and what all of them share."""

from __future__ import annotations

from typing import NamedTuple

import torch

from clustermim_fast.ops import _backend, _checks, _triton
from clustermim_fast.ops.masked_cross_entropy import arguments

ON_GPU = ("triton", "cuda")  # back-ends that read nothing from the device
# CUDA C++ keeps W and the sums of dW on the chip, for a pair of blocks.
MOST_CUDA_CLASSES, MOST_CUDA_VALUES = 128, 512


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


def refused_by_cuda(
    input: torch.Tensor, weight: torch.Tensor, compute_dtype: torch.dtype | None = None
) -> _backend.Refusal | None:
    """What CUDA C++ does not take of a call; ``compute_dtype``: what the weight is rounded to."""
    of_weight = compute_dtype or weight.dtype
    if input.dtype not in (torch.float16, torch.bfloat16):
        return "input", 'float16 or bfloat16 for backend "cuda"', _checks.describe(input)
    if of_weight != input.dtype:
        expected = f'of the input\'s dtype, {input.dtype}, for backend "cuda"'
        return "linear_weight", expected, _checks.describe(weight)
    num_classes, dim = weight.shape
    if num_classes > MOST_CUDA_CLASSES:
        expected = f'[K, d] with K <= {MOST_CUDA_CLASSES} for backend "cuda"'
        return "linear_weight", expected, _checks.describe(weight)
    if dim % 8 or not 0 < dim <= MOST_CUDA_VALUES:
        expected = f'[..., T, d] with d a multiple of 8 up to {MOST_CUDA_VALUES} for backend "cuda"'
        return "input", expected, _checks.describe(input)
    return None


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
