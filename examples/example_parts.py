"""What the examples share: images as a loader gives them, their patches, transformer blocks."""

from __future__ import annotations

import torch
from plain_loop import make_images
from torch import nn

from clustermim_fast.data import IMAGENET_MEAN, IMAGENET_STD, open_images


def load(folder: str | None, count: int = 32, size: int = 32) -> torch.Tensor:
    """float32 [count, 3, size, size], normalised: random discs, or the first of a folder."""
    if folder is None:
        pixels = make_images(count, size, seed=0)
    else:
        found = open_images(folder, size=(size, size))
        pixels = found.images(range(min(count, len(found))))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / 255 - mean) / std


def patchify(imgs: torch.Tensor, p: int, norm: bool = False) -> torch.Tensor:
    """[B, 3, H, W] -> [B, L, p * p * 3], a patch's values by (row, column, channel).

    ``norm``: each patch by its own mean and unbiased variance.
    """
    b, c, h, w = imgs.shape
    blocks = imgs.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)
    patches = blocks.reshape(b, (h // p) * (w // p), p * p * c)
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt() if norm else patches


def transformer(dim: int, depth: int) -> nn.Module:
    """Pre-norm blocks and a last LayerNorm."""
    block = nn.TransformerEncoderLayer(
        dim, 4, 4 * dim, 0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
