"""The fit of :class:`KMeans`: settings, starts, and the choice of the best run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clustermim_fast.tokenizers.kmeans_init import (
    RandomState,
    kmeans_plus_plus,
    random_rows,
    row_weights,
)
from clustermim_fast.tokenizers.kmeans_lloyd import finish, lloyd, project
from clustermim_fast.tokenizers.kmeans_minibatch import EarlyStop, EpochTotals, MiniBatch
from clustermim_fast.tokenizers.kmeans_report import KMeansReport, Progress, Timer, progress
from clustermim_fast.tokenizers.rows import MatrixRows, Rows
from clustermim_fast.tokenizers.totals import Step


@dataclass(frozen=True)
class Settings:
    """The parameters of a fit; meanings as in :class:`KMeans`."""

    num_clusters: int
    init: Any
    n_init: Any
    max_iter: int
    tol: float
    algorithm: str
    batch_size: int
    metric: str
    verbose: bool
    max_no_improvement: int | None
    reassignment_ratio: float

    def check(self) -> Settings:
        """Raise ValueError for a value that no fit can use."""
        _require_count("n_clusters", self.num_clusters)
        _require_count("max_iter", self.max_iter)
        _require_count("batch_size", self.batch_size)
        if self.n_init != "auto":
            _require_count("n_init", self.n_init)
        if not (isinstance(self.tol, (int, float)) and self.tol >= 0):
            raise ValueError(f"KMeans: tol must be a number >= 0, got {self.tol!r}")
        _require_choice("algorithm", self.algorithm, ("lloyd", "minibatch"))
        _require_choice("metric", self.metric, ("euclidean", "cosine"))
        if isinstance(self.init, str):
            _require_choice("init", self.init, ("k-means++", "random"))
        return self

    @property
    def num_starts(self) -> int:
        if self.n_init != "auto":
            return 1 if self.init_is_array else int(self.n_init)
        if self.init_is_array or (isinstance(self.init, str) and self.init == "k-means++"):
            return 1
        return 3 if self.algorithm == "minibatch" else 10

    @property
    def init_is_array(self) -> bool:
        return not isinstance(self.init, str) and not callable(self.init)


def _require_count(name: str, value: Any) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"KMeans: {name} must be an int >= 1, got {value!r}")


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"KMeans: {name} must be one of {expected}, got {value!r}")


@dataclass(frozen=True)
class FitResult:
    """Final centroids [K, D] float64, their last pass, and what partial_fit goes on from."""

    centers: torch.Tensor
    step: Step
    report: KMeansReport
    num_iterations: int
    minibatch: MiniBatch


def fit(rows: Rows, settings: Settings, random: RandomState) -> FitResult:
    """Lloyd: the best of ``num_starts`` runs; mini-batch: one run from the best of that many."""
    total = Timer()
    tol = settings.tol * rows.mean_variance()  # this pass also refuses NaN
    lloyds = settings.algorithm == "lloyd"
    runs = settings.num_starts if lloyds else 1
    with progress(
        settings.verbose and rows.group.rank == 0,
        settings.max_iter * runs,
        f"k-means K={settings.num_clusters}",
    ) as bar:
        one = _fit_lloyd if lloyds else _fit_minibatch
        results = (one(rows, settings, tol, random, bar) for _ in range(runs))
        best = min(results, key=lambda run: run.step.inertia)
    best.report.seconds = total()
    return best


def initial_centers(rows: Rows, settings: Settings, random: RandomState) -> torch.Tensor:
    """[K, D] float64 on the rows' device."""
    k = settings.num_clusters
    if isinstance(settings.init, str):
        draw = kmeans_plus_plus if settings.init == "k-means++" else random_rows
        return rows.group.broadcast(draw(rows, k, random))
    return rows.group.broadcast(rows.group.agree(lambda: _given_centers(rows, settings, random)))


