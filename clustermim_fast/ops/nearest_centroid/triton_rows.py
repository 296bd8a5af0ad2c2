"""Rows as the Triton kernels of the assignment read them, wherever they stand.

A kernel gets a row source as two arguments, the tuple ``source`` and the constant ``KIND``; both
come from a :class:`RowSource`. Value d of row n is ``load_values`` of the place
``row_starts(n) + column_places(d)``: whatever the source, a place is a sum of the two.

KIND "matrix": source = (tensor [N, D], stride of n, stride of d).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

# Rows that one launch looks at: row numbers fit 32 bits, and the lists of open rows stay small.
ROWS_AT_ONCE = 2**21


@dataclass(frozen=True)
class RowSource:
    """``num_rows`` rows of ``dim`` values.

    wide: values need float64. exact16: values are of at most 11 bits, so that float16 holds them.
    """

    kind: str
    arguments: tuple[Any, ...]
    num_rows: int
    dim: int
    wide: bool
    exact16: bool

    def chunks(self, rows: int = ROWS_AT_ONCE) -> Iterator[tuple[int, RowSource]]:
        """The source in parts of at most ``rows`` rows, each with its first row's number."""
        for first in range(0, self.num_rows, rows):
            tensor = self.arguments[0][first : first + rows]
            yield first, matrix_rows(tensor)


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


@triton.jit
def row_starts(source, rows, KIND: tl.constexpr):
    """int64 places of the rows' first values."""
    tl.static_assert(KIND == "matrix")
    return rows.to(tl.int64) * source[1]


@triton.jit
def column_places(source, ds, KIND: tl.constexpr):
    """int64 places of values ``ds`` of a row, counted from its first."""
    tl.static_assert(KIND == "matrix")
    return ds.to(tl.int64) * source[2]


@triton.jit
def load_values(source, places, ds, mask, KIND: tl.constexpr, WIDE: tl.constexpr):
    """The values at ``places`` as float32, or float64 where ``WIDE``; 0 outside ``mask``.

    ds: which value of its row each of ``places`` is; it broadcasts to them.
    """
    tl.static_assert(KIND == "matrix")
    values = tl.load(source[0] + places, mask=mask, other=0.0)
    return values.to(tl.float64 if WIDE else tl.float32)
