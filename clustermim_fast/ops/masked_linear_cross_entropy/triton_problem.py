"""What the Triton back-ends of the linear loss compute from, and the shapes of their kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from clustermim_fast.ops.masked_cross_entropy import triton_compact
from clustermim_fast.ops.masked_linear_cross_entropy.problem import (
    Needs,
    as_samples,
    logits_stay,
)

MOST_WEIGHTS = 2**30  # a tile of classes beyond the last still fits 32 bits
HALF_PRECISION_SHIFT = 2.0**15  # of float16's dZ, which is at most 1: away from its subnormals


class Problem(NamedTuple):
    """One call; everything on the device, and how many tokens count known only there.

    ``limit``: as many as can count where every sample's mask holds what the caller said. Where one
    holds more, the first such sample has tokens below the limit too, so that their NaN reaches the
    loss, dW and db; triton_rest.py gives those beyond it theirs.
    """

    x: torch.Tensor  # [S, P + L, d], dense rows
    weight: torch.Tensor  # [K, d], dense rows
    bias: torch.Tensor | None  # [K] float32
    target: torch.Tensor  # contiguous
    token_weight: torch.Tensor | None  # contiguous
    rows: torch.Tensor  # [N] int64: the counted tokens, then the others
    counted: torch.Tensor  # [] int64
    divisor: torch.Tensor  # [] float64
    reduction: str
    smoothing: float
    prefix: int
    limit: int

    @property
    def num_tokens(self) -> int:
        return self.target.numel()

    @property
    def per_sample(self) -> int:
        """Tokens of a sample, without the prefix."""
        return max(1, self.x.shape[1] - self.prefix)

    @property
    def fused(self) -> bool:
        """Can the kernels that keep the logits take it?"""
        return logits_stay(self.x, self.weight.dtype, self.weight.shape[0])

    @property
    def shift(self) -> float:
        """What the logits' gradient is multiplied by as an operand."""
        return HALF_PRECISION_SHIFT if self.operand_dtype == torch.float16 else 1.0

    @property
    def operand_dtype(self) -> torch.dtype:
        """Of the matrix products: that of 16-bit operands which agree, else float32."""
        narrow = self.x.dtype == self.weight.dtype and self.x.dtype.itemsize == 2
        return self.x.dtype if narrow else torch.float32


class Scales(NamedTuple):
    """d(objective) / d(row loss) = factor * relative, relative at most 1 in magnitude."""

    factor: torch.Tensor  # [1] float32
    relative: torch.Tensor | None  # [N] float32 by slot; None: 1 for all


class Losses(NamedTuple):
    """What a forward pass writes; None where it is not wanted."""

    each: torch.Tensor | None  # target's shape, float32
    sums: torch.Tensor | None  # float64 part of each program
    correct: torch.Tensor | None  # [] int64
    histogram: torch.Tensor | None  # [K] int64
    wrong: torch.Tensor | None  # [S] uint8: samples whose mask is not what the caller said


class Grads(NamedTuple):
    """What a backward pass makes."""

    scales: Scales
    needs: Needs
    input: torch.Tensor  # the input's shape and dtype
    weight: torch.Tensor  # [K, d] float32
    bias: torch.Tensor  # [K] float32


def make_problem(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    row_list: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    reduction: str,
    smoothing: float,
    prefix: int,
    masked_per_sample: int,
) -> Problem:
    """``row_list``: rows, count and divisor."""
    rows, count, divisor = row_list
    limit = target.numel()
    if masked_per_sample > 0:
        limit = limit // target.shape[-1] * masked_per_sample
    if weight.numel() > MOST_WEIGHTS:
        raise ValueError(
            f"linear_weight: expected at most 2^30 elements for the Triton kernels, got "
            f'{weight.numel()}; use backend="reference"'
        )
    if weight.stride(1) != 1 or len(weight) * weight.stride(0) > MOST_WEIGHTS:
        weight = weight.contiguous()
    return Problem(
        as_samples(input), weight, None if bias is None else bias.float().contiguous(),
        target.contiguous(), None if token_weight is None else token_weight.contiguous(),
        rows.contiguous(), count, divisor, reduction,
        0.0 if weight.shape[0] == 1 else smoothing,  # one class has exactly no gradient
        prefix, limit,
    )  # fmt: skip


def make_scales(problem: Problem, grad_loss: torch.Tensor) -> Scales:
    scale = triton_compact.row_scales(
        grad_loss, problem.rows, problem.counted, problem.token_weight, problem.divisor,
        problem.reduction,
    )  # fmt: skip
    if problem.token_weight is None and problem.reduction != "none":
        return Scales(scale, None)
    # A power of two, so that dividing by it rounds nothing; a row of infinite scale has none.
    finite = torch.where(torch.isfinite(scale), scale.abs(), 0.0)
    largest = finite.amax().reshape(1) if scale.numel() else scale.new_zeros(1)
    exponent = torch.frexp(largest).exponent
    factor = torch.ldexp(torch.ones_like(largest), exponent.clamp(-126, 127))
    return Scales(factor, scale / factor)


def make_grads(
    problem: Problem,
    input: torch.Tensor,
    scales: Scales,
    needs: Needs,
    grad_input: torch.Tensor | None = None,
) -> Grads:
    """Room for what is needed; ``grad_input`` where that is there already."""
    num_classes, dim = problem.weight.shape
    if grad_input is None:
        grad_input = input.new_empty(input.shape if needs.input else (0,))
    of_weight = (num_classes, dim) if needs.weight else (0,)
    return Grads(
        scales,
        needs,
        grad_input,
        input.new_empty(of_weight, dtype=torch.float32),
        input.new_empty(num_classes if needs.bias else 0, dtype=torch.float32),
    )


def next_power(size: int, least: int = 16) -> int:
    return max(least, triton.next_power_of_2(size))


def dividing(size: int, most: int, least: int = 16) -> int:
    """The largest power of two in [least, most] that divides ``size``; else one that covers it."""
    for width in (most >> i for i in range(most.bit_length())):
        if width >= least and size % width == 0:
            return width
    return min(most, next_power(size, least))
