"""What the linear loss owes the tokens that do not count: zeros."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_cross_entropy.triton_rows import token_offsets
from clustermim_fast.ops.masked_linear_cross_entropy.triton_problem import Problem, dividing


@triton.jit
def fill_rest(
    rows_ptr, count_ptr, stats_ptr, loss_ptr, dx_ptr,
    N, limit, D, per_sample, prefix, dx_sample, dx_row,
    STATS: tl.constexpr, EACH: tl.constexpr, DX: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of the slots no chunk has taken: 0, or NaN where a mask holds more tokens than was said."""
    n = tl.load(count_ptr)
    first = tl.minimum(n, limit)
    for start in range(first + tl.program_id(0) * ROWS, N, tl.num_programs(0) * ROWS):
        slots = start + tl.arange(0, ROWS).to(tl.int64)
        listed = slots < N
        value = tl.where(slots < n, float("nan"), 0.0)
        tokens = tl.load(rows_ptr + slots, mask=listed, other=0)
        if STATS:
            tl.store(stats_ptr + slots, value, mask=listed)
            tl.store(stats_ptr + N + slots, value, mask=listed)
        if EACH:
            tl.store(loss_ptr + tokens, value, mask=listed)
        if DX:
            base = token_offsets(tokens, per_sample, prefix, dx_sample, dx_row)
            dx = tl.zeros([ROWS, WIDTH], tl.float32) + value[:, None]
            for d in range(0, D, WIDTH):
                ds = d + tl.arange(0, WIDTH)
                at = dx_ptr + base[:, None] + ds[None, :]
                mask = listed[:, None] & (ds < D)[None, :]
                tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def fill(
    problem: Problem,
    stats: torch.Tensor | None,
    each: torch.Tensor | None,
    dx: torch.Tensor | None,
) -> None:
    """``dx``: [S, P + L, d]."""
    if dx is not None:
        dx[:, : problem.prefix].zero_()
    strides = (0, 0) if dx is None else dx.stride()[:2]
    dim = problem.x.shape[2]
    programs = 4 * _triton.properties(problem.x.device).multiprocessors
    fill_rest[(programs,)](
        problem.rows, problem.counted, stats, each, dx, problem.num_tokens, problem.limit, dim,
        problem.per_sample, problem.prefix, *strides, STATS=stats is not None,
        EACH=each is not None, DX=dx is not None, ROWS=32, WIDTH=dividing(dim, 128),
        enable_fp_fusion=True,
    )  # fmt: skip
