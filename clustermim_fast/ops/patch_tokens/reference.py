"""Images to patch rows in plain PyTorch: the definition of what the fused kernels read."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def normalize_reference(
    images: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> torch.Tensor:
    """``(pixel - mean) / std`` in float32, each step rounded, as ToTensor + Normalize; NCHW."""
    x = images.float()
    if images.dtype == torch.uint8:  # a tensor divisor: CUDA turns a scalar one into a product
        x = x / torch.tensor(255.0, device=x.device)
    if mean is not None:
        x = x - torch.tensor(mean, dtype=torch.float32, device=x.device)[:, None, None]
    if std is not None:
        x = x / torch.tensor(std, dtype=torch.float32, device=x.device)[:, None, None]
    return x


def patchify_reference(images: torch.Tensor, patch_size: int, patch_order: str) -> torch.Tensor:
    """[B, C, H, W] -> [B, L, D], L row-major; "hwc" = (row, column, channel), "chw" = (c, r, c)."""
    b, c, h, w = images.shape
    p = patch_size
    grid = images.reshape(b, c, h // p, p, w // p, p)
    order = (0, 2, 4, 3, 5, 1) if patch_order == "hwc" else (0, 2, 4, 1, 3, 5)
    return grid.permute(order).reshape(b, (h // p) * (w // p), p * p * c)


def normalize_patches_reference(patches_hwc: torch.Tensor) -> torch.Tensor:
    """Per-patch (v - mean) / sqrt(unbiased variance + 1e-6): float64 sums in order, float32 out."""
    x = patches_hwc.double()
    count = x.shape[-1]
    mean = _sum_in_order(x) / count
    variance = _sum_in_order((x - mean[..., None]).square()) / (count - 1)
    return ((x - mean[..., None]) / (variance + 1e-6).sqrt()[..., None]).float()


def _sum_in_order(x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(x[..., 0])
    for column in x.unbind(-1):
        total = total + column
    return total


def patch_rows_reference(
    images: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
    patch_order: str,
) -> torch.Tensor:
    """The float32 rows [B, L, D] whose nearest centroids :func:`patch_tokens` returns."""
    rows = patchify_reference(normalize_reference(images, mean, std), patch_size, "hwc")
    if per_patch_norm:
        rows = normalize_patches_reference(rows)
    if patch_order == "chw":
        b, length, d = rows.shape
        rows = rows.reshape(b, length, patch_size**2, -1).transpose(2, 3).reshape(b, length, d)
    return rows
