"""What a feature tokenizer is fitted to: a stream of images through its network, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clustermim_fast import ops
from clustermim_fast.counter_rng import STREAM_KMEANS, permutation
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers.image_rows import PatchRows, PatchSettings
from clustermim_fast.tokenizers.image_stream import ImageStream, check_images
from clustermim_fast.tokenizers.kmeans_report import KMeansReport
from clustermim_fast.tokenizers.pixel_data import FitOptions, Loader
from clustermim_fast.tokenizers.rows import Float64, Index, MatrixRows

BATCH_IMAGES = 128  # ClusterMIM's
GREY = 128  # of a centroid that is nearest to no patch

OpenRows = Callable[[Tensor, str], "FeatureRows"]


class Extractor(Protocol):
    """What a feature tokenizer is to its own fit."""

    @property
    def patch_size(self) -> int: ...

    def features(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, rows, columns, D]."""
        ...


class FeatureRows(MatrixRows, PatchRows):
    """The features [B, rows, columns, D] of a batch of images, as float32 rows."""

    def __init__(self, images: Tensor, features: Tensor, metric: str) -> None:
        super().__init__(features.flatten(0, 2).float(), metric=metric)
        self.images, self.grid = images, (features.shape[1], features.shape[2])
        self.patches_per_image = self.grid[0] * self.grid[1]

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a patch of the images."""
        channels, height, width = self.images.shape[1:]
        return channels, height // self.grid[0], width // self.grid[1]

    def patches(self, index: Index) -> Tensor:
        """The patches of these rows, int32 [n, C, p, p] of pixels 0..255, on the CPU."""
        _, p, q = self.patch_shape
        cells = self.images.unflatten(3, (self.grid[1], q)).unflatten(2, (self.grid[0], p))
        image, patch = np.divmod(index, self.patches_per_image)
        places = (image, *np.divmod(patch, self.grid[1]))
        b, row, column = (torch.from_numpy(v).to(self.images.device) for v in places)
        chosen = cells[b, :, row, :, column, :].cpu()
        if chosen.dtype != torch.uint8:
            chosen = (chosen.float() * 255).round().clamp(0, 255)
        return chosen.to(torch.int32)


class ShuffledBatches:
    """Images in memory as a loader that shuffles: a new order in each pass."""

    def __init__(self, images: Tensor, batch_size: int, seed: int) -> None:
        self._images, self._size, self._seed, self._epoch = images, batch_size, seed, -1

    def __iter__(self) -> Iterator[Tensor]:
        self._epoch += 1
        order = permutation(self._seed, self._epoch, len(self._images), STREAM_KMEANS)
        for start in range(0, len(order), self._size):
            yield self._images[torch.from_numpy(order[start : start + self._size])]


class KeptLoader(Loader):
    """Features are computed once and kept, in the order of the first pass."""

    def __init__(
        self,
        loader: Iterable[Any],
        open_rows: OpenRows,
        options: FitOptions,
        device: torch.device | None,
    ) -> None:
        super().__init__(loader, open_rows, options, device)
        self._stream = _KeptStream(loader, open_rows, device)


class _KeptStream(ImageStream):
    _kept: list[PatchRows] | None = None

    def passes(self) -> Iterator[PatchRows]:
        """The first from the images, the others from memory."""
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for rows in super().passes():
            yield rows
            rows.images = rows.images[:0]
            kept.append(rows)
        self._kept = kept


def rows_opener(tokenizer: Extractor, metric: str) -> OpenRows:
    """What turns a batch into :class:`FeatureRows`, or refuses it."""
    settings = PatchSettings(tokenizer.patch_size)

    def open_rows(images: Tensor, where: str) -> FeatureRows:
        features = tokenizer.features(check_images(images, settings, where))
        rows = FeatureRows(images, features, metric)
        if not bool(torch.isfinite(rows.x).all()):
            raise ValueError(f"tokenizer fit: the network's features of {where} are not finite")
        return rows

    return open_rows


@dataclass
class Seen:
    """What one pass with the final centroids found, over all ranks.

    Attributes:
        pictures: uint8 [K, C, p, p], of each centroid the patch whose feature is nearest to it;
            grey where no patch is its own.
        counts: int64 [K]; inertia: as in the report.
    """

    pictures: Tensor
    counts: Tensor
    inertia: float

    def note(self, report: KMeansReport) -> None:
        """The fit's own numbers were those of centroids that still moved."""
        report.counts = self.counts.double().tolist()
        report.inertia, report.exact = self.inertia, True
        report.unused = int((self.counts == 0).sum())
        report.num_rows = int(self.counts.sum())


def look(loader: Iterable[Any], open_rows: OpenRows, centroids: Tensor, metric: str) -> Seen:
    """One pass over the images of all ranks."""
    group = everyone()
    stream = ImageStream(loader, open_rows, centroids.device)
    own, nearest = group.agree(lambda: _look(stream.passes(), centroids, metric))
    owner = group.each(nearest).argmin(axis=0)
    own.pictures[torch.from_numpy(owner != group.rank)] = 0
    pictures = group.fill(own.pictures).to(torch.uint8)
    inertia = float(group.each(np.array([own.inertia])).sum())
    return Seen(pictures, group.total(own.counts), inertia)


def _look(batches: Iterable[PatchRows], centroids: Tensor, metric: str) -> tuple[Seen, Float64]:
    """This rank's part, and the least cost [K] beside it; pictures as int32."""
    k = len(centroids)
    nearest = np.full(k, np.inf)
    seen = Seen(torch.empty(0), torch.zeros(k, dtype=torch.int64), 0.0)
    for batch in batches:
        assert isinstance(batch, FeatureRows)
        found = ops.nearest_centroid(batch.x, centroids, metric=metric, return_distance=True)
        ids, cost = found[0].cpu(), found[1].double().cpu()
        cost = 1 - cost if metric == "cosine" else cost
        seen.inertia += float(cost.sum())
        seen.counts += torch.bincount(ids, minlength=k)
        order = torch.argsort(cost, stable=True).numpy()
        clusters, first = np.unique(ids.numpy()[order], return_index=True)
        rows = order[first]
        better = cost.numpy()[rows] < nearest[clusters]
        clusters, rows = clusters[better], rows[better]
        nearest[clusters] = cost.numpy()[rows]
        if not len(seen.pictures):
            seen.pictures = torch.full((k, *batch.patch_shape), GREY, dtype=torch.int32)
        seen.pictures[torch.from_numpy(clusters)] = batch.patches(rows)
    return seen, nearest


def open_loader(
    images_or_loader: Tensor | Iterable[Any],
    open_rows: OpenRows,
    options: FitOptions,
    device: torch.device | None,
    keep: bool,
) -> Loader:
    """The stream that k-means sees; ``keep``: features stay in memory after their first pass."""
    kind = KeptLoader if keep else Loader
    loader = as_loader(images_or_loader, options.batch_size, options.seed)
    return kind(loader, open_rows, options, device)


def as_loader(
    images_or_loader: Tensor | Iterable[Any], batch_size: int | None = None, seed: int = 0
) -> Iterable[Any]:
    """Images in memory as shuffled batches; a loader as it is."""
    if not isinstance(images_or_loader, Tensor):
        return images_or_loader
    return ShuffledBatches(images_or_loader, batch_size or BATCH_IMAGES, seed)
