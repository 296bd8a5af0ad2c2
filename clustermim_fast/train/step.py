"""One forward pass, read from top to bottom: the data flow of a run.

images -> tokens = tokenizer(images) -> hidden = model(images, mask) -> masked loss -> gradients

Where a method replaces patches, the model sees their centroids: `shown` instead of `pixels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from clustermim_fast import ops
from clustermim_fast.losses import OBJECTIVES, LossConfig, Targets
from clustermim_fast.masking import Masks
from clustermim_fast.tokenizers import PixelTokenizer, Tokenizer


class StepResult(NamedTuple):
    """On the device; for pixel targets there are neither metrics nor token ids int64 [B, L].

    parts: the terms of a loss that is a sum, by name.
    """

    loss: Tensor
    metrics: ops.Metrics | None
    tokens: Tensor | None
    parts: Mapping[str, Tensor] | None = None


def forward_step(
    model: Any,
    tokenizer: Tokenizer | None,
    images: Tensor,
    masks: Masks,
    mean: Tensor,
    std: Tensor,
    config: LossConfig,
) -> StepResult:
    """`model`, a registered method, on one batch.

    images uint8 [B, 3, H, W]; mean, std float [3, 1, 1].
    """
    mask, visible, replaced = masks
    tokens = tokenizer(images) if tokenizer is not None else None
    scaled = images.float() / 255
    pixels = (scaled - mean) / std
    shown, predicted = pixels, mask
    if replaced is not None:
        shown = (show_centroids(scaled, tokens, tokenizer, replaced) - mean) / std
        predicted = mask | replaced
    hidden = model(shown, mask, visible)
    count = mask.shape[1] - visible.shape[1]
    targets = Targets(pixels, tokens, predicted, count, model.patch_size, mask, scaled)
    loss, metrics, parts = OBJECTIVES[model.objective](hidden, model.head, targets, config)
    return StepResult(loss, metrics, tokens, parts)


def show_centroids(
    scaled: Tensor, tokens: Tensor | None, tokenizer: Tokenizer | None, where: Tensor
) -> Tensor:
    """Images in [0, 1] with the patches where `where` is True shown as their own centroids."""
    if tokens is None or not isinstance(tokenizer, PixelTokenizer):
        raise ValueError(
            f'mask.kind: "replaced" needs a tokenizer of pixels, got {type(tokenizer).__name__}'
        )
    return ops.replace_patches(
        scaled,
        tokens,
        tokenizer.centroids,
        where,
        tokenizer.patch_size,
        mean=tokenizer.mean,
        std=tokenizer.std,
        patch_order=tokenizer.patch_order,
    )
