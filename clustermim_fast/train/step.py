"""One forward pass, read from top to bottom: the data flow of a run.

images -> tokens = tokenizer(images) -> hidden = model(images, mask) -> masked loss -> gradients

Where a method replaces patches, the model sees their centroids: `shown` instead of `pixels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clustermim_fast import ops
from clustermim_fast.losses import COUNTS, OBJECTIVES, LossConfig, Targets
from clustermim_fast.masking import Masks
from clustermim_fast.tokenizers import PixelTokenizer, Tokenizer
from clustermim_fast.train.config import TrainConfig


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
    *,
    tokens: Tensor | None = None,
    shares: tuple[Tensor, ...] = (),
) -> StepResult:
    """`model`, a registered method, on one batch.

    images uint8 [B, 3, H, W]; mean, std float [3, 1, 1]; tokens: where they are known already;
    shares: see `losses.Targets`.
    """
    mask, visible, replaced = masks
    if tokens is None and tokenizer is not None:
        tokens = tokenizer(images)
    scaled = images.float() / 255
    pixels = (scaled - mean) / std
    shown, predicted = pixels, mask
    if replaced is not None:
        shown = (show_centroids(scaled, tokens, tokenizer, replaced) - mean) / std
        predicted = mask | replaced
    hidden = model(shown, mask, visible)
    count = mask.shape[1] - visible.shape[1]
    targets = Targets(pixels, tokens, predicted, count, model.patch_size, mask, scaled, shares)
    loss, metrics, parts = OBJECTIVES[model.objective](hidden, model.head, targets, config)
    return StepResult(loss, metrics, tokens, parts)


class ModelWithLoss(nn.Module):
    """`forward_step` as one module, so that what wraps it sees every parameter used inside.

    The tokenizer is no part of it: it has no parameters to train, shard or send.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer | None, mean: Tensor, std: Tensor, config: LossConfig
    ) -> None:
        super().__init__()
        self.model = model
        self._constants = (tokenizer, mean, std, config)  # a tuple registers nothing

    @classmethod
    def of_run(
        cls, config: TrainConfig, model: Any, tokenizer: Tokenizer | None, device: torch.device
    ) -> ModelWithLoss:
        """What a resolved config trains, on `device`."""
        if is_channels_last(config, model, device):
            model.to(memory_format=torch.channels_last)  # then its feature maps are, too
        tokenizer = None if tokenizer is None else tokenizer.to(device)
        scale = (config.data.mean, config.data.std)
        mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in scale)
        return cls(model, tokenizer, mean, std, config.loss)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._constants[0]

    def forward(
        self, images: Tensor, masks: Masks, tokens: Tensor | None, shares: tuple[Tensor, ...]
    ) -> StepResult:
        tokenizer, mean, std, config = self._constants
        return forward_step(
            self.model, tokenizer, images, masks, mean, std, config, tokens=tokens, shares=shares
        )

    def counts(self, images: Tensor, masks: Masks, tokens: Tensor | None) -> Tensor:
        """Items of each term of the loss, int64 [terms], known before the model runs."""
        mask, _, replaced = masks
        predicted = mask if replaced is None else mask | replaced
        targets = Targets(images, tokens, predicted, None, self.model.patch_size, mask)
        config = self._constants[3]
        return torch.stack(COUNTS[self.model.objective](self.model.head, targets, config))


def is_channels_last(config: TrainConfig, model: Any, device: torch.device) -> bool:
    """Whether efficiency.channels_last, or its default, makes the weights so."""
    asked = config.efficiency.channels_last
    if asked is not None:
        return asked
    # FSDP2 takes no weights of another format.
    ddp = config.efficiency.sharding == "ddp"
    return device.type == "cuda" and getattr(model, "convolutional", False) and ddp


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
