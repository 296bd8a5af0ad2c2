"""What every tokenizer offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from clustermim_fast.tokenizers.kmeans_report import KMeansReport
from clustermim_fast.tokenizers.pixel_pictures import assemble
from clustermim_fast.tokenizers.pixel_settings import grid_of


@runtime_checkable
class Tokenizer(Protocol):
    """Images to token ids, and back to pictures.

    Attributes:
        kind: "pixel" or "feature".
        num_clusters: K.
        centroids: [K, D] float32.
        patch_size: side of a patch, pixels.
        metric: how patches are compared with centroids.
        mean, std: the normalisation applied to un-normalised images, one float a channel in [0, 1]
            pixel units, or None.
        report: of the fit; None for given centroids.
    """

    kind: str
    centroids: torch.Tensor
    metric: str
    report: KMeansReport | None

    @property
    def num_clusters(self) -> int: ...

    @property
    def patch_size(self) -> int: ...

    @property
    def mean(self) -> tuple[float, ...] | None: ...

    @property
    def std(self) -> tuple[float, ...] | None: ...

    def __call__(self, images: torch.Tensor, normalized: bool = False) -> torch.Tensor:
        """[B, C, H, W] -> int64 ids [B, L]; ``normalized``: mean and std are already applied."""
        ...

    def vectors(self, images: torch.Tensor) -> torch.Tensor:
        """What is compared with the centroids: float32 rows [B * L, D]."""
        ...

    def vectors_key(self) -> str | None:
        """Equal for tokenizers that compare the same features of an image; None: cheap ones."""
        ...

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image; their product is L."""
        ...

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Ids [B, L] -> float images [B, 3, H, W] in [0, 1]; -1 is grey."""
        ...

    def to(self, device: torch.device | str) -> Tokenizer:
        """Itself, with its tensors on ``device``."""
        ...

    def describe(self) -> dict[str, Any]:
        """Every setting, by name."""
        ...

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; :func:`load_tokenizer` reads it."""
        ...

    def fingerprint(self) -> str:
        """Short hash of the centroids and of every setting that changes ids."""
        ...


class Codebook:
    """What all our tokenizers have in common: a picture a centroid, and places on a grid."""

    centroids: torch.Tensor

    @property
    def num_clusters(self) -> int:
        """K."""
        return int(self.centroids.shape[0])

    @property
    def patch_size(self) -> int:
        """Pixels of an image that a token stands for, on each side."""
        raise NotImplementedError

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of this size."""
        return grid_of(self.patch_size, height, width)

    def centroid_images(self) -> torch.Tensor:
        """The codebook as pictures: float32 [K, C, p, p] in [0, 1]."""
        raise NotImplementedError

    def vectors_key(self) -> str | None:
        """See :class:`Tokenizer`."""
        return None

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Each token as its centroid's picture (see :meth:`centroid_images`).

        Args:
            tokens: ids [B, L] or [B, rows, columns]; -1 is painted grey.
            grid: (rows, columns); None: that of a 3-d ``tokens``, else a square.

        Returns:
            float32 [B, 3, H, W] in [0, 1] (a grey codebook is shown in three equal channels).
        """
        return assemble(self.centroid_images(), tokens, grid)
