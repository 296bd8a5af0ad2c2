"""The linear loss for few classes and 16-bit operands: launches of triton_fused.py's kernels."""

from __future__ import annotations

import torch
import triton

from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_linear_cross_entropy import triton_fused as kernels
from clustermim_fast.ops.masked_linear_cross_entropy.triton_problem import (
    Grads,
    Losses,
    Problem,
    dividing,
    next_power,
)

ADD_BLOCK = 1024


def tile(num_classes: int, dim: int) -> dict[str, int]:
    """Of ``linear_rows``."""
    classes = next_power(num_classes)
    return {
        "ROWS": 128 if classes <= 128 else 64,
        "KP": classes,
        "DEPTH": dividing(dim, 64),
        "WIDTH": dividing(dim, 64),
        "num_warps": 8 if classes > 64 else 4,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def weight_tile(num_classes: int, dim: int) -> dict[str, int]:
    """Of ``weight_parts``."""
    classes = next_power(num_classes)
    return {
        "ROWS": 64 if classes <= 128 else 32,
        "KP": classes,
        "WIDTH": dividing(dim, 128),
        "num_warps": 8 if classes > 64 else 4,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def programs_for(problem: Problem) -> int:
    """Of ``linear_rows``: two a multiprocessor, each with a fixed share of the tokens."""
    tiles = triton.cdiv(problem.num_tokens, tile(*problem.weight.shape)["ROWS"])
    return max(1, min(tiles, 2 * _triton.properties(problem.x.device).multiprocessors))


def run(problem: Problem, stats: torch.Tensor, losses: Losses | None, grads: Grads | None) -> None:
    """Fills ``stats`` and ``losses``, and ``grads``; without losses the stats are read."""
    x, (num_classes, dim) = problem.x, problem.weight.shape
    sizes, programs = tile(num_classes, dim), programs_for(problem)
    weight, bias = _padded(problem, sizes["KP"])
    dz = db = dx = direction = None
    dx_strides: tuple[int, ...] = (0, 0)
    if grads is not None:
        if grads.needs.weight:
            dz = x.new_empty(problem.num_tokens, sizes["KP"])
        if grads.needs.bias:
            db = stats.new_empty(programs, sizes["KP"])
        if grads.needs.input:
            dx = grads.input.view(x.shape)
            dx_strides = dx.stride()[:2]
            if problem.smoothing > 0:
                direction = problem.weight.double().mean(0).float() * problem.smoothing
    factor, relative = (None, None) if grads is None else grads.scales
    each, sums, correct, histogram, wrong = (None,) * 5 if losses is None else losses
    kernels.linear_rows[(programs,)](
        x, weight, bias, problem.target, problem.token_weight, wrong, problem.rows,
        problem.counted, stats, each, sums, correct, histogram, factor, relative, direction, dz, dx,
        db, problem.num_tokens, num_classes, dim, problem.per_sample, problem.prefix, x.shape[0],
        *x.stride()[:2], weight.stride(0), *dx_strides, problem.smoothing, problem.shift,
        TOKEN_WEIGHT=problem.token_weight is not None,
        WRONG=wrong is not None, SMOOTH=problem.smoothing > 0, EACH=each is not None,
        METRICS=correct is not None, LOSS=losses is not None, RELATIVE=relative is not None,
        DX=dx is not None, DZ=dz is not None, DB=db is not None,
        EVEN_D=dim % sizes["DEPTH"] == 0, EVEN_WIDTH=dim % sizes["WIDTH"] == 0, **sizes,
    )  # fmt: skip
    if grads is None:
        return
    if dz is not None:
        _weight_gradient(problem, dz, grads)
    if db is not None:
        total = stats.new_empty(sizes["KP"])
        add(db, None, total, 0.0)
        torch.mul(total[:num_classes], grads.scales.factor, out=grads.bias)


def _padded(problem: Problem, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of that many classes, so that the kernel masks none: 0 and -inf."""
    weight, num_classes = problem.weight, problem.weight.shape[0]
    if num_classes < classes:
        weight = weight.new_zeros(classes, weight.shape[1])
        weight[:num_classes] = problem.weight
    bias = weight.new_full((classes,), -torch.inf, dtype=torch.float32)
    bias[:num_classes] = 0.0 if problem.bias is None else problem.bias
    return weight, bias


def _weight_gradient(problem: Problem, dz: torch.Tensor, grads: Grads) -> None:
    x, (num_classes, dim) = problem.x, problem.weight.shape
    sizes = weight_tile(num_classes, dim)
    columns = triton.cdiv(dim, sizes["WIDTH"])
    spans = triton.cdiv(problem.num_tokens, sizes["ROWS"])
    splits = max(1, min(spans, 2 * _triton.properties(x.device).multiprocessors // columns))
    smooth = problem.smoothing > 0
    parts = grads.weight.new_empty(splits, num_classes, dim)
    sums = grads.weight.new_empty(splits, dim) if smooth else None
    factor, relative = grads.scales
    kernels.weight_parts[(splits * columns,)](
        x, dz, problem.rows, problem.counted, factor, relative, parts, sums, num_classes, dim,
        splits, problem.per_sample, problem.prefix, *x.stride()[:2], problem.shift, SMOOTH=smooth,
        RELATIVE=relative is not None, EVEN_WIDTH=dim % sizes["WIDTH"] == 0, **sizes,
    )  # fmt: skip
    add(parts, sums, grads.weight, problem.smoothing / num_classes)


def add(parts: torch.Tensor, sums: torch.Tensor | None, out: torch.Tensor, share: float) -> None:
    """out = sum of parts [P, ...], less share * sum of sums [P, d]."""
    size = out.numel()
    block = min(ADD_BLOCK, next_power(size))
    kernels.add_parts[(max(1, triton.cdiv(size, block)),)](
        parts, sums, out, parts.shape[0], size, max(1, out.shape[-1]), share,
        SMOOTH=sums is not None, BLOCK=block, enable_fp_fusion=True,
    )  # fmt: skip
