"""One forward pass, read from top to bottom: the data flow of a run.

images -> tokens = tokenizer(images) -> hidden = model(images, mask) -> masked loss -> gradients
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from clustermim_fast.losses import OBJECTIVES, LossConfig, Targets
from clustermim_fast.ops import Metrics


class StepResult(NamedTuple):
    """On the device; for pixel targets there are neither metrics nor token ids int64 [B, L]."""

    loss: Tensor
    metrics: Metrics | None
    tokens: Tensor | None


def forward_step(
    model: Any,
    tokenizer: Callable[[Tensor], Tensor] | None,
    images: Tensor,
    mask: Tensor,
    visible: Tensor,
    mean: Tensor,
    std: Tensor,
    config: LossConfig,
) -> StepResult:
    """`model`, a registered method, on one batch.

    images uint8 [B, 3, H, W], mask bool [B, L], visible int64 [B, Lv]; mean, std float [3, 1, 1].
    """
    tokens = tokenizer(images) if tokenizer is not None else None
    pixels = (images.float() / 255 - mean) / std
    hidden = model(pixels, mask, visible)
    masked_per_sample = mask.shape[1] - visible.shape[1]
    targets = Targets(pixels, tokens, mask, masked_per_sample, model.patch_size)
    loss, metrics = OBJECTIVES[model.objective](hidden, model.head, targets, config)
    return StepResult(loss, metrics, tokens)
