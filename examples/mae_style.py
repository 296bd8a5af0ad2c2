"""Token targets in an MAE-style codebase: the decoder classifies patches instead of painting them.

python examples/mae_style.py [FOLDER]     # random discs, or your images; seconds on a CPU

Three lines of the loss change, and the width of the head, from a patch's pixels to K:

    - target = patchify(imgs, model.patch_size, model.norm_pix_loss)
    - loss = (model.decoder_pred(x)[:, 1:] - target).square().mean(dim=-1)
    - return (loss * mask).sum() / mask.sum()
    + norm, head = model.norm_pix_loss, model.decoder_pred
    + tokens = ops.patch_tokens(imgs, centroids, model.patch_size, per_patch_norm=norm)
    + return ops.masked_linear_cross_entropy(
    +     x, head.weight, tokens, mask, linear_bias=head.bias, num_prefix_tokens=1
    + )
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

import torch
from example_parts import load, patchify, transformer
from torch import Tensor, nn

from clustermim_fast import KMeans, ops


class MaskedAutoencoderViT(nn.Module):
    """Encoder on the kept patches, decoder on all of them, at toy size."""

    def __init__(self, num_outputs: int, img_size: int = 32, patch_size: int = 4) -> None:
        super().__init__()
        self.patch_size, self.norm_pix_loss = patch_size, True
        self.num_patches, dim, decoder_dim = (img_size // patch_size) ** 2, 64, 48
        self.patch_embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.num_patches, dim))
        self.blocks = transformer(dim, 2)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_dim))
        positions = torch.randn(1, 1 + self.num_patches, decoder_dim)
        self.decoder_pos_embed = nn.Parameter(0.02 * positions)
        self.decoder_blocks = transformer(decoder_dim, 1)
        self.decoder_pred = nn.Linear(decoder_dim, num_outputs)

    def random_masking(self, batch: int, mask_ratio: float) -> tuple[Tensor, Tensor]:
        """Positions to keep, int64 [B, kept], and the mask, float [B, L]: 1 is hidden."""
        kept = int(self.num_patches * (1 - mask_ratio))
        ids_keep = torch.rand(batch, self.num_patches).argsort(dim=1)[:, :kept]
        return ids_keep, torch.ones(batch, self.num_patches).scatter(1, ids_keep, 0.0)

    def forward_encoder(self, imgs: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 1 + kept, dim], the mask and the kept positions."""
        x = self.patch_embed(imgs).flatten(2).transpose(1, 2) + self.pos_embed
        ids_keep, mask = self.random_masking(len(imgs), mask_ratio)
        x = x.take_along_dim(ids_keep[..., None], dim=1)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return self.blocks(x), mask, ids_keep

    def forward_decoder(self, latent: Tensor, ids_keep: Tensor) -> Tensor:
        """[B, 1 + L, decoder_dim]: what the head reads."""
        x = self.decoder_embed(latent)
        hidden = self.mask_token.repeat(len(x), self.num_patches, 1)
        hidden = hidden.scatter(1, ids_keep[..., None].expand(-1, -1, x.shape[-1]), x[:, 1:])
        return self.decoder_blocks(torch.cat([x[:, :1], hidden], dim=1) + self.decoder_pos_embed)


def loss_before(model: MaskedAutoencoderViT, imgs: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error of the hidden patches' pixels."""
    target = patchify(imgs, model.patch_size, model.norm_pix_loss)
    loss = (model.decoder_pred(x)[:, 1:] - target).square().mean(dim=-1)
    return (loss * mask).sum() / mask.sum()


def loss_after(
    model: MaskedAutoencoderViT, imgs: Tensor, x: Tensor, mask: Tensor, centroids: Tensor
) -> Tensor:
    """The cross-entropy of the hidden patches' tokens; the mask stays the float one."""
    norm, head = model.norm_pix_loss, model.decoder_pred
    tokens = ops.patch_tokens(imgs, centroids, model.patch_size, per_patch_norm=norm)
    return ops.masked_linear_cross_entropy(
        x, head.weight, tokens, mask, linear_bias=head.bias, num_prefix_tokens=1
    )


def train(imgs: Tensor, num_outputs: int, loss_function: Callable, steps: int = 40) -> list[float]:
    """The loss of every step; ``loss_function(model, imgs, x, mask)``."""
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(num_outputs, imgs.shape[-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(steps):
        latent, mask, ids_keep = model.forward_encoder(imgs, mask_ratio=0.75)
        loss = loss_function(model, imgs, model.forward_decoder(latent, ids_keep), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(folder: str | None = None, steps: int = 40) -> None:
    """Trains both ways and prints what each loss does."""
    imgs, k = load(folder), 32
    rows = patchify(imgs, 4, norm=True).flatten(0, 1)
    centroids = KMeans(k, random_state=0).fit(rows).cluster_centers_
    before = train(imgs, 48, loss_before, steps)
    after = train(imgs, k, partial(loss_after, centroids=centroids), steps)
    print(f"before, squared error of pixels: {before[0]:.4f} -> {before[-1]:.4f}")
    print(f"after, cross-entropy of tokens:  {after[0]:.4f} -> {after[-1]:.4f}")
    print(f"guessing costs ln {k} = {math.log(k):.4f}; logits are made of the hidden patches alone")


if __name__ == "__main__":
    main(*sys.argv[1:2])
