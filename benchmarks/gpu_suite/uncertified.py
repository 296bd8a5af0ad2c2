"""The filter without the tiers behind it: what certainty costs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from clustermim_fast.ops import _triton


def filter_alone(x: torch.Tensor, c: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Codebook and low-precision filter; the rows that it leaves open have id -1."""
    from clustermim_fast.ops.nearest_centroid.triton_filter import filter_rows
    from clustermim_fast.ops.nearest_centroid.triton_lists import Lists
    from clustermim_fast.ops.nearest_centroid.triton_prepare import prepare
    from clustermim_fast.ops.nearest_centroid.triton_rows import matrix_rows
    from clustermim_fast.ops.nearest_centroid.triton_sizes import choose

    rows = matrix_rows(x)
    ids = torch.empty(len(x), dtype=torch.int64, device=x.device)

    def call() -> torch.Tensor:
        sizes = choose(_triton.properties(x.device), rows, len(c))
        book = prepare(c, rows, "euclidean", sizes)
        for first, part in rows.chunks():
            filter_rows(part, book, sizes, Lists.of(ids, part.num_rows), ids[first:])
        return ids

    return call
