"""``masked_linear_cross_entropy`` of bfloat16 operands on a CPU with tiles (AMX): one C++ call.

Logits, softmax and the products of all gradients follow each other block by block, in float32
between the products; csrc/masked_cross_entropy/linear_rows.h says what is rounded where.
"""

from __future__ import annotations

import torch

from clustermim_fast.ops import _backend
from clustermim_fast.ops.masked_cross_entropy.cpu import address
from clustermim_fast.ops.masked_linear_cross_entropy.grad_input import GradInput
from clustermim_fast.ops.masked_linear_cross_entropy.problem import Needs, Problem

PANEL = 32  # classes and values that the products take together


def usable(problem: Problem) -> bool:
    """Can these operands take this path on this machine?"""
    input, bias = problem.input, problem.bias
    narrow = input.dtype == problem.weight.dtype == torch.bfloat16
    wide_bias = bias is not None and bias.dtype == torch.float64
    return narrow and not wide_bias and input.shape[-1] > 0 and _backend.core().linear_rows_usable()


def run(
    problem: Problem, metrics: bool, scale: torch.Tensor | None, needs: Needs
) -> tuple[torch.Tensor, ...]:
    """(losses [n], argmax [n], dX, dW, db), the gradients those of ``scale`` [n] if there is one.

    What is not wanted has size 0. ``problem.stats`` is written.
    """
    (num_classes, dim), n, threads = problem.weight.shape, problem.n, torch.get_num_threads()
    tokens = problem.tokens()
    weight = problem.weight
    weight = weight if weight.stride(1) == 1 or dim == 1 else weight.contiguous()
    bias = None if problem.bias is None else problem.bias.float().contiguous()
    losses = torch.empty(n)
    argmax = torch.empty(n if metrics else 0, dtype=torch.int64)
    grad_input = GradInput(problem, needs.input, threads)
    strides = grad_input.tokens.stride() if needs.input else (0, 0)
    whole_classes, whole_dim = (-(-size // PANEL) * PANEL for size in (num_classes, dim))
    grad_weight = torch.empty((whole_classes, whole_dim) if needs.weight else 0)
    grad_bias = torch.empty(whole_classes if needs.bias else 0)
    _backend.core().linear_cross_entropy_rows(
        input=tokens.data_ptr(),
        sample_stride=tokens.stride(0),
        row_stride=tokens.stride(1),
        rows_per_sample=max(tokens.shape[1], 1),
        dim=dim,
        rows=problem.rows.data_ptr(),
        num_rows=n,
        num_rest=problem.rows.numel() - n,
        num_tokens=problem.target.numel(),
        weight=weight.data_ptr(),
        weight_stride=weight.stride(0),
        num_classes=num_classes,
        bias=address(bias),
        target=problem.target.data_ptr(),
        label_smoothing=problem.label_smoothing,
        stats=problem.stats.data_ptr(),
        loss=losses.data_ptr(),
        argmax=argmax.data_ptr() if metrics else 0,
        scale=address(scale),
        grad_input=grad_input.tokens.data_ptr() if needs.input else 0,
        grad_sample_stride=strides[0],
        grad_row_stride=strides[1],
        grad_weight=grad_weight.data_ptr() if needs.weight else 0,
        grad_bias=grad_bias.data_ptr() if needs.bias else 0,
        threads=threads,
    )
    if needs.weight:  # a view of a padded dW would keep the padding alive in .grad
        grad_weight = grad_weight[:num_classes, :dim].contiguous()
    return losses, argmax, grad_input.finish(), grad_weight, grad_bias[:num_classes]
