"""The linear loss of operands that are not both of one 16-bit dtype: library products.

Of each chunk of tokens: the counted ones' inputs gathered, logits by one product, losses, dZ in the
logits' place, and the products dX and dW; dW is added up. All in float32, multiplied as
``torch.get_float32_matmul_precision()`` says. The host knows how many tokens count where the caller
gave ``masked_per_sample``; else the products run over all of them.
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
from clustermim_fast.ops.masked_linear_cross_entropy import triton_few, triton_rest
from clustermim_fast.ops.masked_linear_cross_entropy.triton_problem import (
    Grads,
    Losses,
    Problem,
    dividing,
)

CHUNK_BYTES = 288 << 20  # of the buffers of one chunk
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
    source_ptr, rows_ptr, count_ptr, factor_ptr, out_ptr,
    first, end, D, per_sample, prefix, out_sample, out_row,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dX of the counted slots of [first, end): source * factor."""
    slots = first + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = (slots < end) & (slots < tl.load(count_ptr))
    tokens = tl.load(rows_ptr + slots, mask=live, other=0)
    factor = tl.load(factor_ptr)
    base = token_offsets(tokens, per_sample, prefix, out_sample, out_row)
    for d in range(0, D, WIDTH):
        ds = d + tl.arange(0, WIDTH)
        mask = live[:, None] & (ds < D)[None, :]
        at = source_ptr + (slots - first)[:, None] * D + ds[None, :]
        dx = tl.load(at, mask=mask, other=0.0) * factor
        tl.store(out_ptr + base[:, None] + ds[None, :], dx.to(out_ptr.dtype.element_ty), mask=mask)


def chunk_rows(problem: Problem) -> int:
    """Tokens of one chunk: whole waves of the products' tiles, 128 x 256, where they fit."""
    num_classes, dim = problem.weight.shape
    most = CHUNK_BYTES // (4 * (num_classes + 2 * dim))
    wave = _triton.properties(problem.x.device).multiprocessors * 128 // triton.cdiv(dim, 256)
    rows = most // wave * wave if most >= wave else most // 128 * 128
    return max(1, min(max(rows, 128), problem.limit))


def _programs(problem: Problem) -> tuple[int, int]:
    """(chunks, programs of loss_rows for each)."""
    rows = chunk_rows(problem)
    return (
        max(1, triton.cdiv(problem.limit, rows)),
        triton.cdiv(rows, tile(problem.weight.shape[0])["ROWS"]),
    )


def programs_for(problem: Problem) -> int:
    chunks, programs = _programs(problem)
    return chunks * programs


class _Buffers:
    """The buffers of a call, used again by each chunk, and dW and db as they grow."""

    def __init__(self, problem: Problem, grads: Grads | None) -> None:
        x, (num_classes, dim) = problem.x, problem.weight.shape
        self.rows = chunk_rows(problem)
        # 16-byte rows for the library; classes that are not there have weight 0.
        self.classes = -(-num_classes // 8) * 8
        self.weight = problem.weight.float()
        if self.classes != num_classes:
            self.weight = self.weight.new_zeros(self.classes, dim)
            self.weight[:num_classes] = problem.weight
        self.x = self.weight.new_empty(self.rows, dim)
        self.logits = self.weight.new_zeros(self.rows, self.classes)
        if grads is None:
            return
        self.dx = torch.empty_like(self.x) if grads.needs.input else None
        self.dw = torch.zeros_like(self.weight) if grads.needs.weight else None
        tiles = triton.cdiv(self.rows, tile(num_classes)["ROWS"])
        self.programs = max(1, min(tiles, 2 * _triton.properties(x.device).multiprocessors))
        self.db = self.weight.new_empty(self.programs, num_classes)


def run(problem: Problem, stats: torch.Tensor, losses: Losses | None, grads: Grads | None) -> None:
    """Fills ``stats`` and ``losses``, and ``grads``; without losses the stats are read."""
    buffers = _Buffers(problem, grads)
    dim = problem.weight.shape[1]
    row_tile = {"ROWS": ROW_TILE, "WIDTH": dividing(dim, 128), "enable_fp_fusion": True}
    row_tile |= _triton.all_registers(problem.x.device)
    chunks, programs = _programs(problem)
    for chunk in range(chunks):
        first = chunk * buffers.rows
        end = min(first + buffers.rows, problem.limit)
        size = end - first
        gather_rows[(max(1, triton.cdiv(size, ROW_TILE)),)](
            problem.x, problem.rows, problem.counted, buffers.x, first, end, dim,
            problem.per_sample, problem.prefix, *problem.x.stride()[:2], **row_tile,
        )  # fmt: skip
        torch.mm(buffers.x[:size], buffers.weight.t(), out=buffers.logits[:size])
        if losses is not None:
            sums = losses.sums
            if sums is not None:
                sums = sums[chunk * programs : (chunk + 1) * programs]
            _losses(problem, buffers, stats, losses._replace(sums=sums), first, end, programs)
        if grads is not None:
            _gradients(problem, buffers, stats, grads, first, end)
            if grads.needs.input:
                view = grads.input.view(problem.x.shape)
                scatter_rows[(max(1, triton.cdiv(size, ROW_TILE)),)](
                    buffers.dx, problem.rows, problem.counted, grads.scales.factor, view, first,
                    end, dim, problem.per_sample, problem.prefix, *view.stride()[:2], **row_tile,
                )  # fmt: skip
    dx = None
    if grads is not None:
        dx = grads.input.view(problem.x.shape) if grads.needs.input else None
        if buffers.dw is not None:
            torch.mul(buffers.dw[: len(problem.weight)], grads.scales.factor, out=grads.weight)
        if grads.needs.bias:
            triton_few.add(buffers.db, None, grads.bias, 0.0)
            grads.bias.mul_(grads.scales.factor)
    triton_rest.fill(
        problem, None if losses is None else stats, None if losses is None else losses.each, dx
    )


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
    width = align(num_classes, buffers.classes)
    row, relative = buffers.classes // width, grads.scales.relative
    grad_rows[(buffers.programs, triton.cdiv(num_classes, blocks["BLOCK"]))](
        buffers.logits, problem.bias, None, problem.target, problem.rows, problem.counted, stats,
        relative, buffers.logits, buffers.db, problem.num_tokens, first, end, problem.per_sample,
        num_classes // width, 0, row, 0, row, problem.smoothing, ALIGN=width, COMPACT=True,
        BIAS=problem.bias is not None, CLASS_WEIGHT=False, SCALES=0 if relative is None else 2,
        SMOOTH=problem.smoothing > 0, DB=grads.needs.bias, DB_MORE=first > 0, **blocks,
        **_triton.all_registers(problem.x.device),
    )  # fmt: skip
    dz = buffers.logits[:size]
    if buffers.dw is not None:
        buffers.dw.addmm_(dz.t(), buffers.x[:size])
    if buffers.dx is not None:
        torch.mm(dz, buffers.weight, out=buffers.dx[:size])
