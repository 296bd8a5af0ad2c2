"""Recipes for small images, made for two CPU cores."""

from __future__ import annotations

import dataclasses
from typing import Any

from clustermim_fast.data import DataConfig
from clustermim_fast.masking import MaskConfig
from clustermim_fast.models import ModelConfig
from clustermim_fast.optim import OptimConfig
from clustermim_fast.recipes.registry import register_recipe
from clustermim_fast.train import LogConfig, TokenizerConfig, TrainConfig

# 128 wide, 6 deep, 4 heads, 4-pixel patches: 1.2 M parameters, 64 tokens of a 32 x 32 image.
SMALL_VIT = ModelConfig(
    encoder="vit_tiny_patch16_224",
    patch_size=4,
    embed_dim=128,
    depth=6,
    num_heads=4,
    decoder_dim=64,
    decoder_depth=2,
    decoder_heads=2,
)


def cifar10(
    method: str,
    model: ModelConfig,
    tokenizer: TokenizerConfig | None = None,
    *,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    mask: MaskConfig | None = None,
    **optim: Any,
) -> TrainConfig:
    """CIFAR-10 at 32 px: the data and the budget that the methods' recipes share, so that they can
    be compared. ``optim``: what a method's paper sets besides.
    """
    return TrainConfig(
        method=method,
        data=DataConfig(image_size=(32, 32), normalize="data", crop_scale=crop_scale),
        mask=mask or MaskConfig(),
        model=model,
        tokenizer=tokenizer or TokenizerConfig(),
        optim=OptimConfig(epochs=10, batch_size=128, blr=2e-3, **optim),
        log=LogConfig(keep=2),
    )


@register_recipe
def cifar10_vit_tiny() -> TrainConfig:
    """CIFAR-10 at 32 px: a 128-wide, 6-deep ViT with 4-pixel patches, K = 50, 10 epochs.

    Measured (2026-11-21, two shared CPU cores, last checkpoint, test set): linear probe 55.4 %
    (random initialisation 45.1, raw pixels 41.4), kNN 46.1 % (32.6, 45.8).
    """
    return cifar10("clustermim", SMALL_VIT, TokenizerConfig(num_clusters=50))


@register_recipe
def cifar10_features_vit_tiny() -> TrainConfig:
    """`cifar10_vit_tiny` on K = 100 tokens of a frozen network's features.

    The default network is DINO's ViT-S/16, for which images are enlarged four times; with
    tokenizer.model=RUN it is the encoder of another run, cifar10_vit_tiny's for instance, which
    takes them as they are. Fitted on 10,000 images whose features are kept (0.3 GB at 128 wide,
    1 GB at DINO's 384): running the network anew takes minutes for each pass.
    """
    pixels = cifar10_vit_tiny()
    tokenizer = TokenizerConfig(
        kind="feature", num_clusters=100, max_images=10_000, keep_features=True
    )
    return dataclasses.replace(pixels, tokenizer=tokenizer)


@register_recipe
def digits_demo() -> TrainConfig:
    """scikit-learn's 1,797 digits at 32 px: the same small ViT, K = 32, 100 epochs, minutes on two
    cores.
    """
    return TrainConfig(
        method="clustermim",
        data=DataConfig(
            path="digits", image_size=(32, 32), normalize="data", crop_scale=(0.6, 1.0), flip=False
        ),
        model=SMALL_VIT,
        tokenizer=TokenizerConfig(num_clusters=32),
        optim=OptimConfig(epochs=100, batch_size=128, blr=2e-3),
        log=LogConfig(checkpoint_every_epochs=25),
    )
