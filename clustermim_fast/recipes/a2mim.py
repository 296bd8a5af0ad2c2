"""A2MIM: the paper's recipes, and two for small images."""

from __future__ import annotations

from clustermim_fast.data import DataConfig
from clustermim_fast.masking import MaskConfig
from clustermim_fast.models import ModelConfig
from clustermim_fast.optim import OptimConfig
from clustermim_fast.recipes.registry import register_recipe
from clustermim_fast.recipes.small import SMALL_VIT, cifar10
from clustermim_fast.train import TrainConfig

SQUARES_OF_8 = MaskConfig("random", ratio=0.6, unit=8)


@register_recipe
def a2mim_vit_base_imagenet() -> TrainConfig:
    """A2MIM with ViT-B/16 at 224 px on ImageNet-1K, as the released configs set it.

    30 of 49 squares of 32 pixels hidden; the token added to the patch embedding; absolute error,
    and 0.1 times the focal spectral term with visible pixels half prediction, half image; 800
    epochs, 10 of warm-up; AdamW (0.9, 0.999), weight decay 0.05, gradients clipped at 5; lr 4e-4 at
    2048 images an update; RandomResizedCrop(224, scale 0.67 to 1) and flip. Published for
    comparison, fine-tuned: 84.2 to 84.3 (SimMIM 83.8, labels alone 81.8). Differences: spectra are
    compared image by image (loss.fourier_batch_mean=true is the released form); lr falls in half a
    cosine, there by ten at epoch 700; no relative positions and no drop path. Not yet run here from
    end to end.
    """
    return TrainConfig(
        method="a2mim",
        data=DataConfig(image_size=(224, 224), crop_scale=(0.67, 1.0)),
        mask=MaskConfig("random", ratio=0.6, unit=32),
        model=ModelConfig(encoder="vit_base_patch16_224", patch_size=16, init_values=0.1),
        optim=OptimConfig(
            epochs=800,
            warmup_epochs=10,
            batch_size=256,
            accumulate=8,
            lr=4e-4,
            betas=(0.9, 0.999),
            clip_grad=5.0,
        ),
    )


@register_recipe
def a2mim_resnet50_imagenet() -> TrainConfig:
    """A2MIM with ResNet-50 at 224 px on ImageNet-1K, 300 epochs, as the released configs set it.

    The gated token before the last stage, 14 x 14; focal absolute error, and 0.5 times the focal
    spectral term; AdamW (0.9, 0.999), weight decay 0.05; lr 1.2e-3 falling to 1e-5 in half a cosine
    at 2048 images an update, a tenth of it for the token; RandomResizedCrop(224, scale 0.8 to 1).
    Published for comparison, fine-tuned: 80.4 with the A2 procedure (SimMIM 79.9, labels alone
    79.8), 78.9 with A3; a user who ran it reports 78.0 with A3. The term's per-image spectra differ
    from the released form, as in a2mim_vit_base_imagenet. model=convnext_tiny works as well. Not
    yet run here from end to end.
    """
    return TrainConfig(
        method="a2mim",
        data=DataConfig(image_size=(224, 224), crop_scale=(0.8, 1.0)),
        mask=MaskConfig("random", ratio=0.6, unit=32),
        model=ModelConfig(encoder="resnet50"),
        optim=OptimConfig(
            epochs=300,
            warmup_epochs=10,
            batch_size=256,
            accumulate=8,
            lr=1.2e-3,
            min_lr=1e-5,
            betas=(0.9, 0.999),
            mask_token_lr=0.1,
        ),
    )


@register_recipe
def cifar10_a2mim_vit_tiny() -> TrainConfig:
    """A2MIM on CIFAR-10 at 32 px: the small ViT of `cifar10_vit_tiny`, 10 epochs.

    10 of 16 squares of 8 pixels hidden.
    """
    return cifar10(
        "a2mim",
        SMALL_VIT,
        mask=SQUARES_OF_8,
        crop_scale=(0.67, 1.0),
        betas=(0.9, 0.999),
        clip_grad=5.0,
    )


@register_recipe
def cifar10_a2mim_resnet10() -> TrainConfig:
    """A2MIM on CIFAR-10 at 32 px: ResNet-10 whose last stages keep a map of 4 x 4, 10 epochs.

    10 of 16 squares of 8 pixels hidden, the gated token before the last stage. An epoch takes as
    long as one of the small ViT with A2MIM; backbone=resnet18 takes twice that.
    """
    return cifar10(
        "a2mim",
        ModelConfig(encoder="resnet10t", output_stride=8),
        mask=SQUARES_OF_8,
        crop_scale=(0.67, 1.0),
        betas=(0.9, 0.999),
        mask_token_lr=0.1,
    )
