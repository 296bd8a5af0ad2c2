"""Centroids and token maps as pictures."""

from __future__ import annotations

import math

import torch

from clustermim_fast.tokenizers.image_rows import PatchSettings

GREY = 0.5
VISIBLE_SIGMAS = 3.0  # shown as black and white where a centroid has no brightness of its own


def centroid_pictures(
    centroids: torch.Tensor, settings: PatchSettings, channels: int, *, scale_free: bool
) -> torch.Tensor:
    """Un-normalised centroids, float32 [K, C, p, p] in [0, 1].

    With per_patch_norm, or ``scale_free`` (unit centroids), a centroid has no brightness or
    contrast of its own: it is shown as 0.5 + its values in standard deviations / 6.
    """
    p = settings.patch_size
    if settings.patch_order == "hwc":
        pictures = centroids.reshape(-1, p, p, channels).permute(0, 3, 1, 2)
    else:
        pictures = centroids.reshape(-1, channels, p, p)
    if settings.per_patch_norm or scale_free:
        if scale_free:
            sigma = pictures.flatten(1).std(dim=1, unbiased=False)
            pictures = pictures / sigma.clamp(min=1e-12)[:, None, None, None]
        pictures = GREY + pictures / (2 * VISIBLE_SIGMAS)
    else:
        std = _per_channel(settings.std, 1.0, pictures)
        pictures = pictures * std + _per_channel(settings.mean, 0.0, pictures)
    return pictures.clamp(0.0, 1.0)


def _per_channel(
    values: tuple[float, ...] | None, default: float, pictures: torch.Tensor
) -> torch.Tensor:
    given = (default,) if values is None else values
    return torch.tensor(given, dtype=torch.float32, device=pictures.device)[:, None, None]


def assemble(
    pictures: torch.Tensor, tokens: torch.Tensor, grid: tuple[int, int] | None
) -> torch.Tensor:
    """Images [B, 3, H, W] of the ``pictures`` [K, C, p, p] that ``tokens`` name; -1 is grey."""
    if tokens.dim() == 3 and grid is None:
        grid = (tokens.shape[1], tokens.shape[2])
    if tokens.dim() < 2:
        raise ValueError(f"decode: tokens must have shape [B, L], got {list(tokens.shape)}")
    tokens = tokens.flatten(1).to(pictures.device).long()
    if grid is None:
        side = math.isqrt(tokens.shape[1])
        grid = (side, side)
    rows, columns = grid
    if rows * columns != tokens.shape[1]:
        raise ValueError(
            f"decode: tokens have L = {tokens.shape[1]} places, grid {tuple(grid)} has "
            f"{rows * columns}; pass grid=(rows, columns)"
        )
    clusters, c, p, _ = pictures.shape
    if tokens.numel() and not -1 <= int(tokens.min()) <= int(tokens.max()) < clusters:
        span = f"{int(tokens.min())} .. {int(tokens.max())}"
        raise ValueError(f"decode: ids must lie in -1 .. {clusters - 1}, got {span}")
    grey = torch.full_like(pictures[:1], GREY)
    patches = torch.cat([pictures, grey])[tokens]  # id -1 is the last picture
    b = tokens.shape[0]
    images = patches.reshape(b, rows, columns, c, p, p).permute(0, 3, 1, 4, 2, 5)
    images = images.reshape(b, c, rows * p, columns * p)
    return images.expand(b, 3, -1, -1).contiguous() if c == 1 else images
