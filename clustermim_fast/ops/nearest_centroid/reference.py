"""The definition of right: float64 where its own rounding bound decides, fractions elsewhere."""

from __future__ import annotations

from fractions import Fraction

import torch

UNIT_ROUNDOFF = 2.0**-53
_ROWS_AT_ONCE = 2**24  # float64 values of the [rows, K, D] differences held at a time


def nearest_centroid_reference(
    x_ND: torch.Tensor, centroids_KD: torch.Tensor, metric: str
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int, int, int]]:
    """Ids int64 [N], distance (or similarity) float64 [N], and the counts of ``_stats.note``."""
    x, c = x_ND.double(), centroids_KD.double()
    ids = torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
    distance = torch.full((x.shape[0],), float("nan"), dtype=torch.float64, device=x.device)
    finite_ids = c.isfinite().all(1).nonzero()[:, 0]
    rows = x.isfinite().all(1).nonzero()[:, 0]
    invalid = len(x) - len(rows)
    exact = 0
    if len(finite_ids) == 0 or len(rows) == 0:
        return ids, distance, (0, 0, 0, len(x))
    c = c[finite_ids]
    step = max(1, _ROWS_AT_ONCE // max(1, c.numel()))
    for chunk in rows.split(step):
        score, bound = _score_and_bound(x[chunk], c, metric)  # smaller is better
        best_upper = (score + bound).amin(1, keepdim=True)
        open_ = ~(score - bound > best_upper)  # NaN stays open
        winner = open_.int().argmax(1)
        for i in (open_.sum(1) > 1).nonzero()[:, 0].tolist():
            exact += 1
            candidates = open_[i].nonzero()[:, 0].tolist()
            winner[i] = min(candidates, key=lambda k: (_exact_score(x[chunk[i]], c[k], metric), k))
        ids[chunk] = finite_ids[winner]
        distance[chunk] = _value(x[chunk], c[winner], metric)
    return ids, distance, (0, len(rows) - exact, exact, invalid)


def _score_and_bound(
    x: torch.Tensor, c: torch.Tensor, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 scores [n, K] and a bound on their rounding error (gamma_n, with slack)."""
    gamma = (2 * x.shape[1] + 16) * UNIT_ROUNDOFF
    underflow = (x.shape[1] + 1) * 2.0**-1022
    if metric == "euclidean":
        score = (x[:, None] - c[None]).square().sum(2)
        return score, gamma * score + underflow
    products = x[:, None] * c[None]
    score, bound = -products.sum(2), gamma * products.abs().sum(2) + underflow
    if metric == "dot":
        return score, bound
    norm = c.square().sum(1).sqrt()
    zero = (c == 0).all(1)
    norm[zero] = 1.0
    bound = bound / norm + gamma * (score / norm).abs() + underflow
    # Squares that under- or overflow make the norm useless: such centroids stay open for fractions.
    bound[:, ~zero & ~((norm > 1e-140) & (norm < 1e140))] = float("inf")
    bound[:, zero] = 0.0
    return score / norm, bound


def _exact_score(x: torch.Tensor, c: torch.Tensor, metric: str) -> Fraction:
    """A rational number that orders centroids as the metric does; smaller is better."""
    xs, cs = [Fraction(v) for v in x.tolist()], [Fraction(v) for v in c.tolist()]
    if metric == "euclidean":
        return sum(((a - b) ** 2 for a, b in zip(xs, cs, strict=True)), Fraction(0))
    dot = sum((a * b for a, b in zip(xs, cs, strict=True)), Fraction(0))
    if metric == "dot":
        return -dot
    norm2 = sum((b * b for b in cs), Fraction(0))
    signed_square = dot * abs(dot)
    return -signed_square / norm2 if norm2 else Fraction(0)


def _value(x: torch.Tensor, c: torch.Tensor, metric: str) -> torch.Tensor:
    """The squared distance or similarity that is returned, from row and winner directly."""
    if metric == "euclidean":
        return (x - c).square().sum(1)
    if metric == "dot" or x.shape[1] == 0:
        return (x * c).sum(1)
    x = torch.nn.functional.normalize(
        x / x.abs().amax(1, keepdim=True).clamp_min(2.0**-1022), dim=1
    )
    c = torch.nn.functional.normalize(
        c / c.abs().amax(1, keepdim=True).clamp_min(2.0**-1022), dim=1
    )
    return (x * c).sum(1)
