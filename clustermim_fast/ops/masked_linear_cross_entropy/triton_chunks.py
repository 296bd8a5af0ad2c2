"""The linear loss for many classes: chunks of tokens, library products, our row kernels.

Of each chunk: the counted tokens' inputs gathered, logits by one product (float32, from 16-bit
operands too), losses, and dZ rounded to the operands' dtype for the products dX and dW; dW is added
up in float32. Grids and chunks are those of all tokens: how many count is known on the device only.

float32 operands are multiplied as ``torch.get_float32_matmul_precision()`` says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_cross_entropy.triton_rows import (
    align,
    grad_rows,
    loss_rows,
    tile,
    token_offsets,
)
from clustermim_fast.ops.masked_linear_cross_entropy import triton_few
from clustermim_fast.ops.masked_linear_cross_entropy.triton_problem import (
    Grads,
    Losses,
    Problem,
    dividing,
)

CHUNK_BYTES = 288 << 20  # of the buffers of one chunk
EXTRA = 8  # columns of dZ for the smoothing's sum of inputs, in 16-bit parts
ROW_TILE = 32


@triton.jit
def gather_rows(
    x_ptr, rows_ptr, count_ptr, out_ptr, first, end, D, per_sample, prefix, x_sample, x_row,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The inputs of slots [first, end), zeros where none counts."""
    slots = first + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = (slots < end) & (slots < tl.load(count_ptr))
    tokens = tl.load(rows_ptr + slots, mask=live, other=0)
    base = token_offsets(tokens, per_sample, prefix, x_sample, x_row)
    for d in range(0, D, WIDTH):
        ds = d + tl.arange(0, WIDTH)
        at = x_ptr + base[:, None] + ds[None, :]
        x = tl.load(at, mask=live[:, None] & (ds < D)[None, :], other=0.0)
        at = out_ptr + (slots - first)[:, None] * D + ds[None, :]
        tl.store(
            at, x.to(out_ptr.dtype.element_ty), mask=(slots < end)[:, None] & (ds < D)[None, :]
        )


