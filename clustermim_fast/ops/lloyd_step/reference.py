"""Assignment and accumulation of one Lloyd iteration in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clustermim_fast.ops.nearest_centroid.reference import nearest_centroid_reference

# Rows of uint8 images are summed as integer multiples of this, so that sums do not depend on their
# order. csrc/lloyd_step has the same constants and the same rule.
IMAGE_QUANTUM = 2.0**-28
LARGEST_QUANTISED = 64.0


def image_quantum(
    images: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
) -> float | None:
    """The quantum of the images' sums; None where they are plain float64 sums."""
    if images.dtype != torch.uint8:
        return None
    area = patch_size**2
    if per_patch_norm:
        largest = float(area * images.shape[1]) ** 0.5
    else:
        # In numpy: nothing waits for a GPU, whatever torch's default device is.
        means = np.asarray(mean or [0.0], np.float32)
        stds = np.asarray(std or [1.0], np.float32)
        ends = np.asarray([[0.0], [1.0]], np.float32)
        largest = float(np.abs((ends - means) / stds).max())
    rows = images.shape[0] * images.shape[2] * images.shape[3] // area
    fits = largest <= LARGEST_QUANTISED and largest * rows < 2.0**63 * IMAGE_QUANTUM
    return IMAGE_QUANTUM if fits else None


def lloyd_step_reference(
    x_ND: torch.Tensor,
    centroids_KD: torch.Tensor,
    weights: torch.Tensor | None,
    metric: str,
    quantum: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int, int, int]]:
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
