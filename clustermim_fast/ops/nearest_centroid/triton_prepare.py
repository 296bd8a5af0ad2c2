"""Centroids made ready for the Triton filter: one frame, 16-bit points, what the rounding moved.

Section 8 of ``docs/certificate.md`` says what is stored here and why it suffices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from clustermim_fast.ops import _triton
from clustermim_fast.ops.nearest_centroid.triton_images import (
    CHANNELS,
    image_channels,
    of_channel,
)
from clustermim_fast.ops.nearest_centroid.triton_lists import (
    C_ALL,
    C_NEAR,
    FAR,
    NUM_FACTS,
    R_ALL,
    R_NEAR,
)
from clustermim_fast.ops.nearest_centroid.triton_pixels import MIDDLES, POWER, Line
from clustermim_fast.ops.nearest_centroid.triton_rows import (
    RowSource,
    column_places,
    load_values,
    matrix_rows,
    row_starts,
)
from clustermim_fast.ops.nearest_centroid.triton_scales import (
    SAMPLE,
    exponent_of,
    middle_kernel,
    power_of_two,
    scale_of_centroids,
    scales_kernel,
)
from clustermim_fast.ops.nearest_centroid.triton_sizes import Sizes

LARGEST = tl.constexpr(65504.0)  # of float16
UP = tl.constexpr(1 + 2.0**-20)  # rounds up what float64 computed and float32 holds


@dataclass(frozen=True)
class Codebook:
    """Centroids as the kernels take them.

    packed: float16 [Kp, Dp], zeros outside [K, D]. bias: float32 [Kp], -inf where no centroid may
    win. alive, near: int8 [Kp], what may win, what is not far. norm: float64 [Kp], |c| for cosine.
    frame: float32 [Dp]. scale: float64 [1], of the rows. facts: int32 [5], the bits of float32.
    line: if pixels are the operands; then packed belongs to them, and frame has the squares of
    their factors.
    """

    centroids: RowSource
    metric: str
    packed: torch.Tensor
    bias: torch.Tensor
    alive: torch.Tensor
    near: torch.Tensor
    norm: torch.Tensor
    frame: torch.Tensor
    scale: torch.Tensor
    facts: torch.Tensor
    line: Line | None


@triton.jit
def _first_equal(hashes, size, ks, K, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr):
    """The first finite centroid whose hash is that of centroids ks; K where it is none."""
    mine = tl.load(hashes + ks, mask=ks < K, other=0)
    first = tl.zeros([BLOCK_K], tl.int32) + K
    for begin in range(0, tl.minimum(tl.max(ks, 0), K), BLOCK):
        others = begin + tl.arange(0, BLOCK)
        theirs = tl.load(hashes + others, mask=others < K, other=0)
        usable = tl.load(size + others, mask=others < K, other=-1.0) >= 0
        equal = (theirs[None, :] == mine[:, None]) & usable[None, :]
        first = tl.minimum(first, tl.min(tl.where(equal, others[None, :], K), 1))
    return first


@triton.jit
def _pack_kernel(
    c, frame64, size, apart, hashes, packed, bias, alive, near, norm, frame, scale, facts,
    x, line, K, Kp, D, Dp, column_blocks,
    KIND: tl.constexpr, METRIC: tl.constexpr, EXACT16: tl.constexpr, LIMIT: tl.constexpr,
    LINE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Everything else of the codebook; BLOCK_K divides Kp and BLOCK_D divides Dp."""
    ks = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    starts = row_starts(c, ks, KIND)
    own_size = tl.load(size + ks, mask=ks < K, other=-1.0)
    exponent, framed = scale_of_centroids(
        size, apart, column_blocks, K, METRIC, EXACT16, LIMIT, BLOCK
    )
    first = _first_equal(hashes, size, ks, K, BLOCK_K, BLOCK)
    first_starts = row_starts(c, first, KIND)

    differs = tl.zeros([BLOCK_K], tl.int32)
    squares = tl.zeros([BLOCK_K], tl.float64)
    to_one = power_of_two(tl.minimum(tl.maximum(-exponent_of(own_size), -1000), 1000))
    for begin in range(0, D, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        places = column_places(c, ds, KIND)[None, :]
        mask = (ds < D)[None, :] & (own_size >= 0)[:, None]
        values = load_values(c, starts[:, None] + places, ds[None, :], mask, KIND, True)
        mask &= (first < ks)[:, None]
        earlier = load_values(c, first_starts[:, None] + places, ds[None, :], mask, KIND, True)
        differs = tl.maximum(differs, tl.max((values != earlier).to(tl.int32), 1))
        values *= to_one[:, None]
        squares += tl.sum(values * values, 1)
    lives = (own_size >= 0) & ((first >= ks) | (differs != 0))
    power = power_of_two(exponent)
    if LINE:
        power = tl.zeros([], tl.float64) + line[POWER]
    factor = tl.zeros([BLOCK_K], tl.float64) + power
    again = tl.full([BLOCK_K], 1.0, tl.float64)
    if METRIC == "cosine":
        length = tl.sqrt(squares)
        tl.store(norm + ks, length / to_one)
        factor = to_one
        again = tl.where(length > 0, 1024.0 / tl.where(length > 0, length, 1.0), 0.0)

    rest_square = tl.zeros([BLOCK_K], tl.float64)
    kept_square = tl.zeros([BLOCK_K], tl.float64)
    true_square = tl.zeros([BLOCK_K], tl.float64)
    for begin in range(0, Dp, BLOCK_D):
        ds = begin + tl.arange(0, BLOCK_D)
        mask = (ds < D)[None, :] & lives[:, None]
        places = starts[:, None] + column_places(c, ds, KIND)[None, :]
        values = load_values(c, places, ds[None, :], mask, KIND, True)
        values = values * factor[:, None] * again[:, None]
        if LINE:
            channel = image_channels(x, ds)
            middle = of_channel(line, channel, MIDDLES, x[CHANNELS]).to(tl.float64) * power
            slope = of_channel(line, channel, MIDDLES + x[CHANNELS], x[CHANNELS]).to(tl.float64)
            if tl.program_id(0) == 0:
                # The next float16 above the nearest.
                weight = (slope * slope).to(tl.float32).to(tl.float16).to(tl.int16, bitcast=True)
                weight = tl.where(ds < D, weight + 1, 0).to(tl.int16)
                tl.store(frame + ds, weight.to(tl.float16, bitcast=True))
            values = tl.where(mask, values - middle[None, :], 0.0)
            operands = values * slope[None, :]
        else:
            if METRIC == "euclidean":
                middle = tl.load(frame64 + ds, mask=ds < D, other=0.0) * power
                usable = (framed != 0) & (tl.abs(middle) < 2.0**100)
                middle = tl.where(usable, middle, 0.0).to(tl.float32)
                if tl.program_id(0) == 0:
                    tl.store(frame + ds, middle)
                values = tl.where(mask, values - middle.to(tl.float64)[None, :], 0.0)
            operands = values
        half = tl.minimum(tl.maximum(operands, -LARGEST), LARGEST).to(tl.float32).to(tl.float16)
        tl.store(packed + ks.to(tl.int64)[:, None] * Dp + ds[None, :], half)
        kept = half.to(tl.float64)
        if LINE:
            kept = kept * (1.0 / slope)[None, :]
        rest = values - kept
        rest_square += tl.sum(rest * rest, 1)
        kept_square += tl.sum(kept * kept, 1)
        true_square += tl.sum(values * values, 1)

    radius = (tl.sqrt(rest_square) + tl.sqrt(true_square) * 2.0**-40).to(tl.float32) * UP
    reach = tl.sqrt(kept_square).to(tl.float32) * UP
    # Far ones have bounds of their own: they would loosen those of all others.
    close = lives
    share: tl.constexpr = 0.5 if METRIC == "euclidean" else 0.0
    if METRIC == "euclidean":
        close &= true_square < (2.0**20 if LINE else 4096.0) * D
        if tl.program_id(0) == 0:
            tl.store(scale, power)
    tl.store(bias + ks, tl.where(lives, (-share * kept_square).to(tl.float32), float("-inf")))
    tl.store(alive + ks, lives.to(tl.int8))
    tl.store(near + ks, close.to(tl.int8))
    _raise(facts + R_NEAR, tl.where(close, radius, 0.0))
    _raise(facts + R_ALL, tl.where(lives, radius, 0.0))
    _raise(facts + C_NEAR, tl.where(close, reach, 0.0))
    _raise(facts + C_ALL, tl.where(lives, reach, 0.0))
    far = tl.sqrt(tl.minimum(true_square, kept_square)).to(tl.float32) * (1 - 2.0**-20)
    far = tl.where(lives & (close == 0), far, float("inf"))
    tl.atomic_min(facts + FAR, tl.min(_order(far), 0))


@triton.jit
def _order(values):
    """Bits of floats >= 0 are integers of the same order; infinity for NaN."""
    return tl.where(values >= 0, values, float("inf")).to(tl.int32, bitcast=True)


@triton.jit
def _raise(place, values):
    tl.atomic_max(place, tl.max(_order(values), 0))


def prepare(
    c: torch.Tensor, rows: RowSource, metric: str, sizes: Sizes, counters: torch.Tensor
) -> Codebook:
    """The codebook for these rows, padded to whole tiles of the filter; clears ``counters``."""
    K, D = c.shape
    Kp = triton.cdiv(K, sizes.filter.columns) * sizes.filter.columns
    Dp = triton.cdiv(D, sizes.filter.values) * sizes.filter.values
    centroids = matrix_rows(c)
    column_blocks = triton.cdiv(D, sizes.prepare.values) if metric == "euclidean" else 0
    size = c.new_empty(K, dtype=torch.float64)
    frame64 = c.new_empty(D, dtype=torch.float64)
    apart = c.new_empty(column_blocks, SAMPLE.value, dtype=torch.float64)
    hashes = c.new_empty(K, dtype=torch.int64)
    facts = c.new_empty(NUM_FACTS.value, dtype=torch.int32)
    line = rows.line if metric == "euclidean" else None
    book = Codebook(
        centroids=centroids,
        metric=metric,
        packed=c.new_empty(Kp, Dp, dtype=torch.float16),
        bias=c.new_empty(Kp, dtype=torch.float32),
        alive=c.new_empty(Kp, dtype=torch.int8),
        near=c.new_empty(Kp, dtype=torch.int8),
        norm=c.new_empty(Kp if metric == "cosine" else 1, dtype=torch.float64),
        frame=c.new_empty(
            Dp if metric == "euclidean" else 1, dtype=torch.float16 if line else torch.float32
        ),
        scale=c.new_empty(1, dtype=torch.float64),
        facts=facts,
        line=line,
    )
    blocks = dict(BLOCK_D=sizes.prepare.values, enable_fp_fusion=True)
    if column_blocks:
        middle_kernel[(column_blocks,)](
            centroids.arguments, frame64, apart, K, D, KIND=centroids.kind, num_warps=8, **blocks
        )
    programs = triton.cdiv(K, sizes.prepare.columns) + (metric != "euclidean")
    scales_kernel[(programs,)](
        centroids.arguments, rows.arguments, size, hashes, book.scale, facts,
        counters, K, D, rows.num_rows, counters.numel(),
        KIND=centroids.kind, X_KIND=rows.kind, WIDE=rows.wide,
        BLOCK_K=sizes.prepare.columns, **blocks, **_triton.all_registers(c.device),
    )  # fmt: skip
    _pack_kernel[(Kp // sizes.prepare.columns,)](
        centroids.arguments, frame64, size, apart, hashes,
        book.packed, book.bias, book.alive, book.near, book.norm, book.frame, book.scale, facts,
        rows.arguments if line else (), line.arguments if line else (),
        K, Kp, D, Dp, column_blocks,
        KIND=centroids.kind, METRIC=metric, EXACT16=rows.exact16, LIMIT=1000 if rows.wide else 126,
        LINE=bool(line),
        BLOCK_K=sizes.prepare.columns, BLOCK=256, **blocks,
    )  # fmt: skip
    return book
