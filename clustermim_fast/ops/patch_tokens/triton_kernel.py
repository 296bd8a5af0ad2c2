"""``patch_tokens`` on Triton: nearest_centroid's kernels on rows that are patches of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from clustermim_fast.ops import _triton
from clustermim_fast.ops.nearest_centroid import triton_kernel as nearest
from clustermim_fast.ops.nearest_centroid.triton_images import (
    CHANNELS,
    PACKED,
    PATCH,
    in_order,
    memory_order,
)
from clustermim_fast.ops.nearest_centroid.triton_lists import NUM_COUNTERS
from clustermim_fast.ops.nearest_centroid.triton_rows import (
    RowSource,
    column_places,
    image_rows,
    load_values,
    matrix_rows,
    row_starts,
)

_NORMALISED_VALUES = 2**24  # of patches that are normalised, and therefore copied, at a time


@triton.jit
def _statistics_kernel(x, means, deviations, N, D, BLOCK_N: tl.constexpr):
    """Each patch's mean and deviation in float64, one value after the other by row, column and
    channel."""
    P: tl.constexpr = x[PATCH]
    C: tl.constexpr = x[CHANNELS]
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < N
    starts = row_starts(x, rows, "images")
    mean = tl.zeros([BLOCK_N], tl.float64)
    squares = tl.zeros([BLOCK_N], tl.float64)
    for second in tl.static_range(2):
        total = tl.zeros([BLOCK_N], tl.float64)
        for at in range(D):
            ds = tl.zeros([BLOCK_N], tl.int32) + at
            if not x[PACKED]:
                ds = ds % C * (P * P) + ds // C
            places = starts + column_places(x, ds, "images")
            value = load_values(x, places, ds, exist, "images", True)
            if second:
                value -= mean
                value *= value
            total += value
        if second:
            squares = total
        else:
            mean = total / D.to(tl.float64)
    tl.store(means + rows, mean, mask=exist)
    deviation = tl.sqrt(squares / (D - 1).to(tl.float64) + 1e-6)
    tl.store(deviations + rows, deviation, mask=exist)


@triton.jit
def _normalise_kernel(
    x, means, deviations, out, N, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ds = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (rows < N)[:, None] & (ds < D)[None, :]
    places = row_starts(x, rows, "images")[:, None] + column_places(x, ds, "images")[None, :]
    values = load_values(x, places, ds[None, :], mask, "images", True)
    mean = tl.load(means + rows, mask=rows < N, other=0.0)
    deviation = tl.load(deviations + rows, mask=rows < N, other=1.0)
    values = ((values - mean[:, None]) / deviation[:, None]).to(tl.float32)
    tl.store(out + rows.to(tl.int64)[:, None] * D + ds[None, :], values, mask=mask)


def _normalised(patches: RowSource) -> RowSource:
    """The patches normalised one by one, copied."""
    images = patches.arguments[0]
    n, d = patches.num_rows, patches.dim
    out = images.new_empty((n, d), dtype=torch.float32)
    means, deviations = (images.new_empty(n, dtype=torch.float64) for _ in range(2))
    _statistics_kernel[(triton.cdiv(n, 128),)](
        patches.arguments, means, deviations, n, d, BLOCK_N=128, enable_fp_fusion=False
    )
    _normalise_kernel[(triton.cdiv(n, 16), triton.cdiv(d, 128))](
        patches.arguments, means, deviations, out, n, d,
        BLOCK_N=16, BLOCK_D=128, enable_fp_fusion=False,
    )  # fmt: skip
    return matrix_rows(out)


@dataclass(frozen=True)
class PatchSources:
    """Iterates over the patches as row sources, each with its first row's number.

    order: of the values in a row.
    """

    patches: RowSource
    order: str
    per_patch_norm: bool

    @property
    def num_rows(self) -> int:
        return self.patches.num_rows

    def __iter__(self) -> Iterator[tuple[int, RowSource]]:
        if not self.per_patch_norm:
            yield 0, self.patches
            return
        for first, part in self.patches.chunks(max(1, _NORMALISED_VALUES // self.patches.dim)):
            yield first, _normalised(part)


def patch_sources(
    images: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
) -> PatchSources:
    rows = image_rows(images, patch_size, mean, std)
    return PatchSources(rows, memory_order(images), per_patch_norm)


def patch_tokens(
    images: torch.Tensor,
    centroids: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
    patch_order: str,
    metric: str,
    hopper: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 of all patches in turn, and the tiers' counts on the device."""
    with _triton.launching_on(images):
        patches = patch_sources(images, patch_size, mean, std, per_patch_norm)
        ids = images.new_empty(patches.num_rows, dtype=torch.int64)
        ordered = in_order(centroids, images.shape[1], patch_order, patches.order)
        counts = [
            nearest.assign(rows, ordered, metric, ids[first : first + rows.num_rows], hopper)
            for first, rows in patches
        ]
        tiers = counts[0] if len(counts) == 1 else ids.new_zeros(NUM_COUNTERS)
        for more in counts if len(counts) > 1 else ():
            tiers += more
    return ids, tiers
