"""Frozen features of a set of images: computed once, in eval mode, from un-augmented images.

A feature is a row: [cls] or the mean of the patch tokens, both after the encoder's final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

__all__ = ["Images", "check_labelled", "encoder_features", "normalise", "pixel_features"]

MAX_PIXEL_SIDE = 32


class Images(Protocol):
    """What evaluation needs of a set of images; `clustermim_fast.data.ImageSet` is one."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], un-augmented, for int64 indices [B]."""
        ...


def check_labelled(features: Tensor, labels: Tensor, name: str) -> None:
    """Refuse features that are not [N, D] with N >= 1 or labels that are not their N class
    indices."""
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(
            f"{name}: expected features [N, D] with N >= 1, got shape {tuple(features.shape)}"
        )
    if labels.shape != (len(features),):
        raise ValueError(
            f"{name}_labels: expected [{len(features)}], one label a row of {name}, "
            f"got {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"{name}_labels: expected class indices from 0, got {int(labels.min())}")


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 (images / 255 - mean) / std, as torchvision's ToTensor and
    Normalize."""
    shape = (1, -1, 1, 1)
    scaled = images.to(torch.float32) / 255
    return (scaled - scaled.new_tensor(mean).view(shape)) / scaled.new_tensor(std).view(shape)


@torch.no_grad()
def encoder_features(
    encoder: nn.Module,
    images: Images,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    pool: str = "mean",
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = False,
    name: str = "features",
) -> Tensor:
    """Features of a timm encoder -> float32 [N, D] on the CPU.

    ``pool`` "mean": mean of the patch tokens (or of the map of a convolutional network); "cls":
    the [cls] token. The encoder runs in eval mode and goes back to the mode it came in.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval().to(device)
    try:
        return _in_batches(
            images,
            lambda batch: (
                pooled(encoder, normalise(batch.to(device), mean, std), pool).float().cpu()
            ),
            batch_size,
            name if progress else None,
        )
    finally:
        for module, training in modes:
            module.training = training


def pooled(encoder: nn.Module, images: Tensor, pool: str) -> Tensor:
    """One feature row an image from timm's ``forward_features`` (final norm applied), [B, D]."""
    if any(module.training for module in encoder.modules()):
        raise ValueError(
            "encoder: expected eval mode in every module, got training mode; call encoder.eval()"
        )
    if not hasattr(encoder, "forward_features"):
        raise ValueError(
            f"encoder: expected a timm model with forward_features, got {type(encoder).__name__}"
        )
    tokens = encoder.forward_features(images)  # type: ignore[operator]
    prefix = int(getattr(encoder, "num_prefix_tokens", 0))
    if pool == "cls":
        if tokens.ndim != 3 or getattr(encoder, "cls_token", None) is None:
            raise ValueError(
                f'pool: expected "mean" for {type(encoder).__name__} without [cls], got "cls"'
            )
        return tokens[:, 0]
    if pool != "mean":
        raise ValueError(f'pool: expected "mean" or "cls", got {pool!r}')
    return tokens[:, prefix:].mean(1) if tokens.ndim == 3 else tokens.mean((2, 3))


def pixel_features(
    images: Images,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """The images themselves as features: normalised pixels, float32 [N, 3 * h * w].

    Images larger than 32 x 32 are averaged down to at most that: 150,528 pixels of a 224 x 224
    image are more weights than any labelled set here can fit.
    """

    def flatten(batch: Tensor) -> Tensor:
        pixels = normalise(batch, mean, std)
        side = max(pixels.shape[-2:])
        if side > MAX_PIXEL_SIDE:
            height, width = (max(1, s * MAX_PIXEL_SIDE // side) for s in pixels.shape[-2:])
            pixels = F.adaptive_avg_pool2d(pixels, (height, width))
        return pixels.flatten(1)

    return _in_batches(images, flatten, batch_size, "raw pixels" if progress else None)


def _in_batches(
    images: Images, to_rows: Callable[[Tensor], Tensor], batch_size: int, title: str | None
) -> Tensor:
    if len(images) == 0:
        raise ValueError("images: expected at least one image, got none")
    starts = tqdm(range(0, len(images), batch_size), title, disable=title is None, leave=False)
    rows = [
        to_rows(images.images(torch.arange(s, min(s + batch_size, len(images))))) for s in starts
    ]
    return torch.cat(rows)
