"""Images made from given patch rows, and the values of those rows: patch_tokens' definition.

The tests start from rows of pixels [N, D] and lay them out as images, so that nothing here cuts
patches out of images as the package does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@dataclass(frozen=True)
class Layout:
    """How a row of D = p * p * C pixels lies in an image."""

    p: int
    channels: int
    order: str = "hwc"

    @property
    def d(self) -> int:
        return self.p * self.p * self.channels

    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each column of a row: its row and column inside the patch, and its channel."""
        at = np.arange(self.d)
        if self.order == "hwc":  # ((i p) + j) C + c
            return at // self.channels // self.p, at // self.channels % self.p, at % self.channels
        return at // self.p % self.p, at % self.p, at // self.p // self.p  # ((c p) + i) p + j

    def images(self, rows: np.ndarray, grid: tuple[int, int] = (2, 3)) -> torch.Tensor:
        """[B, C, H, W] whose patches are ``rows`` [N, D] in turn; N a multiple of the grid."""
        batch, p = len(rows) // (grid[0] * grid[1]), self.p
        out = np.empty((batch, self.channels, grid[0] * p, grid[1] * p), rows.dtype)
        i, j, c = self.places()
        for n, row in enumerate(rows):
            b, patch = divmod(n, grid[0] * grid[1])
            top, left = divmod(patch, grid[1])
            out[b, c, top * p + i, left * p + j] = row
        return torch.from_numpy(out)

    def values(
        self, rows: np.ndarray, mean: Any = None, std: Any = None, per_patch_norm: bool = False
    ) -> np.ndarray:
        """The float32 rows that are compared with the centroids, each operation rounded once."""
        x = rows.astype(np.float32)
        if rows.dtype == np.uint8:
            x = x / np.float32(255)
        channel = self.places()[2]
        if mean is not None:
            x = x - np.asarray(mean, np.float32)[channel]
        if std is not None:
            x = x / np.asarray(std, np.float32)[channel]
        if not per_patch_norm:
            return x
        i, j, c = self.places()
        in_order = np.lexsort((c, j, i))  # by row, then column, then channel
        wide = x.astype(np.float64)
        mean_of_patch = _running_sum(wide[:, in_order]) / self.d
        centred = wide - mean_of_patch
        variance = _running_sum(np.square(centred)[:, in_order]) / (self.d - 1)
        return (centred / np.sqrt(variance + 1e-6)).astype(np.float32)


def _running_sum(values: np.ndarray) -> np.ndarray:
    return np.add.accumulate(values, axis=1)[:, -1:]  # one term after the other, no pairing


def _cropped(images: torch.Tensor) -> torch.Tensor:
    b, c, h, w = images.shape
    wide = torch.zeros(b, c + 2, h + 5, w + 7, dtype=images.dtype)
    wide[:, 1 : c + 1, 3 : h + 3, 2 : w + 2] = images
    return wide[:, 1 : c + 1, 3 : h + 3, 2 : w + 2]


def _at_an_odd_address(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images.new_zeros(3), images.flatten()])[3:].view_as(images)


MEMORY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dense": torch.Tensor.contiguous,
    "channels_last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "cropped": _cropped,
    "cropped_channels_last": lambda images: _cropped(images.permute(0, 2, 3, 1)).permute(
        0, 3, 1, 2
    ),
    "transposed": lambda images: images.transpose(2, 3).contiguous().transpose(2, 3),
    "every_second_column": lambda images: images.repeat_interleave(2, 3)[:, :, :, ::2],
    "every_second_channel": lambda images: images.repeat_interleave(2, 1)[:, ::2],
    "batch_innermost": lambda images: images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "odd_address": _at_an_odd_address,
}
"""The same images in other places of memory."""
