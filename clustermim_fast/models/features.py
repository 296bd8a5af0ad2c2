"""Features of a frozen encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def encode_features(encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Features after the final norm, of normalised images float [B, 3, H, W].

    Returns "mean" (the mean of the patch tokens, float [B, D]), "tokens" ([B, L, D]) and, where the
    encoder has one, "cls" ([B, D]). The encoder must be in eval mode: training mode changes
    features silently, so it is refused.
    """
    if encoder.training:
        raise ValueError("encoder: expected eval mode, got training mode; call encoder.eval()")
    tokens = encoder.forward_features(images)  # type: ignore[operator]
    prefix = int(encoder.num_prefix_tokens)  # type: ignore[arg-type]
    patches = tokens[:, prefix:]
    features = {"mean": patches.mean(dim=1), "tokens": patches}
    if getattr(encoder, "cls_token", None) is not None:
        features["cls"] = tokens[:, 0]
    return features
