"""Which patches are hidden: a fixed number per image, chosen by (seed, epoch, sample)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clustermim_fast import counter_rng


@dataclass(frozen=True)
class MaskConfig:
    """How patches are masked.

    Attributes:
        kind: "random": masked patches are a uniformly random subset.
        ratio: masked share of the patches, in (0, 1); 0.75 hides 147 of 196 (methods: MAE,
        ClusterMIM).
    """

    kind: str = "random"
    ratio: float = 0.75

    def __post_init__(self) -> None:
        if self.kind != "random":
            raise ValueError(f'mask.kind must be "random", got {self.kind!r}')
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(
                f"mask.ratio must be between 0 and 1 (both excluded), got {self.ratio}"
            )


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
    """Mask of each sample, bool [B, num_patches], True = masked; every row has the same number of
    True.

    `samples` int64 [B] are data set ids: a sample's mask does not depend on the batch it is in.
    """
    visible = num_visible(num_patches, ratio)
    keys = counter_rng.bits(seed, epoch, samples, counter_rng.STREAM_MASK, num_patches)
    order = np.argsort(keys, axis=1, kind="stable")
    mask = np.ones(keys.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :visible], False, axis=1)
    return torch.from_numpy(mask)


def visible_indices(mask: Tensor, count: int | None = None) -> Tensor:
    """Sorted positions of the visible patches, int64 [B, count], of a mask [B, L] with equal row
    counts.

    With `count` (static) no value is read back from the device.
    """
    if count is None:
        count = int((~mask[0]).sum())
    # A stable sort of the bits brings the False (visible) positions first, in increasing order.
    return mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
