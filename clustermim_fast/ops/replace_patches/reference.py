"""Pasting centroids over patches in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def _by_channel(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """[C], made on the device: a copy from the host would wait for it, and cannot be captured in a
    CUDA graph."""
    return torch.stack([like.new_full((), value) for value in values])


def centroid_pixels_reference(
    centroids_KD: torch.Tensor,
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    patch_order: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Centroids as pixels [K, p, p, C] of ``dtype``: de-normalised, uint8 half to even, clamped."""
    c = centroids_KD.float()
    patch_size = round((c.shape[1] / channels) ** 0.5)
    if patch_order == "chw":
        pixels = c.reshape(-1, channels, patch_size, patch_size).permute(0, 2, 3, 1)
    else:
        pixels = c.reshape(-1, patch_size, patch_size, channels)
    if std is not None:
        pixels = pixels * _by_channel(std, c)
    if mean is not None:
        pixels = pixels + _by_channel(mean, c)
    if dtype == torch.uint8:
        pixels = (pixels * 255).round().clamp(0, 255).nan_to_num(0)
    return pixels.to(dtype)


def replace_patches_reference(
    images: torch.Tensor, ids: torch.Tensor, pixels_KppC: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """A copy of ``images`` [B, C, H, W] with the patches at ``where & (ids >= 0)`` replaced."""
    b, c, h, w = images.shape
    p = pixels_KppC.shape[1]
    out = images.clone(memory_format=torch.contiguous_format)
    grid = out.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)  # [B, gh, gw, p, p, C]
    chosen = (where & (ids >= 0)).reshape(b, h // p, w // p)
    grid[chosen] = pixels_KppC[ids.reshape(b, h // p, w // p)[chosen]]
    return out
