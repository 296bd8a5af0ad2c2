"""Which patches are hidden or replaced: fixed numbers per image, chosen by (seed, epoch, sample).

All kinds draw from one stream of `counter_rng`, so a sample's mask depends neither on its batch nor
on the number of processes. Every image of a run has exactly the same number of masked patches: what
blocks leave open or rectangles cannot fill is filled one patch at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clustermim_fast import counter_rng

KINDS = ("random", "block", "inverse_block", "replaced")
_PATIENCE = 10  # rectangles in a row that do not fit before an image is filled patch by patch
_PROPOSALS = 64  # rectangles in all

UInt64Array = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MaskConfig:
    """How patches are masked. None: as the method does it.

    Attributes:
        kind: "random": a uniformly random subset (MAE, ClusterMIM, A2MIM); "block": rectangles
            (BEiT); "inverse_block": all but rectangles; "replaced": "block", and some of the
            patches that remain are shown as their centroid (CCViT).
        ratio: masked share of the patches, in (0, 1), rounded up: 0.75 hides 147 of 196.
        replace: share of the patches that "replaced" shows as centroids; None: 20 of 196.
        unit: side in pixels of the squares that are masked whole, a multiple of the patch size;
            None: one patch. A2MIM masks squares of 32 pixels on any grid of patches.
        min_block: smallest rectangle, in patches (squares of `unit`); None: 16 of 196.
        aspect: range of a rectangle's height / width.

    The rectangles are BEiT's, which CCViT uses: area uniform between min_block and what is still to
    be masked, log aspect uniform, place uniform, taken where it hides at least one patch more and
    not more than are left; after ten in a row that did not fit, single patches fill up. Places near
    the centre are hidden more often than corners, as there. Unlike there, a rectangle may be as
    high or wide as the image (small grids), an image has at most 64 proposals, min_block follows
    the size of the grid, and the draws are a function of the seed.
    """

    kind: str | None = None
    ratio: float | None = None
    replace: float | None = None
    unit: int | None = None
    min_block: int | None = None
    aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        if self.kind not in (None, *KINDS):
            names = ", ".join(f'"{name}"' for name in KINDS)
            raise ValueError(f"mask.kind must be one of {names}, got {self.kind!r}")
        for name in ("ratio", "replace"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                raise ValueError(
                    f"mask.{name} must be between 0 and 1 (both excluded), got {value}"
                )
        if self.replace is not None and self.kind not in (None, "replaced"):
            raise ValueError(f'mask.replace needs mask.kind = "replaced", got {self.kind!r}')
        for name in ("unit", "min_block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"mask.{name} must be at least 1, got {value}")
        if not 0.0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"mask.aspect must be a range above 0, got {self.aspect}")


class Masks(NamedTuple):
    """mask bool [B, L]: hidden; replaced bool [B, L]: shown as centroids, None where nothing is;
    visible int64 [B, Lv]: sorted positions of the other patches.
    """

    mask: Tensor
    visible: Tensor
    replaced: Tensor | None


class Masker:
    """Draws the masks of one config on one grid of patches.

    Attributes:
        num_masked, num_replaced, num_visible: patches of every image; their sum is L.

    Raises ValueError where the counts or the grid leave nothing to mask or to see.
    """

    def __init__(self, config: MaskConfig, grid: tuple[int, int], patch_size: int) -> None:
        self._config = config
        self._kind = config.kind or "random"
        self._repeat = _patches_per_unit(config.unit or patch_size, grid, patch_size)
        self._grid = (grid[0] // self._repeat, grid[1] // self._repeat)
        self._cells = self._grid[0] * self._grid[1]
        self._masked = self._cells - num_visible(self._cells, config.ratio or 0.75)
        self._replaced = 0
        if self._kind == "replaced":
            self._replaced = max(1, round(self._cells * (config.replace or 20 / 196)))
        if self._masked + self._replaced >= self._cells:
            raise ValueError(
                f"mask.ratio and mask.replace touch {self._masked} + {self._replaced} of "
                f"{self._cells} patches; at least one must be left as it is"
            )
        area = self._repeat**2
        self.num_masked, self.num_replaced = self._masked * area, self._replaced * area
        self.num_visible = grid[0] * grid[1] - self.num_masked - self.num_replaced

    def __call__(self, seed: int, epoch: int, samples: npt.ArrayLike) -> Masks:
        """Masks of samples, int64 [B] data set ids."""
        cells = self._cells
        count = cells if self._kind == "random" else 2 * cells + 4 * _PROPOSALS
        words = counter_rng.bits(seed, epoch, samples, counter_rng.STREAM_MASK, count)
        first, second, rest = words[:, :cells], words[:, cells : 2 * cells], words[:, 2 * cells :]
        if self._kind == "random":
            cell_mask = _fill(np.zeros(first.shape, dtype=bool), self._masked, first)
        elif self._kind == "inverse_block":
            kept = cells - self._masked
            cell_mask = ~_fill(self._rectangles(rest, kept), kept, first)
        else:
            cell_mask = _fill(self._rectangles(rest, self._masked), self._masked, first)
        mask, replaced = self._to_patches(cell_mask), None
        touched = mask
        if self._replaced:
            # Masked patches get the smallest key, so they are never among the chosen.
            nothing = np.zeros(first.shape, dtype=bool)
            chosen = _fill(nothing, self._replaced, np.where(cell_mask, np.uint64(0), second))
            replaced = self._to_patches(chosen)
            touched = mask | replaced
        return Masks(mask, visible_indices(touched, self.num_visible), replaced)

    def _rectangles(self, words: UInt64Array, count: int) -> BoolArray:
        smallest = self._config.min_block or max(1, round(self._cells * 16 / 196))
        draws = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return _rectangles(draws, self._grid, count, smallest, self._config.aspect)

    def _to_patches(self, cell_mask: BoolArray) -> Tensor:
        squares = cell_mask.reshape(-1, *self._grid)
        patches = squares.repeat(self._repeat, axis=1).repeat(self._repeat, axis=2)
        return torch.from_numpy(patches.reshape(len(patches), -1))


def _patches_per_unit(unit: int, grid: tuple[int, int], patch_size: int) -> int:
    """Patches along the side of what is masked whole."""
    size = tuple(side * patch_size for side in grid)
    if unit % patch_size or any(side % unit for side in size):
        raise ValueError(
            f"mask.unit = {unit} pixels must be a multiple of the patch size, {patch_size}, and "
            f"divide the image, {size[0]} x {size[1]}; choose another mask.unit"
        )
    return unit // patch_size


def _fill(mask: BoolArray, count: int, keys: UInt64Array) -> BoolArray:
    """`mask` [B, L] and the patches of the largest keys, so that each row has `count` True."""
    order = np.argsort(np.where(mask, np.uint64(2**64 - 1), keys), axis=1, kind="stable")
    filled = np.zeros_like(mask)
    np.put_along_axis(filled, order[:, mask.shape[1] - count :], True, axis=1)
    return filled


def _rectangles(
    draws: npt.NDArray[np.float64],
    grid: tuple[int, int],
    count: int,
    smallest: int,
    aspect: tuple[float, float],
) -> BoolArray:
    """bool [B, L] with at most `count` True a row, in rectangles; draws [B, 4 proposals]."""
    rows, columns = grid
    y, x = np.divmod(np.arange(rows * columns), columns)
    low, high = np.log(aspect)
    mask = np.zeros((len(draws), rows * columns), dtype=bool)
    failed = np.zeros((len(draws), 1), dtype=np.int64)
    for place in range(0, draws.shape[1], 4):
        size, shape, down, right = np.split(draws[:, place : place + 4], 4, axis=1)
        left_over = count - mask.sum(axis=1, keepdims=True)
        area = smallest + (np.maximum(left_over, smallest) - smallest) * size
        ratio = np.exp(low + (high - low) * shape)
        height, width = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
        top, left = np.floor(down * (rows - height + 1)), np.floor(right * (columns - width + 1))
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        new = (inside & ~mask).sum(axis=1, keepdims=True)
        good = (height <= rows) & (width <= columns) & (new > 0) & (new <= left_over)
        good &= failed < _PATIENCE
        mask |= inside & good
        failed = np.where(good, 0, failed + 1)
        if (failed >= _PATIENCE).all():
            break
    return mask


def num_visible(num_patches: int, ratio: float) -> int:
    """Patches left visible: floor(num_patches * (1 - ratio)), so 49 of 196 at 0.75.

    Raises ValueError where nothing would be masked or nothing visible.
    """
    # The small addend undoes the rounding of 1 - ratio: 100 * (1 - 0.9) is 9.999999999999998.
    count = int(num_patches * (1.0 - ratio) + 1e-9)
    if not 0 < count < num_patches:
        raise ValueError(
            f"mask.ratio = {ratio} leaves {count} of {num_patches} patches visible; at least one "
            "must be visible and one masked: choose another ratio, a smaller patch_size or larger "
            "images"
        )
    return count


def random_mask(
    num_patches: int, ratio: float, seed: int, epoch: int, samples: npt.ArrayLike
) -> Tensor:
    """The "random" kind without a config: bool [B, num_patches], True = masked."""
    return Masker(MaskConfig("random", ratio), (1, num_patches), 1)(seed, epoch, samples).mask


def visible_indices(mask: Tensor, count: int | None = None) -> Tensor:
    """Sorted positions of the visible patches, int64 [B, count], of a mask [B, L] with equal row
    counts.

    With `count` (static) no value is read back from the device.
    """
    if count is None:
        count = int((~mask[0]).sum())
    # A stable sort of the bits brings the False (visible) positions first, in increasing order.
    return mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
