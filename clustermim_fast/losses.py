"""What a method's prediction is compared with: token ids, or pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clustermim_fast import ops


@dataclass(frozen=True)
class LossConfig:
    """Options of the losses.

    Attributes:
        label_smoothing: of the token loss (methods: 0, or 0.1).
        norm_pix_loss: the pixel loss normalises each target patch by its own mean and deviation.
    """

    label_smoothing: float = 0.0
    norm_pix_loss: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing}")


@dataclass(frozen=True)
class Targets:
    """What there is to predict for a batch.

    Attributes:
        images: float [B, 3, H, W], normalised.
        tokens: int64 [B, L], or None where the run has no tokenizer.
        mask: bool [B, L], True = masked.
        masked_per_sample: number of True in each row of `mask`, known without looking.
        patch_size: pixels.
    """

    images: Tensor
    tokens: Tensor | None
    mask: Tensor
    masked_per_sample: int
    patch_size: int


Objective = Callable[[Tensor, nn.Linear, Targets, LossConfig], tuple[Tensor, ops.Metrics | None]]


def token_loss(
    hidden: Tensor, head: nn.Linear, targets: Targets, config: LossConfig
) -> tuple[Tensor, ops.Metrics]:
    """Mean cross-entropy of the masked patches' tokens; accuracy and usage of the predicted ones.

    hidden: float [B, P + L, d]; the first P rows are prefix tokens. A token of -1 (a patch with
    NaN) is not counted. All results stay on the device.
    """
    if targets.tokens is None:
        raise ValueError("tokens: the token loss needs a tokenizer, got none")
    return ops.masked_linear_cross_entropy(
        hidden,
        head.weight,
        targets.tokens,
        targets.mask,
        linear_bias=head.bias,
        ignore_index=-1,
        label_smoothing=config.label_smoothing,
        num_prefix_tokens=hidden.shape[1] - targets.mask.shape[1],
        masked_per_sample=targets.masked_per_sample,
        return_metrics=True,
    )


def pixel_loss(
    hidden: Tensor, head: nn.Linear, targets: Targets, config: LossConfig
) -> tuple[Tensor, None]:
    """Mean squared error of the masked patches' pixels (normalised units); no metrics.

    With norm_pix_loss each target patch has its own mean and unbiased variance (+ 1e-6) removed.
    """
    patches = patchify(targets.images, targets.patch_size)
    if config.norm_pix_loss:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        patches = (patches - mean) / (variance + 1e-6).sqrt()
    predicted = head(hidden[:, hidden.shape[1] - targets.mask.shape[1] :]).float()
    error = F.mse_loss(predicted, patches, reduction="none").mean(dim=-1)
    weight = targets.mask.to(error.dtype)
    return (error * weight).sum() / (len(error) * targets.masked_per_sample), None


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """float [B, C, H, W] -> [B, L, p p C], patches row-major, values in (row, column, channel)
    order.
    """
    batch, channels, height, width = images.shape
    p = patch_size
    grid = images.reshape(batch, channels, height // p, p, width // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * p * channels)


OBJECTIVES: dict[str, Objective] = {"tokens": token_loss, "pixels": pixel_loss}
