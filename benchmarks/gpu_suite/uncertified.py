"""The filter without the tiers behind it: what certainty costs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from clustermim_fast.ops import _triton


def filter_alone(
    x: torch.Tensor, c: torch.Tensor, hopper: bool = False
) -> Callable[[], torch.Tensor]:
    """Codebook and low-precision filter; the rows that it leaves open have id -1.

    hopper: the filter in CUDA C++.
    """
    from clustermim_fast.ops.nearest_centroid import cuda_filter, triton_filter
    from clustermim_fast.ops.nearest_centroid.triton_lists import NUM_COUNTERS, Lists
    from clustermim_fast.ops.nearest_centroid.triton_prepare import prepare
    from clustermim_fast.ops.nearest_centroid.triton_rows import matrix_rows
    from clustermim_fast.ops.nearest_centroid.triton_sizes import choose

    rows = matrix_rows(x)
    ids = torch.empty(len(x), dtype=torch.int64, device=x.device)

    def call() -> torch.Tensor:
        sizes = choose(_triton.properties(x.device), rows, len(c))
        if hopper:
            sizes = cuda_filter.sizes_for(sizes, rows.dim)
        parts = list(rows.chunks())
        counters = ids.new_empty(len(parts), NUM_COUNTERS, dtype=torch.int32)
        book = prepare(c, rows, "euclidean", sizes, counters)
        for own, (first, part) in zip(counters, parts, strict=True):
            lists = Lists.of(own, part.num_rows)
            (cuda_filter if hopper else triton_filter).filter_rows(
                part, book, sizes, lists, ids[first:]
            )
        return ids

    return call
