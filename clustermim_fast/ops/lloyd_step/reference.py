"""Assignment and accumulation of one Lloyd iteration in plain PyTorch."""

from __future__ import annotations

import torch

from clustermim_fast.ops.nearest_centroid.reference import nearest_centroid_reference

# Image rows are summed as integer multiples of this, so that sums do not depend on their order.
IMAGE_QUANTUM = 2.0**-28


def lloyd_step_reference(
    x_ND: torch.Tensor,
    centroids_KD: torch.Tensor,
    weights: torch.Tensor | None,
    metric: str,
    quantum: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int, int]]:
    """ids [N], sums [K, D] float64, counts [K], inertia [], tier counts; see ``lloyd_step``.

    With ``quantum`` values and costs are rounded to multiples of it before they are summed.
    """
    ids, value, tiers = nearest_centroid_reference(x_ND, centroids_KD, metric)
    kept = ids >= 0
    rows, winners = x_ND[kept].double(), ids[kept]
    cost = {"euclidean": value, "cosine": 1.0 - value, "dot": -value}[metric][kept]
    if quantum is not None:
        rows, cost = (rows / quantum).round() * quantum, (cost / quantum).round() * quantum
    sums = torch.zeros(centroids_KD.shape, dtype=torch.float64, device=x_ND.device)
    if weights is None:
        counts = torch.bincount(winners, minlength=len(centroids_KD))
    else:
        w = weights[kept].double()
        rows, cost = rows * w[:, None], cost * w
        counts = torch.zeros(len(centroids_KD), dtype=torch.float64, device=x_ND.device)
        counts.index_add_(0, winners, w)
    sums.index_add_(0, winners, rows)
    return ids, sums, counts, cost.sum(), tiers
