"""``masked_linear_cross_entropy`` on a GPU.

16-bit operands of one dtype: up to 256 classes triton_few.py, where the logits never reach memory,
beyond triton_tiles.py, chunks of tokens and products of our own. Others: triton_chunks.py, library
products and row kernels. With ``hopper`` cuda_few.py, in place of triton_few.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from clustermim_fast.ops.masked_cross_entropy import triton_compact
from clustermim_fast.ops.masked_linear_cross_entropy import triton_chunks, triton_few, triton_tiles
from clustermim_fast.ops.masked_linear_cross_entropy.problem import Needs
from clustermim_fast.ops.masked_linear_cross_entropy.triton_problem import (
    Losses,
    Problem,
    Scales,
    make_grads,
    make_problem,
    make_scales,
)


def forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    token_weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    prefix: int,
    masked_per_sample: int,
    metrics: bool,
    needs: Needs,
    hopper: bool = False,
) -> tuple[torch.Tensor, ...]:
    """The outputs of the registered forward op; see its public function for the arguments."""
    num_classes = weight.shape[0]
    listed = triton_compact.row_list(
        target.contiguous(), None if mask is None else mask.contiguous(),
        None if token_weight is None else token_weight.contiguous(), None, num_classes,
        ignore_index,
    )  # fmt: skip
    problem = make_problem(
        input, weight, bias, target, token_weight, listed, reduction, label_smoothing, prefix,
        masked_per_sample,
    )  # fmt: skip
    back_end = _back_end(problem, hopper)
    stats = input.new_empty(2, problem.num_tokens, dtype=torch.float32)
    each = reduction == "none"
    correct = target.new_zeros((), dtype=torch.int64)
    histogram = target.new_zeros(num_classes, dtype=torch.int64)
    losses = Losses(
        input.new_empty(target.shape, dtype=torch.float32) if each else None,
        None if each else input.new_empty(back_end.programs_for(problem), dtype=torch.float64),
        correct if metrics else None,
        histogram if metrics else None,
        _wrong_samples(target, mask, masked_per_sample),
    )
    one = input.new_ones(target.shape if each else (), dtype=torch.float32)
    scales = make_scales(problem, one) if any(needs) else Scales(problem.divisor, None)
    grads = make_grads(problem, input, scales, needs)
    back_end.run(problem, stats, losses, grads if any(needs) else None)
    loss = losses.each
    if losses.sums is not None:
        loss = triton_compact.finish(losses.sums, problem.divisor, reduction)
    assert loss is not None
    made = grads.input, grads.weight, grads.bias
    return loss, *listed[:2], stats, listed[2], correct, histogram, *made


def backward(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    stats: torch.Tensor,
    divisor: torch.Tensor,
    reduction: str,
    label_smoothing: float,
    prefix: int,
    masked_per_sample: int,
    needs: Needs,
    hopper: bool = False,
) -> tuple[torch.Tensor, ...]:
    """The outputs of the registered backward op; see its public function for the arguments."""
    problem = make_problem(
        input, weight, bias, target, token_weight, (rows, count, divisor), reduction,
        label_smoothing, prefix, masked_per_sample,
    )  # fmt: skip
    grads = make_grads(problem, input, make_scales(problem, grad_loss), needs)
    if any(needs):
        _back_end(problem, hopper).run(problem, stats.contiguous(), None, grads)
    return grads.input, grads.weight, grads.bias


def _back_end(problem: Problem, hopper: bool) -> Any:
    if hopper:
        from clustermim_fast.ops.masked_linear_cross_entropy import cuda_few

        return cuda_few
    if problem.operand_dtype.itemsize != 2:
        return triton_chunks
    return triton_few if problem.fused else triton_tiles


def _wrong_samples(
    target: torch.Tensor, mask: torch.Tensor | None, masked_per_sample: int
) -> torch.Tensor | None:
    """uint8 [S]: whose mask does not hold that many tokens."""
    if masked_per_sample < 0 or target.numel() == 0:
        return None
    tokens = target.shape[-1] if target.dim() else 1
    samples = target.numel() // tokens
    if mask is None:
        return target.new_full((samples,), tokens != masked_per_sample, dtype=torch.uint8)
    return (mask.reshape(samples, tokens).sum(1) != masked_per_sample).to(torch.uint8)


def scaled_gradients(
    grad_loss: torch.Tensor,
    of_one: Sequence[torch.Tensor],
    keep: bool,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    token_weight: torch.Tensor | None,
    rows: torch.Tensor,
    count: torch.Tensor,
    stats: torch.Tensor,
    divisor: torch.Tensor,
    reduction: str,
    label_smoothing: float,
    prefix: int,
    masked_per_sample: int,
    hopper: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients for ``grad_loss`` from those for 1, without asking the device what it is.

    A power of two is multiplied in place (in a copy, if ``keep``); for another one a 16-bit dX is
    made again, since its second rounding would show.
    """
    grad_input, grad_weight, grad_bias = of_one
    nothing = (divisor if reduction == "mean" else count) == 0
    grad = torch.where(nothing, 0.0, grad_loss.float()).reshape(1)
    if grad_input.numel():
        problem = make_problem(
            input, weight, bias, target, token_weight, (rows, count, divisor), reduction,
            label_smoothing, prefix, masked_per_sample,
        )  # fmt: skip
        grad_input = grad_input.clone() if keep else grad_input
        triton_few.scale(problem, grad_input, grad)
        back_end = _back_end(problem, hopper)
        if back_end is not triton_chunks:
            needs = Needs(True, False, False)
            grads = make_grads(problem, input, make_scales(problem, grad_loss), needs, grad_input)
            back_end.run(problem, stats.contiguous(), None, grads, again=grad)
    return grad_input, grad_weight * grad, grad_bias * grad
