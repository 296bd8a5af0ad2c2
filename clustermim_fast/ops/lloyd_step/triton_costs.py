"""The sum of the rows' costs: float64 in a fixed order, or integers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clustermim_fast.ops.lloyd_step.triton_sums import added

_ROWS = 4096  # of a program
_BLOCK = 512

# Costs are quantised like the sums. Two numbers hold their sum: low is of 32 bits a row.
_PER_UNIT = tl.constexpr(2.0**28)
_LARGEST = tl.constexpr(2.0**33)  # of a quantised cost: 2^61 quanta
_ROUND = tl.constexpr(1.5 * 2.0**52)  # added and taken away it rounds to integers, half to even


@triton.jit
def _costs_kernel(
    costs, ids, weights, sums, quanta, N, pieces,
    METRIC: tl.constexpr, WEIGHTED: tl.constexpr, QUANTISED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of ROWS rows' costs; high and low part of the quantised one, and whether a cost is
    too large for that."""
    program = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float64)
    high = tl.zeros([BLOCK], tl.int64)
    low = tl.zeros([BLOCK], tl.int64)
    huge = tl.zeros([BLOCK], tl.int64)
    for begin in range(program * ROWS, tl.minimum((program + 1) * ROWS, N), BLOCK):
        rows = begin + tl.arange(0, BLOCK)
        exist = rows < N
        exist &= tl.load(ids + rows, mask=exist, other=-1) >= 0
        cost = tl.zeros([BLOCK], tl.float64)
        at = rows.to(tl.int64)
        for _ in range(pieces):
            cost += tl.load(costs + at, mask=exist, other=0.0)
            at += N
        if METRIC == "cosine":
            cost = tl.where(exist, 1.0 - cost, 0.0)
        if METRIC == "dot":
            cost = -cost
        if WEIGHTED:
            cost *= tl.load(weights + rows, mask=exist, other=0.0)
        total += cost
        if QUANTISED:
            small = tl.abs(cost) < _LARGEST
            many = tl.where(small, cost, 0.0) * _PER_UNIT
            rounded = tl.where(tl.abs(many) < 2.0**51, (many + _ROUND) - _ROUND, many).to(tl.int64)
            high += rounded >> 32
            low += rounded & 0xFFFFFFFF
            huge += (small == 0).to(tl.int64)
    place = program + tl.arange(0, 1)
    tl.store(sums + place, added(total, BLOCK, 1))
    if QUANTISED:
        stride = tl.num_programs(0)
        tl.store(quanta + place, added(high, BLOCK, 1))
        tl.store(quanta + stride + place, added(low, BLOCK, 1))
        tl.store(quanta + 2 * stride + place, added(huge, BLOCK, 1))


@triton.jit
def _add_costs_kernel(
    sums, quanta, state, quanta_state, inertia, number,
    QUANTISED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, BLOCK)
    one = tl.arange(0, 1)
    total = tl.zeros([BLOCK], tl.float64)
    high = tl.zeros([BLOCK], tl.int64)
    low = tl.zeros([BLOCK], tl.int64)
    huge = tl.zeros([BLOCK], tl.int64)
    for begin in range(0, number, BLOCK):
        at = begin + lanes
        total += tl.load(sums + at, mask=at < number, other=0.0)
        if QUANTISED:
            high += tl.load(quanta + at, mask=at < number, other=0)
            low += tl.load(quanta + number + at, mask=at < number, other=0)
            huge += tl.load(quanta + 2 * number + at, mask=at < number, other=0)
    plain = tl.load(state + one) + added(total, BLOCK, 1)
    tl.store(state + one, plain)
    result = plain
    if QUANTISED:
        highs = tl.load(quanta_state + one) + added(high, BLOCK, 1)
        lows = tl.load(quanta_state + 1 + one) + added(low, BLOCK, 1)
        huges = tl.load(quanta_state + 2 + one) + added(huge, BLOCK, 1)
        highs += lows >> 32
        lows &= 0xFFFFFFFF
        tl.store(quanta_state + one, highs)
        tl.store(quanta_state + 1 + one, lows)
        tl.store(quanta_state + 2 + one, huges)
        exact = (highs.to(tl.float64) * 2.0**32 + lows.to(tl.float64)) / _PER_UNIT
        result = tl.where(huges == 0, exact, plain)
    tl.store(inertia + one, result)


class Inertia:
    """The sum of costs, chunk after chunk; ``value`` is a float64 scalar on the device."""

    def __init__(self, like: torch.Tensor, metric: str, quantised: bool) -> None:
        self.metric, self.quantised = metric, quantised
        self.value = like.new_zeros((), dtype=torch.float64)
        self._state = like.new_zeros(1, dtype=torch.float64)
        self._quanta = like.new_zeros(3, dtype=torch.int64)

    def add(self, costs: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None) -> None:
        """costs: [pieces, N] whose sum is a row's squared distance, or [1, N] similarities."""
        pieces, n = costs.shape
        programs = triton.cdiv(n, _ROWS)
        sums = costs.new_empty(programs)
        quanta = ids.new_empty(3 * programs if self.quantised else 0)
        _costs_kernel[(programs,)](
            costs, ids, weights, sums, quanta, n, pieces,
            METRIC=self.metric, WEIGHTED=weights is not None, QUANTISED=self.quantised,
            ROWS=_ROWS, BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        _add_costs_kernel[(1,)](
            sums, quanta, self._state, self._quanta, self.value, programs,
            QUANTISED=self.quantised, BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
