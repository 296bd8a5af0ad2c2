"""``lloyd_step`` on Triton: the ids of nearest_centroid's kernels, then sums in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clustermim_fast.ops import _triton
from clustermim_fast.ops.lloyd_step import triton_sums
from clustermim_fast.ops.lloyd_step.triton_costs import Inertia
from clustermim_fast.ops.nearest_centroid import triton_kernel as nearest
from clustermim_fast.ops.nearest_centroid.triton_images import in_order
from clustermim_fast.ops.nearest_centroid.triton_lists import NUM_COUNTERS
from clustermim_fast.ops.nearest_centroid.triton_rows import RowSource, matrix_rows
from clustermim_fast.ops.patch_tokens.triton_kernel import patch_sources

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class _Step:
    """Sums over all rows that it is given, part after part."""

    def __init__(
        self, centroids: torch.Tensor, metric: str, weighted: bool, quantised: bool
    ) -> None:
        count_dtype = torch.float64 if weighted else torch.int64
        sum_dtype = torch.int64 if quantised else torch.float64
        self.centroids, self.metric, self.quantised = centroids, metric, quantised
        self.totals = triton_sums.Totals(
            sums=torch.zeros_like(
                centroids, dtype=sum_dtype, memory_format=torch.contiguous_format
            ),
            counts=centroids.new_zeros(centroids.shape[0], dtype=count_dtype),
        )
        self.inertia = Inertia(centroids, metric, quantised)
        self.tiers = centroids.new_zeros(NUM_COUNTERS, dtype=torch.int32)

    def add(self, rows: RowSource, ids: torch.Tensor, weights: torch.Tensor | None) -> None:
        """Stores the rows' ids and adds them up."""
        self.tiers += nearest.assign(rows, self.centroids, self.metric, ids)
        for first, part in rows.chunks():
            own_ids = ids[first : first + part.num_rows]
            own_weights = None if weights is None else weights[first : first + part.num_rows]
            euclidean = self.metric == "euclidean"
            costs = triton_sums.add_rows(
                self.totals, part, own_ids, self.centroids, own_weights,
                quantised=self.quantised, want_costs=euclidean,
            )  # fmt: skip
            if not euclidean:
                costs = costs.new_empty(1, part.num_rows)
                nearest.store_values(part, self.centroids, self.metric, own_ids, costs[0])
            self.inertia.add(costs, own_ids, own_weights)

    def sums(self) -> torch.Tensor:
        sums = self.totals.sums
        return sums.double() * triton_sums.QUANTUM.value if self.quantised else sums


def lloyd_step(
    x: torch.Tensor, centroids: torch.Tensor, weights: torch.Tensor | None, metric: str
) -> Outputs:
    """ids, sums, counts, inertia, and the tiers' counts on the device."""
    rows = matrix_rows(x)
    ids = x.new_empty(rows.num_rows, dtype=torch.int64)
    weights = None if weights is None else weights.double().contiguous()
    with _triton.launching_on(x):
        step = _Step(centroids, metric, weights is not None, quantised=False)
        step.add(rows, ids, weights)
        return ids, step.sums(), step.totals.counts, step.inertia.value, step.tiers


def lloyd_step_images(
    images: torch.Tensor,
    centroids: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
    patch_order: str,
    metric: str,
    quantised: bool,
) -> Outputs:
    """As :func:`lloyd_step`; ``quantised``: sums and costs in integers."""
    with _triton.launching_on(images):
        patches = patch_sources(images, patch_size, mean, std, per_patch_norm)
        channels = images.shape[1]
        ids = images.new_empty(patches.num_rows, dtype=torch.int64)
        ordered = in_order(centroids, channels, patch_order, patches.order)
        step = _Step(ordered, metric, weighted=False, quantised=quantised)
        for first, rows in patches:
            step.add(rows, ids[first : first + rows.num_rows], None)
        sums = in_order(step.sums(), channels, patches.order, patch_order).contiguous()
        return ids, sums, step.totals.counts, step.inertia.value, step.tiers
