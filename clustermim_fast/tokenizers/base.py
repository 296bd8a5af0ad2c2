"""What every tokenizer offers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class Tokenizer(Protocol):
    """Images to token ids, and back to pictures.

    Attributes:
        num_clusters: K.
        centroids: [K, D] float32.
        patch_size: side of a patch, pixels.
        mean, std: the normalisation applied to un-normalised images, one float a channel in [0, 1]
            pixel units, or None.
    """

    num_clusters: int
    centroids: torch.Tensor
    patch_size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, images: torch.Tensor, normalized: bool = False) -> torch.Tensor:
        """[B, C, H, W] -> int64 ids [B, L]; ``normalized``: mean and std are already applied."""
        ...

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image; their product is L."""
        ...

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Ids [B, L] -> float images [B, 3, H, W] in [0, 1]; -1 is grey."""
        ...

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; :func:`load_tokenizer` reads it."""
        ...

    def fingerprint(self) -> str:
        """Short hash of the centroids and of every setting that changes ids."""
        ...