def _given_centers(rows: Rows, settings: Settings, random: RandomState) -> torch.Tensor:
    given, k = settings.init, settings.num_clusters
    if callable(given):
        assert isinstance(rows.local, MatrixRows)
        x = rows.local.x
        data = x if x.device.type != "cpu" else x.detach().numpy()
        given = given(data, n_clusters=k, random_state=random)
    if not isinstance(given, torch.Tensor):
        given = torch.from_numpy(np.array(given, dtype=np.float64))
    centers: torch.Tensor = given.detach().to(rows.device, torch.float64)
    if centers.shape != (k, rows.dim):
        expected = f"[n_clusters, n_features] = {[k, rows.dim]}"
        raise ValueError(f"KMeans: init must have shape {expected}, got {list(centers.shape)}")
    if not bool(torch.isfinite(centers).all()):
        raise ValueError("KMeans: init contains NaN or infinity")
    return centers


def start(rows: Rows, settings: Settings, random: RandomState) -> MiniBatch:
    """Mini-batch state whose centroids are drawn from ``rows``."""
    centers = project(initial_centers(rows, settings, random), settings.metric)
    counts = torch.zeros(settings.num_clusters, dtype=torch.float64, device=rows.device)
    return MiniBatch(centers, counts, random, settings.reassignment_ratio)


def _fit_lloyd(
    rows: Rows, settings: Settings, tol: float, random: RandomState, bar: Progress
) -> FitResult:
    centers = initial_centers(rows, settings, random)
    fitted = lloyd(rows, centers, max_iter=settings.max_iter, tol=tol, progress=bar)
    later = MiniBatch(
        fitted.centers, fitted.step.counts.clone(), random, settings.reassignment_ratio
    )
    iterations = len(fitted.report.iterations)
    return FitResult(fitted.centers, fitted.step, fitted.report, iterations, later)


def _fit_minibatch(
    rows: Rows, settings: Settings, tol: float, random: RandomState, bar: Progress
) -> FitResult:
    batch = min(settings.batch_size, rows.num_rows)
    report = KMeansReport("minibatch", rows.metric, settings.num_clusters, rows.num_rows)
    timer = Timer()
    state = _best_start(rows, settings, batch, random)
    stop = EarlyStop(rows.num_rows, tol, settings.max_no_improvement)
    num_steps = max(1, settings.max_iter * rows.num_rows // batch)
    per_epoch = math.ceil(rows.num_rows / batch)
    epoch = EpochTotals.zero(state.counts)
    report.stop = f"max_iter = {settings.max_iter}"
    # Weights are the probabilities of being drawn, so the drawn rows count 1 each.
    shares = np.cumsum(row_weights(rows) / row_weights(rows).sum())
    shares /= shares[-1]
    plain = rows.unweighted()
    step = 0
    for step in range(1, num_steps + 1):
        index = np.searchsorted(shares, random.random_sample(batch), side="right")
        result = state.step(plain.subset(index))
        epoch.add(result)
        reason = stop.reason(result, batch)
        if reason or step % per_epoch == 0 or step == num_steps:
            report.iterations.append(epoch.iteration(timer()))
            report.reseeded += epoch.reseeded
            bar.advance(inertia=f"{epoch.inertia:.6g}", reseeded=epoch.reseeded or None)
            epoch = EpochTotals.zero(state.counts)
        if reason:
            report.converged, report.stop = True, reason
            break
    state.centers = state.centers.to(rows.dtype).double()
    last = rows.lloyd_step(state.centers)
    finish(report, last)
    return FitResult(state.centers, last, report, math.ceil(step * batch / rows.num_rows), state)


def _best_start(rows: Rows, settings: Settings, batch: int, random: RandomState) -> MiniBatch:
    """As scikit-learn: each start sees three batches of rows (at least 3 K); others judge it."""
    size = 3 * batch if 3 * batch >= settings.num_clusters else 3 * settings.num_clusters
    size = min(size, rows.num_rows)
    judge = rows.copy(random.randint(0, rows.num_rows, size))
    best, best_inertia = None, math.inf
    for _ in range(settings.num_starts):
        whole = settings.init_is_array or size == rows.num_rows
        seen = rows if whole else rows.copy(random.randint(0, rows.num_rows, size))
        state = start(seen, settings, random)
        inertia = judge.lloyd_step(state.centers).inertia
        if best is None or inertia < best_inertia:
            best, best_inertia = state, inertia
    assert best is not None
    return best
