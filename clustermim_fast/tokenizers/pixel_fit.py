"""The fit of :class:`PixelTokenizer`: images in memory or from a loader, never a patch matrix."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clustermim_fast.counter_rng import STREAM_KMEANS, permutation
from clustermim_fast.tokenizers.image_rows import ImageRows, PatchSettings, StreamRows
from clustermim_fast.tokenizers.image_stream import ImageStream, check_images
from clustermim_fast.tokenizers.kmeans_init import RandomState, kmeans_plus_plus, random_rows
from clustermim_fast.tokenizers.kmeans_lloyd import finish, lloyd, project
from clustermim_fast.tokenizers.kmeans_minibatch import EpochTotals, MiniBatch
from clustermim_fast.tokenizers.kmeans_report import KMeansReport, Progress, Timer, progress
from clustermim_fast.tokenizers.pixel_settings import check_settings, require_choice, require_count
from clustermim_fast.tokenizers.rows import MatrixRows, Rows

BATCH_PATCHES = 50_176  # ClusterMIM's: 256 images of 196 patches
BATCH_BYTES = 32 << 20
SAMPLE_BYTES = 32 << 20
IDS_BYTES = 16 << 20
MENDING_PASSES = 3
STARVED = 0.01  # share of the mean count; of the largest, as in scikit-learn, flat patches set it


@dataclass(frozen=True)
class FitOptions:
    """How to fit; meanings as in :meth:`PixelTokenizer.fit`."""

    num_clusters: int
    metric: str
    algorithm: str
    max_iter: int | None
    tol: float
    init: str
    batch_size: int | None
    seed: int
    verbose: bool

    def __post_init__(self) -> None:
        require_choice("metric", self.metric, ("euclidean", "cosine"))
        require_choice("algorithm", self.algorithm, ("minibatch", "lloyd"))
        require_choice("init", self.init, ("k-means++", "random"))
        for name in ("max_iter", "batch_size"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))

    @property
    def passes(self) -> int:
        return self.max_iter or (10 if self.algorithm == "minibatch" else 50)


def fit(
    images_or_loader: torch.Tensor | Iterable[Any],
    settings: PatchSettings,
    options: FitOptions,
    device: torch.device | None,
) -> tuple[torch.Tensor, KMeansReport]:
    """Centroids [K, D] float64 (values of float32) and the report."""
    check_settings(settings)
    random = np.random.RandomState(options.seed)
    data: _Images | _Loader
    if isinstance(images_or_loader, torch.Tensor):
        images = images_or_loader if device is None else images_or_loader.to(device)
        data = _Images(images, settings, options, random)
    else:
        data = _Loader(images_or_loader, settings, options, random, device)
    draw = kmeans_plus_plus if options.init == "k-means++" else random_rows
    centers = project(draw(data.sample, options.num_clusters, random), options.metric)
    title = f"pixel tokenizer K={options.num_clusters}"
    with progress(options.verbose, options.passes, title) as bar:
        if options.algorithm == "lloyd":
            tol = options.tol * data.rows.mean_variance()
            result = lloyd(data.rows, centers, max_iter=options.passes, tol=tol, progress=bar)
            centers, report = result.centers, result.report
        else:
            centers, report = _minibatch(data, centers, options, random, bar)
    if report.unused:
        warnings.warn(
            f"PixelTokenizer.fit: {report.unused} of {options.num_clusters} centroids are nearest "
            "to no patch; the images may have fewer distinct patches, or use algorithm='lloyd'",
            UserWarning,
            stacklevel=3,
        )
    return centers, report


def _minibatch(
    data: _Images | _Loader,
    centers: torch.Tensor,
    options: FitOptions,
    random: RandomState,
    bar: Any,
) -> tuple[torch.Tensor, KMeansReport]:
    report = KMeansReport("minibatch", options.metric, options.num_clusters, 0)
    timer, total = Timer(), Timer()
    state = MiniBatch(
        centers, torch.zeros(len(centers), dtype=torch.float64, device=centers.device), random
    )
    state.step(data.sample, reseed=False)  # rows from everywhere: no centroid starts unanchored
    epoch = EpochTotals.zero(state.counts)
    for number in range(options.passes):
        epoch = EpochTotals.zero(state.counts)
        for batch in data.batches(number):
            epoch.add(state.step(batch, reseed=False))
        # Judged by a whole pass, not by the last batches as in scikit-learn: in a loader that is
        # sorted by class, the centroids of classes to come would be taken for starved.
        if number + 1 < options.passes:
            lowest = STARVED * epoch.counts.mean()
            epoch.reseeded = state.reseed(data.sample, epoch.counts, lowest)
        report.iterations.append(epoch.iteration(timer()))
        report.reseeded += epoch.reseeded
        bar.advance(inertia=f"{epoch.inertia:.6g}", reseeded=epoch.reseeded or None)
    report.stop = f"max_iter = {options.passes}"
    centers = state.centers.float().double()
    if isinstance(data, _Images):
        finish(report, data.rows.lloyd_step(centers))
        if report.unused:  # Lloyd's rule gives such a centroid the patch farthest from its own
            mend = lloyd(data.rows, centers, max_iter=MENDING_PASSES, tol=0.0, progress=Progress())
            centers = mend.centers
            report.reseeded += mend.report.reseeded
            report.iterations += mend.report.iterations
            finish(report, mend.step)
    else:  # another pass over a loader may cost more than the fit: the last one has to do
        report.inertia, report.counts, report.exact = epoch.inertia, epoch.counts.tolist(), False
        report.unused = int((epoch.counts == 0).sum())
    report.num_rows, report.seconds = data.rows.num_rows, total()
    return centers, report


class _Images:
    """Images in memory: batches in a shuffled order, a sample of single patches."""

    def __init__(
        self,
        images: torch.Tensor,
        settings: PatchSettings,
        options: FitOptions,
        random: RandomState,
    ) -> None:
        check_images(images, settings, "images")
        self._settings, self._options = settings, options
        self.rows = ImageRows(images, settings, options.metric)
        id_bytes = 2 if options.num_clusters <= 2**15 else 4
        self.rows.keep_ids = self.rows.num_rows * id_bytes <= IDS_BYTES
        require_enough(self.rows.num_rows, options.num_clusters)
        size = min(sample_size(options.num_clusters, self.rows.dim), self.rows.num_rows)
        # Spread over the whole set: one patch at a random place of each of `size` equal parts.
        edges = np.linspace(0, self.rows.num_rows, size + 1).astype(np.int64)
        width = edges[1:] - edges[:-1]
        index = edges[:-1] + (random.random_sample(size) * width).astype(np.int64)
        self.sample = MatrixRows(self.rows.take(index), metric=options.metric)

    def batches(self, epoch: int) -> Iterator[Rows]:
        """Mini-batches of a new shuffled order of the images."""
        images = self.rows.images
        size = self._options.batch_size or self._default_batch()
        order = permutation(self._options.seed, epoch, len(images), STREAM_KMEANS)
        for start in range(0, len(order), size):
            index = torch.from_numpy(order[start : start + size]).to(images.device)
            yield ImageRows(images[index], self._settings, self._options.metric)

    def _default_batch(self) -> int:
        image_bytes = self.rows.images[:1].numel() * self.rows.images.element_size()
        by_patches = BATCH_PATCHES // self.rows.patches_per_image
        return max(1, min(by_patches, BATCH_BYTES // image_bytes))


class _Loader:
    """Batches of a loader in its order; the sample comes from one whole pass."""

    def __init__(
        self,
        loader: Iterable[Any],
        settings: PatchSettings,
        options: FitOptions,
        random: RandomState,
        device: torch.device | None,
    ) -> None:
        stream = ImageStream(loader, settings, options.metric, device)
        stream.warn_if_sequential()
        self._stream = stream
        with progress(options.verbose, None, "pixel tokenizer, sample of patches") as bar:
            kept, num_rows = stream.sample(
                lambda dim: sample_size(options.num_clusters, dim), random, bar
            )
        require_enough(num_rows, options.num_clusters)
        self.sample = MatrixRows(kept, metric=options.metric)
        self.rows = StreamRows(stream.passes, self.sample)
        self.rows.num_rows = num_rows

    def batches(self, epoch: int) -> Iterator[Rows]:
        """The loader's own batches."""
        return iter(self._stream.passes())


def sample_size(num_clusters: int, dim: int) -> int:
    """Patches for the first centroids: 64 a cluster where they fit into 32 MiB, never under 3."""
    within = SAMPLE_BYTES // (4 * dim)
    return max(3 * num_clusters, min(max(64 * num_clusters, 8192), within))


def require_enough(num_patches: int, num_clusters: int) -> None:
    """Refuse fewer patches than clusters."""
    if num_patches < num_clusters:
        raise ValueError(
            f"PixelTokenizer.fit: the images have {num_patches} patches, fewer than "
            f"num_clusters = {num_clusters}; use more images or fewer clusters"
        )
