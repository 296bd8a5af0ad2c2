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
# Of rows whose length 16 does not divide: they are loaded value by value, each with an address of
# its own in registers.
RAGGED = 16


def tile(
    num_classes: int, dim: int, device: torch.device, relative: bool = False
) -> dict[str, int]:
    """Of ``linear_rows``: without spills on sm_80, sm_90 and sm_100 (tests/gpu).

    128 tokens share a reading of W where their logits fit the registers; ``relative``: and a scale
    for each.
    """
    classes = next_power(num_classes)
    hopper = _triton.properties(device).capability // 10 == 9
    depth = dividing(dim, 64) if dim % 16 == 0 else RAGGED
    rows, warps = 128, 4 if classes <= 32 else 8
    if classes == 128:
        rows, warps = (128, 16) if hopper and depth > 16 and not relative else (64, 8)
    if dim % 16:
        rows = 64
    return {
        "ROWS": rows if classes <= 128 else 64,
        "KP": classes,
        "DEPTH": depth,
        "WIDTH": depth,
        "num_warps": warps,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def weight_tile(num_classes: int, dim: int) -> dict[str, int]:
    """Of ``weight_parts``: without spills on sm_80, sm_90 and sm_100 (tests/gpu)."""
    classes = next_power(num_classes)
    return {
        "ROWS": 64 if classes <= 128 else 32,
        "KP": classes,
        "WIDTH": dividing(dim, 128) if dim % 16 == 0 else RAGGED,
        "num_warps": 8 if classes > 32 else 4,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def programs_for(problem: Problem) -> int:
    """Of ``linear_rows``: two a multiprocessor, each with a fixed share of the tokens."""
    (num_classes, dim), device = problem.weight.shape, problem.x.device
    tiles = triton.cdiv(problem.num_tokens, tile(num_classes, dim, device)["ROWS"])
    return max(1, min(tiles, 2 * _triton.properties(device).multiprocessors))


def run(
    problem: Problem,
    stats: torch.Tensor,
    losses: Losses | None,
    grads: Grads | None,
    again: torch.Tensor | None = None,
) -> None:
    """Fills ``stats`` and ``losses``, and ``grads``; without losses the stats are read.

    ``again``: the grad_output, float32 [1], where dX is there for one of 1: written only if this
    one is no power of two.
    """
    x, (num_classes, dim) = problem.x, problem.weight.shape
    factor, relative = (None, None) if grads is None else grads.scales
    sizes = tile(num_classes, dim, x.device, relative is not None)
    programs = programs_for(problem)
    weight = padded_weight(problem, sizes["KP"])  # so that the kernel masks none
    of_input = grads is not None and grads.needs.input
    bias, direction = prepare(problem, sizes["KP"], of_input)
    dz = db = dx = None
    dx_strides: tuple[int, ...] = (0, 0)
    if grads is not None:
        if grads.needs.weight:
            dz = x.new_empty(problem.num_tokens, sizes["KP"])
        if grads.needs.bias:
            db = stats.new_empty(programs, sizes["KP"])
        if grads.needs.input:
            dx = grads.input.view(x.shape)
            dx_strides = dx.stride()[:2]
    each, sums, correct, histogram, wrong = (None,) * 5 if losses is None else losses
    kernels.linear_rows[(programs,)](
        x, weight, bias, problem.target, problem.token_weight, wrong, problem.rows,
        problem.counted, stats, each, sums, correct, histogram, factor, relative, direction, dz, dx,
        db, again, problem.num_tokens, num_classes, dim, problem.per_sample, problem.prefix,
        x.shape[0], *x.stride()[:2], weight.stride(0), *dx_strides, problem.smoothing,
        problem.shift, TOKEN_WEIGHT=problem.token_weight is not None, WRONG=wrong is not None,
        SMOOTH=problem.smoothing > 0, EACH=each is not None, METRICS=correct is not None,
        LOSS=losses is not None, RELATIVE=relative is not None, AGAIN=again is not None,
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


def scale(problem: Problem, grad_input: torch.Tensor, grad: torch.Tensor) -> None:
    """``grad_input`` times ``grad``, float32 [1]: 16 bits only where that is a power of two."""
    dx, dim = grad_input.view(problem.x.shape), problem.x.shape[2]
    kernels.scale_rows[(4 * _triton.properties(dx.device).multiprocessors,)](
        problem.rows, problem.counted, grad, dx, dim, problem.per_sample, problem.prefix,
        *dx.stride()[:2], ALWAYS=dx.dtype == torch.float32, ROWS=32, WIDTH=dividing(dim, 128),
        enable_fp_fusion=True,
    )  # fmt: skip


def prepare(
    problem: Problem, classes: int, of_input: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The bias of that many classes, float32, -inf behind the last; for dX the direction, [d], that
    smoothing takes off it for a row of scale 1."""
    weight, (num_classes, dim) = problem.weight, problem.weight.shape
    bias = weight.new_empty(classes, dtype=torch.float32)
    direction = None
    if of_input and problem.smoothing > 0:
        direction = weight.new_empty(dim, dtype=torch.float32)
    width = 16
    kernels.prepare[(1 if direction is None else triton.cdiv(dim, width),)](
        weight, problem.bias, bias, direction, num_classes, dim, classes, weight.stride(0),
        problem.smoothing, BIAS=problem.bias is not None, DIRECTION=direction is not None,
        KP=next_power(classes), WIDTH=width, enable_fp_fusion=True,
    )  # fmt: skip
    return bias, direction


def padded_weight(problem: Problem, classes: int) -> torch.Tensor:
    """The weight of that many classes: 0 behind the last."""
    num_classes, dim = problem.weight.shape
    if num_classes == classes:
        return problem.weight
    weight = problem.weight.new_zeros(classes, dim)
    weight[:num_classes] = problem.weight
    return weight


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
