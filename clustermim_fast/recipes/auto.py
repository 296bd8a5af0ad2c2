"""Sizes for images that no recipe was written for."""

from __future__ import annotations

import dataclasses

import torch

from clustermim_fast.data import DataConfig, native_size
from clustermim_fast.masking import MaskConfig
from clustermim_fast.models import ModelConfig
from clustermim_fast.optim import OptimConfig
from clustermim_fast.recipes.small import SMALL_VIT, digits_demo
from clustermim_fast.train import LogConfig, TokenizerConfig, TrainConfig


def auto_recipe(path: str, method: str = "clustermim") -> tuple[TrainConfig, str]:
    """A config for the images at `path`, and one line that says what was chosen and why.

    `method` decides what kind of network it is; the config's method is for the caller to set.

    Up to 48 pixels (median short side): the images' size, 4-pixel patches, the small ViT. Up to
    112: 64 pixels in 8-pixel patches. Above: 224 pixels in 16-pixel patches, ViT-S with CUDA, and
    128 pixels with ViT-Ti without.
    """
    if path == "digits":
        config = digits_demo()
        model = _for_method(method, config.model)
        config = dataclasses.replace(config, model=model, mask=_mask(method, model))
        return config, "the recipe digits_demo"
    height, width = native_size(path)
    short = min(height, width)
    optim = OptimConfig(epochs=100, batch_size=256, blr=1e-3)
    if short <= 48:
        side, patch = max(16, 8 * round(short / 8)), 4
        model = SMALL_VIT
        optim = dataclasses.replace(optim, blr=1.5e-3)
    elif short <= 112:
        side, patch = 64, 8
        model = dataclasses.replace(SMALL_VIT, patch_size=patch, embed_dim=192, num_heads=6)
    elif torch.cuda.is_available():
        side, patch = 224, 16
        model = ModelConfig(encoder="vit_small_patch16_224", patch_size=patch)
    else:
        side, patch = 128, 16
        model = ModelConfig(encoder="vit_tiny_patch16_224", patch_size=patch)
    model = _for_method(method, model)
    config = TrainConfig(
        data=DataConfig(path=path, image_size=(side, side)),
        model=model,
        mask=_mask(method, model),
        tokenizer=TokenizerConfig(num_clusters=50),
        optim=optim,
        log=LogConfig(checkpoint_every_epochs=5),
    )
    said = (
        f"images are {width} x {height} px (median): crops of {side} x {side}, "
        f"patches of {patch} px, "
        f"{model.encoder}{f' at width {model.embed_dim}' if model.embed_dim else ''}, "
        f"K = {config.tokenizer.num_clusters}, {optim.epochs} epochs"
    )
    return config, said


def _mask(method: str, model: ModelConfig) -> MaskConfig:
    """a2mim hides squares of 32 of 224 pixels: of two patches, on smaller images too."""
    return MaskConfig(unit=2 * (model.patch_size or 16)) if method == "a2mim" else MaskConfig()


def _for_method(method: str, model: ModelConfig) -> ModelConfig:
    """The same sizes on the kind of network that a method is defined for."""
    if method != "ccvit":
        return model
    named = {"vit_tiny_patch16_224": (192, 12, 3), "vit_small_patch16_224": (384, 12, 6)}
    width, depth, heads = named[model.encoder]
    return ModelConfig(
        encoder="beit_base_patch16_224",
        patch_size=model.patch_size,
        embed_dim=model.embed_dim or width,
        depth=model.depth or depth,
        num_heads=model.num_heads or heads,
    )
