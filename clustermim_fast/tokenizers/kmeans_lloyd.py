"""Lloyd's iterations over any rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clustermim_fast import ops
from clustermim_fast.tokenizers.kmeans_report import Iteration, KMeansReport, Progress, Timer
from clustermim_fast.tokenizers.rows import Rows, unit_rows
from clustermim_fast.tokenizers.serial import Values, rounded, same, serially
from clustermim_fast.tokenizers.totals import Step


@dataclass(frozen=True)
class Fit:
    """Centroids [K, D] float64 (values of the rows' dtype), and the last pass with them."""

    centers: torch.Tensor
    step: Step
    report: KMeansReport


def lloyd(
    rows: Rows, centers: torch.Tensor, *, max_iter: int, tol: float, progress: Progress
) -> Fit:
    """Assign, average, repeat until no row moves, the shift is at most ``tol``, or ``max_iter``.

    Centroids are float64 throughout; rows are compared with their rounding to ``rows.dtype``. The
    last pass uses the returned centroids, so ids, counts and inertia belong to them.

    Args:
        centers: [K, D], the start.
        tol: on the squared shift of all centroids together (absolute).
    """
    report = KMeansReport("lloyd", rows.metric, len(centers), rows.num_rows)
    timer = Timer()
    centers = project(centers.double(), rows.metric)
    ids: torch.Tensor | None = None
    step: Step | None = None
    for _ in range(max_iter):
        step = rows.lloyd_step(centers)
        moved = count_moved(rows, ids, step.ids)
        empty = int((step.counts == 0).sum())
        updated, reseeded = update(rows, centers, step)
        shift = squared_distance(updated, centers)
        report.reseeded += reseeded
        report.iterations.append(
            Iteration(step.inertia, moved, empty, imbalance(step.counts), shift, timer())
        )
        progress.advance(inertia=f"{step.inertia:.6g}", moved=moved, empty=empty or None)
        settled = same(rounded(updated, rows.dtype), rounded(centers, rows.dtype))
        centers, ids = updated, step.ids
        # With no row moved and none re-seeded the centroids are the same bits: shift is 0.
        if settled or shift <= tol:
            report.converged = True
            report.stop = "no row moved" if settled else "centroids moved less than tol"
            break
        step = None
    else:
        report.stop = f"max_iter = {max_iter}"
    if step is None or not settled:
        step = rows.lloyd_step(centers)
    finish(report, step)
    report.num_rows = rows.num_rows
    return Fit(rounded(rounded(centers, rows.dtype), torch.float64), step, report)


def finish(report: KMeansReport, step: Step) -> None:
    """Note the last pass."""
    report.inertia = step.inertia
    report.counts = step.counts.tolist()
    report.unused = int((step.counts == 0).sum())


def update(rows: Rows, centers: torch.Tensor, step: Step) -> tuple[torch.Tensor, int]:
    """New centroids [K, D], and how many empty clusters were re-seeded.

    An empty cluster takes the row farthest from its own centroid, and this row leaves its cluster
    (scikit-learn's rule; here rows of equal value are taken once, and a cluster's last row stays).
    Where no row is left to take the centroid stays.
    """
    sums, counts = step.sums, step.counts
    empty = torch.nonzero(counts == 0).flatten().tolist()
    reseeded = 0
    if empty:
        sums, counts = sums.clone(), counts.clone()
        points, weights = rows.farthest(centers, 2 * len(empty) + 16)
        owners = _owners(points, centers, rows)
        for point, weight, owner in zip(points.double(), weights.tolist(), owners, strict=True):
            if reseeded == len(empty):
                break
            if counts[owner] <= weight:
                continue
            target = empty[reseeded]
            sums[owner] -= point * weight
            counts[owner] -= weight
            sums[target] = point * weight
            counts[target] = weight
            reseeded += 1
    means = serially(_means, sums, counts, centers)
    return project(means, rows.metric, centers), reseeded


def _means(sums: Values, counts: Values, fallback: Values) -> Values:
    unhit = counts == 0
    means = sums / (counts + unhit)[:, None]
    means[unhit] = fallback[unhit]
    return means


def _owners(points: torch.Tensor, centers: torch.Tensor, rows: Rows) -> list[int]:
    if not len(points):
        return []
    ids: list[int] = ops.nearest_centroid(
        points, rounded(centers, rows.dtype), metric=rows.metric
    ).tolist()
    return ids


def project(
    centers: torch.Tensor, metric: str, fallback: torch.Tensor | None = None
) -> torch.Tensor:
    """Unit centroids for "cosine" (a zero one becomes ``fallback``'s); others as they are."""
    if metric != "cosine":
        return centers
    units = unit_rows(centers)
    if fallback is not None:
        units = torch.where((units == 0).all(dim=1, keepdim=True), fallback, units)
    return units


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sum of the squared differences of two matrices."""
    return float(serially(_squared_distance, a, b))


def _squared_distance(a: Values, b: Values) -> Values:
    difference = a - b
    difference *= difference
    return difference.sum()


def count_moved(rows: Rows, before: torch.Tensor | None, after: torch.Tensor | None) -> int | None:
    """Rows whose id changed (all of them the first time); None where ids are not kept."""
    if after is None:
        return None
    moved = after.numel()
    if before is not None:
        moved = int(serially(lambda a, b: (a != b).sum(), before, after))
    return int(rows.group.each(np.array([moved])).sum())


def imbalance(counts: torch.Tensor) -> float:
    """K * sum(n^2) / (sum n)^2, 1 for clusters of equal size."""
    total = float(counts.sum())
    return len(counts) * float(counts.double().square().sum()) / total**2 if total else float("nan")
