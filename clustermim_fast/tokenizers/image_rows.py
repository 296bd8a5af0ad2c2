"""Patches as rows of k-means: of images in memory, and of a stream of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from clustermim_fast import ops
from clustermim_fast.ops.lloyd_step.reference import image_quantum
from clustermim_fast.ops.patch_tokens.reference import patch_rows_reference
from clustermim_fast.ranks import Alone
from clustermim_fast.tokenizers.rows import Index, MatrixRows, Rows, unit_rows
from clustermim_fast.tokenizers.serial import rounded
from clustermim_fast.tokenizers.totals import Step, Totals

UNIT_GRID = 2.0**24  # unit rows of images are multiples of 1 / this: their sums are exact
# Given to the op at once, where that is no copy: each call prepares all centroids. Ids are 8 bytes
# a row.
BLOCK_PIXELS, BLOCK_ROWS = 1 << 26, 1 << 20
GATHERED_BYTES = 1 << 23  # of images that are copied for it
BLOCK_VALUES = 1 << 20  # made into float rows at once, where rows are needed


@dataclass(frozen=True)
class PatchSettings:
    """How images become rows; the meaning is that of ``ops.patch_tokens``."""

    patch_size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    per_patch_norm: bool = False
    patch_order: str = "hwc"

    def rows(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 rows [B * L, D] of ``images`` [B, C, H, W]."""
        return patch_rows_reference(
            images, self.patch_size, self.mean, self.std, self.per_patch_norm, self.patch_order
        ).flatten(0, 1)


class PatchRows(Rows):
    """Rows made of the patches of ``images``; row = image * patches_per_image + patch."""

    images: torch.Tensor
    patches_per_image: int


class ImageRows(PatchRows):
    """The patches of images [N, C, H, W], uint8 or floating; row = image * L + patch.

    Args:
        chosen: int64 [n], the images to take, in this order; None: all. They are gathered a few at
            a time, never all.
        keep_ids: whether ``lloyd_step`` returns ids (int16 or int32, so that many can be kept).
    """

    dtype = torch.float32

    def __init__(
        self,
        images: torch.Tensor,
        settings: PatchSettings,
        metric: str = "euclidean",
        *,
        chosen: torch.Tensor | None = None,
        keep_ids: bool = False,
    ) -> None:
        self.images, self.settings, self.metric, self.keep_ids = images, settings, metric, keep_ids
        self.chosen = chosen
        self.num_images = len(images) if chosen is None else len(chosen)
        p = settings.patch_size
        _, channels, height, width = images.shape
        self.grid = (height // p, width // p)
        self.patches_per_image = self.grid[0] * self.grid[1]
        self.num_rows = self.num_images * self.patches_per_image
        self.dim = channels * p * p
        self.device = images.device
        quantum = image_quantum(images[:1], p, settings.mean, settings.std, settings.per_patch_norm)
        self.exact = metric == "cosine" or quantum is not None

    def _image_blocks(self, values: int) -> Iterator[tuple[int, torch.Tensor]]:
        size = max(1, values // max(1, self.images.shape[1:].numel()))
        for start in range(0, self.num_images, size):
            part: slice | torch.Tensor = slice(start, start + size)
            if self.chosen is not None:
                part = self.chosen[part]
            yield start * self.patches_per_image, self.images[part]

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Patch rows of a few images at a time."""
        for start, images in self._image_blocks(BLOCK_VALUES):
            yield start, self._values(self.settings.rows(images))

    def _values(self, rows: torch.Tensor) -> torch.Tensor:
        if self.metric != "cosine":
            return rows
        return unit_rows(rows).mul_(UNIT_GRID).round_().div_(UNIT_GRID)

    def take(self, index: Index) -> torch.Tensor:
        """Single patches, gathered without touching the rest of their images."""
        p, (_, columns) = self.settings.patch_size, self.grid
        grid = self.images.unflatten(3, (columns, p)).unflatten(2, (self.grid[0], p))
        out = torch.empty(len(index), self.dim, dtype=self.dtype, device=self.device)
        size = max(1, BLOCK_VALUES // self.dim)
        for start in range(0, len(index), size):
            image, patch = np.divmod(index[start : start + size], self.patches_per_image)
            places = (image, *np.divmod(patch, columns))
            first, row, column = (torch.from_numpy(v).to(self.device) for v in places)
            if self.chosen is not None:
                first = self.chosen[first]
            small = grid[first, :, row, :, column, :]  # [n, C, p, p]: images of one patch
            out[start : start + size] = self._values(self.settings.rows(small))
        return out

    def accumulate(self, centers: torch.Tensor, totals: Totals) -> torch.Tensor | None:
        """One pass, images streamed through the op; no patch matrix (cosine: block by block)."""
        if self.metric == "cosine":
            return super().accumulate(centers, totals)
        s, ids = self.settings, self.new_ids(len(centers))
        views = self.chosen is None
        values = min(BLOCK_PIXELS, BLOCK_ROWS * self.dim)
        if not views:
            values = GATHERED_BYTES // self.images.element_size()
        for start, images in self._image_blocks(values):
            part = ops.lloyd_step_images(
                images,
                centers,
                s.patch_size,
                mean=s.mean,
                std=s.std,
                per_patch_norm=s.per_patch_norm,
                patch_order=s.patch_order,
                metric=self.metric,
            )
            if ids is not None:
                ids[start : start + part[0].numel()] = part[0].flatten()
            totals.add(*part[1:])
        return ids

    def new_ids(self, num_clusters: int) -> torch.Tensor | None:
        """Small integers, or None."""
        if not self.keep_ids:
            return None
        dtype = torch.int16 if num_clusters <= 2**15 else torch.int32
        return torch.empty(self.num_rows, dtype=dtype, device=self.device)


class StreamRows(Rows):
    """The patches of a loader that can be passed over again and again.

    ``sample`` are rows kept in memory, the same on every rank; what cannot be asked of a stream is
    answered from them. A pass is one over the loaders of all ranks of ``ranks``.
    """

    dtype = torch.float32

    def __init__(
        self,
        passes: Callable[[], Iterable[Rows]],
        sample: MatrixRows,
        exact: bool,
        ranks: Alone,
    ) -> None:
        self._passes, self.sample, self.exact, self._ranks = passes, sample, exact, ranks
        self.metric, self.dim, self.device = sample.metric, sample.dim, sample.device
        self.num_rows = 0  # known after the first pass

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The sample."""
        return self.sample.blocks()

    def take(self, index: Index) -> torch.Tensor:
        """Rows of the sample."""
        return self.sample.take(index)

    def lloyd_step(self, centers: torch.Tensor) -> Step:
        """One pass over the loader; ids are not kept."""
        centers = rounded(centers, self.dtype)
        totals = Totals(centers, self.exact)

        def add_own() -> None:
            for batch in self._passes():
                batch.accumulate(centers, totals)

        self._ranks.agree(add_own)
        step = totals.step(self._ranks, None)
        self.num_rows = int(step.counts.sum())
        return step
