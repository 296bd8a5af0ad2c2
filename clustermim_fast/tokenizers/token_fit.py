"""The k-means fit of every tokenizer: images in memory or from a loader, never all their rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers.kmeans_init import RandomState, kmeans_plus_plus, random_rows
from clustermim_fast.tokenizers.kmeans_lloyd import finish, lloyd, project
from clustermim_fast.tokenizers.kmeans_minibatch import EpochTotals, MiniBatch
from clustermim_fast.tokenizers.kmeans_report import KMeansReport, Progress, Timer, progress
from clustermim_fast.tokenizers.pixel_data import FitOptions, Images, Loader, sample_size
from clustermim_fast.tokenizers.rows import MatrixRows, Rows

MENDING_PASSES = 3


def fit(
    open_data: Callable[[FitOptions], Images | Loader],
    settings: object,
    options: FitOptions,
    kind: str,
) -> tuple[torch.Tensor, KMeansReport]:
    """Centroids [K, D] float64 (values of float32) and the report.

    ``settings``, checked ones, must be equal on all ranks; ``kind`` stands on progress bars.
    """
    total, group = Timer(), everyone()
    group.require_equal("tokenizer fit: settings", (settings, replace(options, verbose=False)))
    options = replace(options, verbose=options.verbose and group.rank == 0)
    random = np.random.RandomState(options.seed)
    data = open_data(options)
    title = f"{kind} tokenizer K={options.num_clusters}"
    if options.algorithm == "clustermim":
        with progress(options.verbose, options.passes, title) as bar:
            centers, report = _minibatch(data, None, options, random, bar)
    else:
        sample = data.sample(random)
        centers = _first_centers(sample, options, random)
        with progress(options.verbose, options.passes, title) as bar:
            if options.algorithm == "lloyd":
                # The sample's: a few per cent off at most, and the same for any number of ranks.
                tol = options.tol * sample.mean_variance()
                result = lloyd(data.rows, centers, max_iter=options.passes, tol=tol, progress=bar)
                centers, report = result.centers, result.report
            else:
                start = _start(centers, options, random)
                # Rows from everywhere: no centroid starts unanchored.
                start.step(sample, reseed=False)
                centers, report = _minibatch(data, start, options, random, bar)
    report.seconds = total()
    if report.unused:
        warnings.warn(
            f"tokenizer fit: {report.unused} of {options.num_clusters} centroids are nearest "
            "to no patch; the images may have fewer distinct patches, or use algorithm='lloyd'",
            UserWarning,
            stacklevel=3,
        )
    return centers, report


def _first_centers(rows: MatrixRows, options: FitOptions, random: RandomState) -> torch.Tensor:
    """[K, D], drawn from ``rows`` that are the same on every rank."""
    draw = kmeans_plus_plus if options.init == "k-means++" else random_rows
    centers = project(draw(rows, options.num_clusters, random), options.metric)
    return everyone().broadcast(centers)


def _from_first_batch(batch: Rows, options: FitOptions, random: RandomState) -> MiniBatch:
    """As MiniBatchKMeans.partial_fit: k-means++ on the first batch, or on some rows of it."""
    if batch.num_rows < options.num_clusters:
        raise ValueError(
            f"tokenizer fit: the first batch has {batch.num_rows} patches, fewer than "
            f"num_clusters = {options.num_clusters}, and algorithm='clustermim' draws its first "
            "centroids from it; use larger batches or algorithm='minibatch'"
        )
    size = sample_size(options.num_clusters, batch.dim)
    index = np.arange(batch.num_rows)
    if size < batch.num_rows:
        index = random.randint(0, batch.num_rows, size)
    centers = _first_centers(batch.copy(index), options, random)
    return _start(centers, options, random)


def _start(centers: torch.Tensor, options: FitOptions, random: RandomState) -> MiniBatch:
    none = torch.zeros_like(centers[:, 0])
    return MiniBatch(centers, none, random, options.reassignment_ratio)


def _minibatch(
    data: Images | Loader,
    start: MiniBatch | None,
    options: FitOptions,
    random: RandomState,
    bar: Progress,
) -> tuple[torch.Tensor, KMeansReport]:
    """``start`` None: ClusterMIM's protocol, centroids from the first batch and scikit-learn's
    re-assignment at every batch; else from ``start``, re-seeded after whole passes.
    """
    report = KMeansReport(options.algorithm, options.metric, options.num_clusters, 0)
    timer = Timer()
    state, published = start, start is None
    epoch: EpochTotals | None = None
    for number in range(options.passes):
        epoch = None
        for batch in data.batches(number):
            if state is None:
                state = _from_first_batch(batch, options, random)
            if epoch is None:
                epoch = EpochTotals.zero(state.counts)
            epoch.add(state.step(batch, reseed=published))
        assert state is not None  # data without a batch were refused
        assert epoch is not None
        # Judged by a whole pass, not by the last batches as in scikit-learn: in a loader that is
        # sorted by class, the centroids of classes to come would be taken for starved.
        if not published and number + 1 < options.passes:
            # Of the mean: the largest count, as in scikit-learn, is that of flat patches.
            lowest = options.reassignment_ratio * epoch.counts.mean()
            epoch.reseeded = state.reseed(data.kept_sample, epoch.counts, lowest)
        report.iterations.append(epoch.iteration(timer()))
        report.reseeded += epoch.reseeded
        bar.advance(inertia=f"{epoch.inertia:.6g}", reseeded=epoch.reseeded or None)
    assert state is not None
    assert epoch is not None
    report.stop = f"max_iter = {options.passes}"
    centers = state.centers.float().double()
    if isinstance(data, Images):
        finish(report, data.rows.lloyd_step(centers))
        if report.unused and not published:
            # Lloyd's rule gives such a centroid the patch farthest from its own.
            mend = lloyd(data.rows, centers, max_iter=MENDING_PASSES, tol=0.0, progress=Progress())
            centers = mend.centers
            report.reseeded += mend.report.reseeded
            report.iterations += mend.report.iterations
            finish(report, mend.step)
    else:  # another pass over a loader may cost more than the fit: the last one has to do
        report.inertia, report.counts, report.exact = epoch.inertia, epoch.counts.tolist(), False
        report.unused = int((epoch.counts == 0).sum())
    report.num_rows = int(epoch.counts.sum())
    return centers, report
