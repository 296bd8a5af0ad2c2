"""What a method's prediction is compared with: token ids, pixels of patches, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clustermim_fast.losses.config import LossConfig
from clustermim_fast.losses.patches import (
    Outcome,
    Targets,
    patchify,
    pixel_loss,
    token_and_pixel_loss,
    token_loss,
)

__all__ = [
    "OBJECTIVES",
    "LossConfig",
    "Outcome",
    "Targets",
    "patchify",
    "pixel_loss",
    "token_and_pixel_loss",
    "token_loss",
]

Objective = Callable[[Any, Any, Targets, LossConfig], Outcome]
"""From what the model returned, its `head`, the targets and the options."""

OBJECTIVES: dict[str, Objective] = {
    "tokens": token_loss,
    "pixels": pixel_loss,
    "tokens_and_pixels": token_and_pixel_loss,
}
