"""What frozen features are like where there are no labels: their effective rank, and neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["nearest_neighbours", "rankme"]


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of features [N, D]: exp of the entropy of their singular values' shares.

    RankMe (Garrido et al., ICML 2023, arXiv 2210.02885): p_k = s_k / sum(s) + eps over the
    min(N, D) singular values of the uncentred matrix, in float64. It lies between 1 and min(N, D);
    compare encoders of equal width on the same images. Raises ValueError for features that are
    not a matrix, are all zero or hold NaN.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features: expected [N, D], not empty, got {tuple(features.shape)}")
    values = torch.linalg.svdvals(features.double())
    if not bool(values.isfinite().all()) or float(values.sum()) == 0:
        raise ValueError("features: expected finite numbers that are not all zero")
    share = values / values.sum() + eps
    return float(torch.exp(-(share * share.log()).sum()))


def nearest_neighbours(features: Tensor, queries: Tensor, count: int) -> Tensor:
    """The ``count`` rows most like each query row by cosine, best first, never the row itself.

    features [N, D], queries int64 [Q] (rows of it) -> int64 [Q, count]. Equal ones: the first.
    """
    if not 1 <= count < len(features):
        raise ValueError(
            f"count: expected 1 to {len(features) - 1} (one less than the images), got {count}"
        )
    rows = F.normalize(features.double(), dim=1)
    similarity = rows[queries] @ rows.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    return similarity.argsort(dim=1, descending=True, stable=True)[:, :count]