@triton.jit
def scatter_rows(
    source_ptr, rows_ptr, count_ptr, factor_ptr, relative_ptr, direction_ptr, out_ptr,
    first, end, D, per_sample, prefix, out_sample, out_row, smoothing, shift,
    SMOOTH: tl.constexpr, RELATIVE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dX of slots [first, end): source * factor / shift - scale * smoothing * direction, or 0."""
    slots = first + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    listed = slots < end
    live = listed & (slots < tl.load(count_ptr))
    tokens = tl.load(rows_ptr + slots, mask=listed, other=0)
    factor = tl.load(factor_ptr)
    scale = tl.zeros([ROWS], tl.float32) + factor
    if RELATIVE:
        scale *= tl.load(relative_ptr + slots, mask=live, other=0.0)
    base = token_offsets(tokens, per_sample, prefix, out_sample, out_row)
    for d in range(0, D, WIDTH):
        ds = d + tl.arange(0, WIDTH)
        at = source_ptr + (slots - first)[:, None] * D + ds[None, :]
        dx = tl.load(at, mask=live[:, None] & (ds < D)[None, :], other=0.0) * (factor / shift)
        if SMOOTH:
            direction = tl.load(direction_ptr + ds, mask=ds < D, other=0.0)
            dx -= scale[:, None] * (smoothing * direction)[None, :]
        dx = tl.where(live[:, None], dx, 0.0)
        at = out_ptr + base[:, None] + ds[None, :]
        tl.store(at, dx.to(out_ptr.dtype.element_ty), mask=listed[:, None] & (ds < D)[None, :])


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, add: bool = False) -> None:
    """out = a b, or out += a b, in float32."""
    if a.is_cuda and a.dtype != torch.float32 and hasattr(torch.ops.aten.mm, "dtype_out"):
        if add:
            torch.ops.aten.addmm.dtype_out(out, a, b, torch.float32, out=out)
        else:
            torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)
    elif add:
        out.addmm_(a.float(), b.float())
    else:
        torch.mm(a.float(), b.float(), out=out)


def chunk_rows(problem: Problem) -> int:
    """Tokens of one chunk: whole waves of the products' tiles, 128 x 256, where they fit."""
    num_classes, dim = problem.weight.shape
    most = CHUNK_BYTES // (6 * (num_classes + dim))
    wave = _triton.properties(problem.x.device).multiprocessors * 128 // triton.cdiv(dim, 256)
    rows = most // wave * wave if most >= wave else most // 128 * 128
    return max(1, min(max(rows, 128), problem.num_tokens))


def _programs(problem: Problem) -> tuple[int, int]:
    """(chunks, programs of loss_rows for each)."""
    rows = chunk_rows(problem)
    return (
        max(1, triton.cdiv(problem.num_tokens, rows)),
        triton.cdiv(rows, tile(problem.weight.shape[0])["ROWS"]),
    )


def programs_for(problem: Problem) -> int:
    chunks, programs = _programs(problem)
    return chunks * programs


class _Buffers:
    """The buffers of a call, used again by each chunk, and dW and db as they grow."""

    def __init__(self, problem: Problem, grads: Grads | None) -> None:
        x, (num_classes, dim) = problem.x, problem.weight.shape
        dtype = problem.operand_dtype
        self.narrow = dtype.itemsize == 2
        self.rows = chunk_rows(problem)
        # 16-byte rows for the library; classes that are not there have weight 0.
        self.classes = -(-num_classes // 8) * 8
        self.weight = problem.weight.to(dtype)
        if self.classes != num_classes:
            self.weight = x.new_zeros(self.classes, dim, dtype=dtype)
            self.weight[:num_classes] = problem.weight
        self.x = x.new_empty(self.rows, dim, dtype=dtype)
        self.logits = x.new_empty(self.rows, self.classes, dtype=torch.float32)
        if grads is None:
            return
        self.smooth = problem.smoothing > 0 and self.narrow
        width = self.classes + (EXTRA if self.smooth else 0)
        self.dz = x.new_zeros(self.rows, width, dtype=dtype) if self.narrow else self.logits
        self.dx = x.new_empty(self.rows, dim, dtype=torch.float32) if grads.needs.input else None
        self.dw = x.new_zeros(width, dim, dtype=torch.float32) if grads.needs.weight else None
        tiles = triton.cdiv(self.rows, tile(num_classes)["ROWS"])
        self.programs = max(1, min(tiles, 2 * _triton.properties(x.device).multiprocessors))
        self.db = x.new_empty(self.programs, num_classes, dtype=torch.float32)
        self.direction = None
        if grads.needs.input and self.smooth:
            self.direction = problem.weight.double().mean(0).float()


def run(problem: Problem, stats: torch.Tensor, losses: Losses | None, grads: Grads | None) -> None:
    """Fills ``stats`` and ``losses``, and ``grads``; without losses the stats are read."""
    buffers = _Buffers(problem, grads)
    dim = problem.weight.shape[1]
    row_tile = {"ROWS": ROW_TILE, "WIDTH": dividing(dim, 128), "enable_fp_fusion": True}
    chunks, programs = _programs(problem)
    for chunk in range(chunks):
        first = chunk * buffers.rows
        end = min(first + buffers.rows, problem.num_tokens)
        size = end - first
        gather_rows[(max(1, triton.cdiv(size, ROW_TILE)),)](
            problem.x, problem.rows, problem.counted, buffers.x, first, end, dim,
            problem.per_sample, problem.prefix, *problem.x.stride()[:2], **row_tile,
        )  # fmt: skip
        product(buffers.x[:size], buffers.weight.t(), buffers.logits[:size])
        if losses is not None:
            sums = losses.sums
            if sums is not None:
                sums = sums[chunk * programs : (chunk + 1) * programs]
            _losses(problem, buffers, stats, losses._replace(sums=sums), first, end, programs)
        if grads is not None:
            _gradients(problem, buffers, stats, grads, first, end)
            if grads.needs.input:
                factor, relative = grads.scales
                view = grads.input.view(problem.x.shape)
                scatter_rows[(max(1, triton.cdiv(size, ROW_TILE)),)](
                    buffers.dx, problem.rows, problem.counted, factor, relative, buffers.direction,
                    view, first, end, dim, problem.per_sample, problem.prefix, *view.stride()[:2],
                    problem.smoothing, problem.shift, SMOOTH=buffers.direction is not None,
                    RELATIVE=relative is not None, **row_tile,
                )  # fmt: skip
    if grads is not None:
        _finish(problem, buffers, grads)


def _losses(
    problem: Problem, buffers: _Buffers, stats: torch.Tensor, losses: Losses,
    first: int, end: int, programs: int,
) -> None:  # fmt: skip
    num_classes = problem.weight.shape[0]
    blocks, width = tile(num_classes), align(num_classes, buffers.classes)
    each, sums, correct, histogram, wrong = losses
    loss_rows[(programs,)](
        buffers.logits, problem.bias, None, problem.target, problem.token_weight, wrong,
        problem.rows, problem.counted, stats, each, sums, correct, histogram, problem.num_tokens,
        first, end, problem.per_sample, num_classes // width, 0, buffers.classes // width,
        problem.smoothing, ALIGN=width, COMPACT=True, BIAS=problem.bias is not None,
        CLASS_WEIGHT=False, TOKEN_WEIGHT=problem.token_weight is not None,
        WRONG=wrong is not None, SMOOTH=problem.smoothing > 0, EACH=each is not None,
        METRICS=correct is not None, ONE_BLOCK=num_classes <= blocks["BLOCK"], **blocks,
    )  # fmt: skip


def _gradients(
    problem: Problem, buffers: _Buffers, stats: torch.Tensor, grads: Grads, first: int, end: int
) -> None:
    """dZ of a chunk, its part of dW and db, and the product of its dX."""
    num_classes, size = problem.weight.shape[0], end - first
    blocks = tile(num_classes)
    dz_row = buffers.dz.shape[1]
    width = align(num_classes, buffers.classes, dz_row)
    relative = grads.scales.relative
    grad_rows[(buffers.programs, triton.cdiv(num_classes, blocks["BLOCK"]))](
        buffers.logits, problem.bias, None, problem.target, problem.rows, problem.counted, stats,
        relative, buffers.dz, buffers.db, problem.num_tokens, first, end, problem.per_sample,
        num_classes // width, 0, buffers.classes // width, 0, dz_row // width, problem.smoothing,
        problem.shift, ALIGN=width, COMPACT=True, BIAS=problem.bias is not None,
        CLASS_WEIGHT=False, SCALES=0 if relative is None else 2, SMOOTH=problem.smoothing > 0,
        UNIFORM_PART=not buffers.smooth, DB=grads.needs.bias, DB_MORE=first > 0,
        EXTRA=EXTRA if buffers.smooth and grads.needs.weight else 0, **blocks,
    )  # fmt: skip
    dz = buffers.dz[:size]
    if buffers.dw is not None:
        product(dz.t(), buffers.x[:size], buffers.dw, add=True)
    if buffers.dx is not None:
        product(dz[:, : buffers.classes], buffers.weight, buffers.dx[:size])


def _finish(problem: Problem, buffers: _Buffers, grads: Grads) -> None:
    """The factor, and what smoothing takes off dW; zeros in the prefixes of dX."""
    num_classes = problem.weight.shape[0]
    factor = grads.scales.factor
    if grads.needs.input:
        grads.input.view(problem.x.shape)[:, : problem.prefix].zero_()
    if buffers.dw is not None:
        dw = buffers.dw[:num_classes]
        if buffers.smooth:
            inputs = buffers.dw[buffers.classes :].sum(0)
            dw = dw - problem.smoothing / num_classes * inputs
        torch.mul(dw, factor / problem.shift, out=grads.weight)
    if grads.needs.bias:
        triton_few.add(buffers.db, None, grads.bias, 0.0)
        grads.bias.mul_(factor)
