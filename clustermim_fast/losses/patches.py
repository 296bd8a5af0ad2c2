"""Losses on patches: cross-entropy of token ids, squared error of pixels, and the sum of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clustermim_fast import ops
from clustermim_fast.losses.config import LossConfig
from clustermim_fast.patch_grid import patchify


@dataclass(frozen=True)
class Targets:
    """What there is to predict for a batch.

    Attributes:
        images: float [B, 3, H, W], normalised.
        tokens: int64 [B, L], or None where the run has no tokenizer.
        mask: bool [B, L], True = predicted: hidden, or shown as a centroid.
        masked_per_sample: number of True in each row of `mask`, known without looking; None where
            it is not.
        patch_size: pixels.
        hidden: bool [B, L], the hidden patches alone; None: `mask`.
        scaled: the images in [0, 1], before mean and std; None: `images`.
        shares: of each mean that the loss is a sum of, how much of the update's mean this batch's
            is (see `counts` functions), scalars on the device; (): all of it.
    """

    images: Tensor
    tokens: Tensor | None
    mask: Tensor
    masked_per_sample: int | None
    patch_size: int
    hidden: Tensor | None = None
    scaled: Tensor | None = None
    shares: tuple[Tensor, ...] = ()

    def share(self, mean: Tensor, term: int = 0) -> Tensor:
        """`mean`, that of `term`, times its share; a mean of nothing is NaN and has none."""
        if not self.shares:
            return mean
        share = self.shares[term].to(mean.dtype)
        return torch.where(share > 0, mean, 0.0) * share


class Outcome(NamedTuple):
    """A loss, token metrics where there are tokens, and the terms of a sum by name."""

    loss: Tensor
    metrics: ops.Metrics | None = None
    parts: Mapping[str, Tensor] | None = None


def token_loss(hidden: Tensor, head: nn.Linear, targets: Targets, config: LossConfig) -> Outcome:
    """Mean cross-entropy of the masked patches' tokens; accuracy and usage of the predicted ones.

    hidden: float [B, P + L, d]; the first P rows are prefix tokens. A token of -1 (a patch with
    NaN) is not counted. All results stay on the device.
    """
    if targets.tokens is None:
        raise ValueError("tokens: the token loss needs a tokenizer, got none")
    loss, metrics = ops.masked_linear_cross_entropy(
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
    return Outcome(targets.share(loss), metrics)


def token_counts(head: nn.Module, targets: Targets, config: LossConfig) -> tuple[Tensor, ...]:
    """Over how many patches `token_loss` is a mean."""
    return (_num_tokens(targets),)


def _num_tokens(targets: Targets) -> Tensor:
    if targets.tokens is None:
        raise ValueError("tokens: the token loss needs a tokenizer, got none")
    return (targets.mask & (targets.tokens != -1)).sum()


def pixel_loss(hidden: Tensor, head: nn.Linear, targets: Targets, config: LossConfig) -> Outcome:
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
    count = targets.masked_per_sample
    total = (error * weight).sum()
    return Outcome(targets.share(total / (weight.sum() if count is None else len(error) * count)))


def pixel_counts(head: nn.Module, targets: Targets, config: LossConfig) -> tuple[Tensor, ...]:
    """Over how many patches `pixel_loss` is a mean."""
    return (targets.mask.sum(),)


class TwoBranches(Protocol):
    """What ccvit returns: float [B, P + L, D] of the last layer and of the stacked branch."""

    tokens: Tensor
    branch: Tensor


def token_and_pixel_loss(
    hidden: TwoBranches, head: Mapping[str, nn.Linear], targets: Targets, config: LossConfig
) -> Outcome:
    """CCViT's sum: cross-entropy of the last layer, squared error of the branch's pixels in [0, 1].

    Without head["pixels"] the branch predicts tokens through the same classifier.
    """
    tokens, metrics, _ = token_loss(
        hidden.tokens, head["tokens"], _covering(targets, config.token_patches), config
    )
    branch_targets = _covering(targets, config.pixel_patches)
    branch_targets = dataclasses.replace(branch_targets, shares=targets.shares[1:])
    if "pixels" in head:
        if targets.scaled is not None:
            branch_targets = dataclasses.replace(branch_targets, images=targets.scaled)
        branch = pixel_loss(hidden.branch, head["pixels"], branch_targets, config).loss
    else:
        branch = token_loss(hidden.branch, head["tokens"], branch_targets, config).loss
    parts = {"token_loss": tokens.detach(), "branch_loss": branch.detach()}
    return Outcome(config.token_weight * tokens + config.pixel_weight * branch, metrics, parts)


def token_and_pixel_counts(
    head: Mapping[str, nn.Linear], targets: Targets, config: LossConfig
) -> tuple[Tensor, ...]:
    """Over how many patches the two terms of `token_and_pixel_loss` are means."""
    branch = _covering(targets, config.pixel_patches)
    tokens = _num_tokens(_covering(targets, config.token_patches))
    return tokens, branch.mask.sum() if "pixels" in head else _num_tokens(branch)


def _covering(targets: Targets, patches: str) -> Targets:
    """`targets` with the patches that "corrupted", "masked" or "all" stands for."""
    if patches == "masked" and targets.hidden is not None:
        return dataclasses.replace(targets, mask=targets.hidden, masked_per_sample=None)
    if patches == "all":
        everything = torch.ones_like(targets.mask)
        return dataclasses.replace(targets, mask=everything, masked_per_sample=everything.shape[1])
    return targets
