"""What a method's prediction is compared with: token ids, pixels of patches, both, or images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from clustermim_fast.losses.config import LossConfig
from clustermim_fast.losses.images import fourier_loss, image_counts, image_loss, spatial_loss
from clustermim_fast.losses.patches import (
    Outcome,
    Targets,
    pixel_counts,
    pixel_loss,
    token_and_pixel_counts,
    token_and_pixel_loss,
    token_counts,
    token_loss,
)
from clustermim_fast.patch_grid import patchify

__all__ = [
    "COUNTS",
    "OBJECTIVES",
    "LossConfig",
    "Outcome",
    "Targets",
    "fourier_loss",
    "image_loss",
    "patchify",
    "pixel_loss",
    "spatial_loss",
    "token_and_pixel_loss",
    "token_loss",
]

Objective = Callable[[Any, Any, Targets, LossConfig], Outcome]
"""From what the model returned, its `head`, the targets and the options."""

OBJECTIVES: dict[str, Objective] = {
    "tokens": token_loss,
    "pixels": pixel_loss,
    "tokens_and_pixels": token_and_pixel_loss,
    "images": image_loss,
}

Counts = Callable[[Any, Targets, LossConfig], tuple[Tensor, ...]]
"""From the `head`, targets without images and the options: the items of each term of the loss."""

COUNTS: dict[str, Counts] = {
    "tokens": token_counts,
    "pixels": pixel_counts,
    "tokens_and_pixels": token_and_pixel_counts,
    "images": image_counts,
}
