"""What a pixel tokenizer is fitted to: images in memory or a loader, each rank with its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clustermim_fast.counter_rng import STREAM_KMEANS, permutation
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers.image_rows import ImageRows, PatchRows, PatchSettings, StreamRows
from clustermim_fast.tokenizers.image_stream import ImageStream, check_images
from clustermim_fast.tokenizers.kmeans_init import RandomState
from clustermim_fast.tokenizers.kmeans_report import progress
from clustermim_fast.tokenizers.pixel_settings import require_choice, require_count
from clustermim_fast.tokenizers.rows import MatrixRows, Rows
from clustermim_fast.tokenizers.sharded_rows import ShardedRows, side_by_side, spread

BATCH_PATCHES = 50_176  # ClusterMIM's: 256 images of 196 patches
SAMPLE_BYTES = 32 << 20
IDS_BYTES = 16 << 20
PASSES = {"minibatch": 10, "lloyd": 50, "clustermim": 100}


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
    reassignment_ratio: float

    def __post_init__(self) -> None:
        require_choice("metric", self.metric, ("euclidean", "cosine"))
        require_choice("algorithm", self.algorithm, tuple(PASSES))
        require_choice("init", self.init, ("k-means++", "random"))
        for name in ("max_iter", "batch_size"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        if not 0 <= self.reassignment_ratio < 1:
            raise ValueError(
                f"tokenizer: reassignment_ratio must be in [0, 1), got {self.reassignment_ratio}"
            )

    @property
    def passes(self) -> int:
        return self.max_iter or PASSES[self.algorithm]


class Images:
    """Images in memory: batches in a shuffled order, a sample of single patches."""

    def __init__(self, images: torch.Tensor, settings: PatchSettings, options: FitOptions) -> None:
        self._group = everyone()
        self._group.agree(lambda: check_images(images, settings, "images"))
        kind = (images.dtype, tuple(images.shape[1:]))
        self._group.require_equal("tokenizer fit: dtype and shape of the images", kind)
        self._local = ImageRows(images, settings, options.metric)
        self._settings, self._options = settings, options
        sizes = self._group.each(np.array([len(images)]))[:, 0]
        self._first = int(sizes[: self._group.rank].sum())
        self._num_images = int(sizes.sum())
        id_bytes = (2 if options.num_clusters <= 2**15 else 4) * self._local.patches_per_image
        self._local.keep_ids = int(sizes.max()) * id_bytes <= IDS_BYTES
        self.rows = spread(self._local, "tokenizer fit: images")
        require_enough(self.rows.num_rows, options.num_clusters)

    def sample(self, random: RandomState) -> MatrixRows:
        """One patch at a random place of each of equal parts of the whole set; kept."""
        count = self.rows.num_rows
        size = min(sample_size(self._options.num_clusters, self.rows.dim), count)
        edges = np.linspace(0, count, size + 1).astype(np.int64)
        width = edges[1:] - edges[:-1]
        index = edges[:-1] + (random.random_sample(size) * width).astype(np.int64)
        self.kept_sample = self.rows.copy(index)
        return self.kept_sample

    def batches(self, epoch: int) -> Iterator[Rows]:
        """Mini-batches of a new shuffled order of the images of all ranks."""
        images, length = self._local.images, self._local.patches_per_image
        size = self._options.batch_size or max(1, BATCH_PATCHES // length)
        order = permutation(self._options.seed, epoch, self._num_images, STREAM_KMEANS)
        for start in range(0, len(order), size):
            places = order[start : start + size] - self._first
            here = np.flatnonzero((places >= 0) & (places < len(images)))
            index = torch.from_numpy(places[here]).to(images.device)
            batch = ImageRows(images, self._settings, self._options.metric, chosen=index)
            if self._group.count == 1:
                yield batch
            else:
                numbers = (here[:, None] * length + np.arange(length)).flatten()
                yield ShardedRows(batch, self._group, numbers, len(places) * length)


class Loader:
    """Batches of a loader in its order; the sample comes from one whole pass."""

    rows: StreamRows
    kept_sample: MatrixRows

    def __init__(
        self,
        loader: Iterable[Any],
        open_rows: Callable[[torch.Tensor, str], PatchRows],
        options: FitOptions,
        device: torch.device | None,
    ) -> None:
        self._stream = everyone().agree(lambda: ImageStream(loader, open_rows, device))
        if options.algorithm != "lloyd":  # whose passes do not depend on the order
            self._stream.warn_if_sequential()
        self._options = options

    def sample(self, random: RandomState) -> MatrixRows:
        """Kept; ``random`` is not drawn from: see :meth:`ImageStream.sample`."""
        options, group = self._options, everyone()
        with progress(options.verbose, None, "tokenizer, sample of patches") as bar:
            found = self._stream.sample(
                lambda dim: sample_size(options.num_clusters, dim), options.seed, group, bar
            )
        require_enough(found.num_rows, options.num_clusters)
        self.kept_sample = MatrixRows(found.rows, metric=options.metric)
        self.rows = StreamRows(self._stream.passes, self.kept_sample, found.exact, group)
        return self.kept_sample

    def batches(self, epoch: int) -> Iterator[Rows]:
        """The loaders' own batches, of all ranks side by side."""
        passes = self._stream.passes()
        return side_by_side(passes, self._stream.no_images, "tokenizer fit: images")


def open_data(
    images_or_loader: torch.Tensor | Iterable[Any],
    settings: PatchSettings,
    options: FitOptions,
    device: torch.device | None,
) -> Images | Loader:
    """Patches of pixels."""
    if isinstance(images_or_loader, torch.Tensor):
        images = images_or_loader if device is None else images_or_loader.to(device)
        return Images(images, settings, options)

    def open_rows(images: torch.Tensor, where: str) -> ImageRows:
        return ImageRows(check_images(images, settings, where), settings, options.metric)

    return Loader(images_or_loader, open_rows, options, device)


def sample_size(num_clusters: int, dim: int) -> int:
    """Patches for the first centroids: 64 a cluster where they fit into 32 MiB, never under 3."""
    within = SAMPLE_BYTES // (4 * dim)
    return max(3 * num_clusters, min(max(64 * num_clusters, 8192), within))


def require_enough(num_patches: int, num_clusters: int) -> None:
    """Refuse fewer patches than clusters."""
    if num_patches < num_clusters:
        raise ValueError(
            f"tokenizer fit: the images have {num_patches} patches, fewer than "
            f"num_clusters = {num_clusters}; use more images or fewer clusters"
        )
