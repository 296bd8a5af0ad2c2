"""The linear loss for many classes and 16-bit operands: what triton_softmax.py and
triton_products.py hold is launched here.

Chunks of tokens pass through buffers of CHUNK_BYTES. There are as many as the caller's
``masked_per_sample`` needs, else as all tokens do: those behind the device's count do nothing.
"""

from __future__ import annotations

import torch
import triton

from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_linear_cross_entropy import (
    triton_few,
    triton_products,
    triton_rest,
    triton_softmax,
)
from clustermim_fast.ops.masked_linear_cross_entropy.triton_problem import (
    Grads,
    Losses,
    Problem,
    dividing,
    next_power,
)

CHUNK_BYTES = 192 << 20  # of E, or dZ, and of what is kept of its tiles
ROWS = 128  # tokens of a product's tile
COLUMNS = 128  # classes of a tile of logits: with twice as many its softmax spills


def wide(device: torch.device) -> int:
    """Columns of the gradients' tiles: 256 fit the registers beside Hopper's own products."""
    return 256 if _triton.properties(device).capability // 10 == 9 else 128


class _Plan:
    """Sizes and buffers of a call."""

    def __init__(self, problem: Problem) -> None:
        (num_classes, dim), x = problem.weight.shape, problem.x
        self.multiprocessors = _triton.properties(x.device).multiprocessors
        self.options = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
        self.options |= _triton.all_registers(x.device)
        self.tiles = triton.cdiv(num_classes, COLUMNS)
        self.smooth = problem.smoothing > 0
        # Of dW: behind the classes the smoothing's sums of inputs.
        self.classes = num_classes + (triton_softmax.EXTRA if self.smooth else 0)
        self.row = triton.cdiv(self.classes, COLUMNS) * COLUMNS
        # Where no 16 values divide a row it is read one by one: fewer of them at a time.
        self.depth = dividing(dim, 64) if dim % 16 == 0 else 32
        self.width = dividing(dim, wide(x.device)) if dim % 16 == 0 else 64
        self.width_tiles = triton.cdiv(dim, self.width)
        self.rows = self._chunk_rows(problem)
        self.chunks = triton.cdiv(problem.limit, self.rows)
        self.combine_rows = max(1, min(128, 2048 // next_power(self.tiles)))
        self.programs = triton.cdiv(self.rows, self.combine_rows)

    def _chunk_rows(self, problem: Problem) -> int:
        """Whole waves of the tiles of dX, where they fit."""
        most = CHUNK_BYTES // (2 * self.row + 12 * self.tiles)
        wave = self.multiprocessors * ROWS // self.width_tiles
        rows = most // wave * wave if most >= wave else most // ROWS * ROWS
        return max(1, min(max(rows, ROWS), problem.limit))


def programs_for(problem: Problem) -> int:
    plan = _Plan(problem)
    return max(1, plan.chunks * plan.programs)


def run(
    problem: Problem,
    stats: torch.Tensor,
    losses: Losses | None,
    grads: Grads | None,
    again: torch.Tensor | None = None,
) -> None:
    """Fills ``stats`` and ``losses``, and ``grads``; without losses the stats are read.

    ``again``: as for the few classes' ``run``.
    """
    plan = _Plan(problem)
    if again is not None:  # nothing counts where nothing is to be made again
        power_of_two = (again.view(torch.int32) & 0x7FFFFF) == 0
        problem = problem._replace(counted=torch.where(power_of_two, 0, problem.counted))
    weight = triton_few.padded_weight(problem, plan.tiles * COLUMNS)
    bias = weight.new_zeros(len(weight), dtype=torch.float32)
    if problem.bias is not None:
        bias[: len(problem.weight)] = problem.bias
    forward = None
    if losses is not None:
        forward = _Forward(problem, plan, weight, bias, stats, losses, grads)
    backward = None if grads is None else _Gradients(problem, plan, weight, bias, grads, forward)
    for chunk in range(plan.chunks):
        first = chunk * plan.rows
        end = min(first + plan.rows, problem.limit)
        if forward is not None:
            forward.add(first, end)
        if backward is not None:
            if forward is not None and forward.keep:
                backward.from_tiles(forward, first, end)
            else:
                backward.from_logits(stats, first, end)
            backward.multiply(first, end)
    if backward is not None:
        backward.finish()
    if again is None:
        triton_rest.fill(
            problem,
            None if losses is None else stats,
            None if losses is None else losses.each,
            None if backward is None else backward.dx,
        )


class _Forward:
    """Losses and stats, chunk by chunk, and what the gradients are made of."""

    def __init__(
        self, problem: Problem, plan: _Plan, weight: torch.Tensor, bias: torch.Tensor,
        stats: torch.Tensor, losses: Losses, grads: Grads | None,
    ) -> None:  # fmt: skip
        self.problem, self.plan, self.weight, self.bias = problem, plan, weight, bias
        self.stats, self.losses, x = stats, losses, problem.x
        self.keep = grads is not None and x.dtype == torch.bfloat16  # E rounds float16's too much
        self.relative = None if grads is None else grads.scales.relative
        self.e = x.new_empty((plan.rows, plan.row) if self.keep else 0, dtype=torch.float16)
        self.tops, self.totals, self.zsums = x.new_empty(
            3, plan.rows, plan.tiles, dtype=torch.float32
        )
        self.best = x.new_empty(plan.rows, plan.tiles, dtype=torch.int32)
        self.hit = x.new_empty(plan.rows, dtype=torch.float32)
        if losses.sums is not None and plan.chunks == 0:
            losses.sums.zero_()

    def add(self, first: int, end: int) -> None:
        problem, plan, x = self.problem, self.plan, self.problem.x
        num_classes, dim = problem.weight.shape
        each, sums, correct, histogram, wrong = self.losses
        triton_softmax.logit_tiles[(triton.cdiv(end - first, ROWS) * plan.tiles,)](
            x, self.weight, self.bias, problem.target, problem.rows, problem.counted, self.e,
            self.tops, self.totals, self.zsums, self.best, self.hit, first, end, num_classes, dim,
            plan.tiles, plan.row, problem.per_sample, problem.prefix, *x.stride()[:2],
            self.weight.stride(0), KEEP=self.keep, SMOOTH=plan.smooth, METRICS=correct is not None,
            PADDED=num_classes % COLUMNS > 0, ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=plan.depth,
            EVEN_D=dim % plan.depth == 0, **plan.options,
        )  # fmt: skip
        if sums is not None:
            chunk = first // plan.rows
            sums = sums[chunk * plan.programs : (chunk + 1) * plan.programs]
        triton_softmax.combine_tiles[(plan.programs,)](
            self.tops, self.totals, self.zsums, self.best, self.hit, problem.target,
            problem.token_weight, wrong, problem.rows, problem.counted, self.stats, each, sums,
            correct, histogram, self.relative, problem.num_tokens, first, end, num_classes,
            plan.tiles, problem.per_sample, problem.smoothing, GRAD=self.keep, SMOOTH=plan.smooth,
            TOKEN_WEIGHT=problem.token_weight is not None, WRONG=wrong is not None,
            EACH=each is not None, METRICS=correct is not None, RELATIVE=self.relative is not None,
            ROWS=plan.combine_rows, TILES=next_power(plan.tiles, 1), num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip


class _Gradients:
    """dX, dW and db of a call, chunk by chunk."""

    def __init__(
        self, problem: Problem, plan: _Plan, weight: torch.Tensor, bias: torch.Tensor,
        grads: Grads, forward: _Forward | None,
    ) -> None:  # fmt: skip
        self.problem, self.plan, self.weight, self.bias = problem, plan, weight, bias
        self.grads = grads
        (num_classes, dim), x, needs = problem.weight.shape, problem.x, grads.needs
        if forward is not None and forward.keep:
            self.dz = forward.e.view(x.dtype)
            self.db_parts = max(
                1, min(triton.cdiv(plan.rows, 32), 8 * plan.multiprocessors // plan.tiles)
            )
        else:
            self.dz = x.new_empty(plan.rows, plan.row)
            self.db_parts = triton.cdiv(plan.rows, ROWS)
        self.db = grads.bias.new_zeros(self.db_parts, num_classes) if needs.bias else None
        self.dx = grads.input.view(x.shape) if needs.input else None
        self.direction = None
        if needs.input and plan.smooth:
            self.direction = problem.weight.double().mean(0).float() * problem.smoothing
        self.class_tiles = triton.cdiv(plan.classes, ROWS)
        # Up to three waves of programs, each with a span of the tokens.
        tiles = self.class_tiles * plan.width_tiles
        self.splits = max(1, min(3 * plan.multiprocessors // tiles, plan.rows // ROWS))
        self.parts = None
        if needs.weight:
            self.parts = grads.weight.new_zeros(self.splits, self.class_tiles * ROWS, dim)

    def from_tiles(self, forward: _Forward, first: int, end: int) -> None:
        """dZ and db of a chunk that the forward pass has just left."""
        problem, plan, relative = self.problem, self.plan, self.grads.scales.relative
        triton_softmax.grad_tiles[(self.db_parts, plan.row // COLUMNS)](
            forward.e, self.dz, forward.tops, forward.hit, problem.target, problem.rows,
            problem.counted, relative, self.db, first, end, len(problem.weight), plan.tiles,
            plan.row, problem.smoothing, problem.shift, RELATIVE=relative is not None,
            SMOOTH=plan.smooth, DB=self.db is not None, ROWS=32, COLUMNS=COLUMNS, num_warps=8,
            enable_fp_fusion=True,
        )  # fmt: skip

    def from_logits(self, stats: torch.Tensor, first: int, end: int) -> None:
        """dZ and db of a chunk whose stats are known."""
        problem, plan, x = self.problem, self.plan, self.problem.x
        (num_classes, dim), relative = problem.weight.shape, self.grads.scales.relative
        row_tiles = plan.row // COLUMNS
        triton_softmax.logit_gradients[(triton.cdiv(end - first, ROWS) * row_tiles,)](
            x, self.weight, self.bias, problem.target, problem.rows, problem.counted, stats,
            relative, self.dz, self.db, problem.num_tokens, first, end, num_classes, dim,
            plan.tiles, row_tiles, plan.row, problem.per_sample, problem.prefix, *x.stride()[:2],
            self.weight.stride(0), problem.smoothing, problem.shift,
            RELATIVE=relative is not None, SMOOTH=plan.smooth, DB=self.db is not None, ROWS=ROWS,
            COLUMNS=COLUMNS, DEPTH=plan.depth, EVEN_D=dim % plan.depth == 0, **plan.options,
        )  # fmt: skip

    def multiply(self, first: int, end: int) -> None:
        """A chunk's dX, and its part of dW."""
        problem, plan, x, dz = self.problem, self.plan, self.problem.x, self.dz
        (num_classes, dim), (factor, relative) = problem.weight.shape, self.grads.scales
        even = dim % plan.width == 0
        if self.parts is not None:
            triton_products.weight_gradient[(self.splits * self.class_tiles * plan.width_tiles,)](
                x, dz, problem.rows, problem.counted, self.parts, first, end, dim, self.splits,
                self.class_tiles, plan.width_tiles, plan.row, problem.per_sample, problem.prefix,
                *x.stride()[:2], ROWS=64, CLASSES=ROWS, WIDTH=plan.width, EVEN_WIDTH=even,
                **plan.options,
            )  # fmt: skip
        if self.dx is not None:
            row_tiles = triton.cdiv(end - first, ROWS)
            triton_products.input_gradient[(row_tiles * plan.width_tiles,)](
                dz, self.weight, problem.rows, problem.counted, factor, relative, self.direction,
                self.dx, first, end, num_classes, dim, plan.width_tiles, plan.row,
                problem.per_sample, problem.prefix, self.weight.stride(0), *self.dx.stride()[:2],
                problem.shift, SMOOTH=self.direction is not None, RELATIVE=relative is not None,
                ROWS=ROWS, DEPTH=64, WIDTH=plan.width, EVEN_WIDTH=even, **plan.options,
            )  # fmt: skip

    def finish(self) -> None:
        """Sums of the parts, the factor, and what smoothing takes off dW."""
        problem, plan, grads = self.problem, self.plan, self.grads
        num_classes = problem.weight.shape[0]
        if self.parts is not None:
            total = torch.empty_like(self.parts[0])
            triton_few.add(self.parts, None, total, 0.0)
            dw = total[:num_classes]
            if plan.smooth:
                dw -= problem.smoothing / num_classes * total[num_classes : plan.classes].sum(0)
            torch.mul(dw, grads.scales.factor / problem.shift, out=grads.weight)
        if self.db is not None:
            torch.sum(self.db, 0, out=grads.bias)
            grads.bias.mul_(grads.scales.factor)
