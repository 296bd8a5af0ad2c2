"""Rows as the Triton kernels of the assignment read them, wherever they stand.

A kernel gets a row source as two arguments, the tuple ``source`` and the constant ``KIND``; both
come from a :class:`RowSource`. Value d of row n is ``load_values`` of the place
``row_starts(n) + column_places(d)``: whatever the source, a place is a sum of the two.

KIND "matrix": source = (tensor [N, D], stride of n, stride of d). KIND "images": the patches of
images, ``triton_images``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from clustermim_fast.ops.nearest_centroid.triton_images import (
    image_arguments,
    image_places,
    image_starts,
    image_values,
)
from clustermim_fast.ops.nearest_centroid.triton_pixels import Line, pixel_line

# Rows that one launch looks at: row numbers fit 32 bits, and the lists of open rows stay small.
ROWS_AT_ONCE = 2**21


@dataclass(frozen=True)
class RowSource:
    """``num_rows`` rows of ``dim`` values.

    wide: values need float64. exact16: values are of at most 11 bits, so that float16 holds them.
    line: where pixels' values lie, if the euclidean filter takes the pixels themselves.
    """

    kind: str
    arguments: tuple[Any, ...]
    num_rows: int
    dim: int
    wide: bool
    exact16: bool
    line: Line | None = None

    def chunks(self, rows: int = ROWS_AT_ONCE) -> Iterator[tuple[int, RowSource]]:
        """The source in parts of at most ``rows`` rows, each with its first row's number."""
        if self.kind == "images":
            yield from self._image_chunks(rows)
            return
        for first in range(0, self.num_rows, rows):
            tensor = self.arguments[0][first : first + rows]
            yield first, matrix_rows(tensor)

    def _image_chunks(self, rows: int) -> Iterator[tuple[int, RowSource]]:
        """Whole images, or lines of patches of one image."""
        if self.num_rows == 0:
            return
        images, length, across = (self.arguments[at] for at in (0, 5, 6))
        patch = images.shape[3] // across
        lines = images.shape[2] if length <= rows else max(1, rows // across) * patch
        first = 0
        for whole in images.split(max(1, rows // length)):
            for part in whole.split(lines, 2):
                size = part.shape[2] // patch * across
                arguments = (part, *self.arguments[1:5], size, *self.arguments[6:])
                chunk = replace(self, arguments=arguments, num_rows=part.shape[0] * size)
                yield first, chunk
                first += chunk.num_rows


def matrix_rows(x: torch.Tensor) -> RowSource:
    """The rows of a floating [N, D], any strides."""
    return RowSource(
        kind="matrix",
        arguments=(x, x.stride(0), x.stride(1)),
        num_rows=x.shape[0],
        dim=x.shape[1],
        wide=x.dtype == torch.float64,
        exact16=x.dtype in (torch.float16, torch.bfloat16),
    )


def image_rows(
    images: torch.Tensor, patch_size: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> RowSource:
    """The patches of [B, C, H, W], values in the order ``triton_images.memory_order(images)``."""
    batch, channels, height, width = images.shape
    line = pixel_line(patch_size, channels, mean, std) if images.dtype == torch.uint8 else None
    return RowSource(
        kind="images",
        arguments=image_arguments(images, patch_size, mean, std, normal=line is not None),
        num_rows=batch * (height // patch_size) * (width // patch_size),
        dim=channels * patch_size**2,
        wide=False,
        exact16=mean is None and images.dtype in (torch.float16, torch.bfloat16),
        line=line,
    )


@triton.jit
def row_starts(source, rows, KIND: tl.constexpr):
    """int64 places of the rows' first values."""
    if KIND == "images":
        return image_starts(source, rows)
    else:
        return rows.to(tl.int64) * source[1]


@triton.jit
def column_places(source, ds, KIND: tl.constexpr):
    """int64 places of values ``ds`` of a row, counted from its first."""
    if KIND == "images":
        return image_places(source, ds)
    else:
        return ds.to(tl.int64) * source[2]


@triton.jit
def load_values(source, places, ds, mask, KIND: tl.constexpr, WIDE: tl.constexpr):
    """The values at ``places`` as float32, or float64 where ``WIDE``; 0 outside ``mask``.

    ds: which value of its row each of ``places`` is; it broadcasts to them.
    """
    if KIND == "images":
        return image_values(source, places, ds, mask, WIDE)
    else:
        values = tl.load(source[0] + places, mask=mask, other=0.0)
        return values.to(tl.float64 if WIDE else tl.float32)
