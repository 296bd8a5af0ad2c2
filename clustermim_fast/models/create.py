"""Make the network of a run from its config and seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from clustermim_fast.models.config import ModelConfig
from clustermim_fast.models.registry import method_class
from clustermim_fast.weights import Verdict, load_weights


def create_model(
    method: str,
    config: ModelConfig,
    image_size: tuple[int, int],
    num_clusters: int,
    *,
    seed: int = 0,
) -> nn.Module:
    """The model of `method` on the CPU, in training mode, its weights a function of `seed` alone.

    The state of torch's generator is left as it was. `config.weights` is not read; see
    `load_encoder_weights`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method_class(method)(config, image_size, num_clusters)


def load_encoder_weights(model: nn.Module, path: str) -> Verdict:
    """Start the model's encoder from a weight file; fixed positions stay, learned ones do not."""
    encoder: Any = model.encoder
    positions = getattr(encoder, "pos_embed", None)
    fixed = () if positions is None or positions.requires_grad else ("pos_embed",)
    return load_weights(encoder, path, keep=(*fixed, "head.weight", "head.bias"))
