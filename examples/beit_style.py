"""k-means tokens and the fused loss in a BEiT-style codebase, which has a classifier already.

python examples/beit_style.py [FOLDER]     # random discs, or your images; seconds on a CPU

Three lines of the step change; the tokenizer network and its images are not needed any more:

    - input_ids = tokenizer.get_codebook_indices(samples)
    - outputs = model.lm_head(x[:, 1:][bool_masked_pos])
    - return nn.CrossEntropyLoss()(outputs, input_ids[bool_masked_pos])
    + input_ids = ops.patch_tokens(samples, centroids, patch_size=4)
    + weight, bias = model.lm_head.weight, model.lm_head.bias
    + return ops.masked_linear_cross_entropy(
    +     x, weight, input_ids, bool_masked_pos, linear_bias=bias, num_prefix_tokens=1
    + )
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from example_parts import load, patchify, transformer
from torch import Tensor, nn

from clustermim_fast import KMeans, ops


class VisionTransformerForMaskedImageModeling(nn.Module):
    """Masked patches become a mask token; ``lm_head`` names their visual words."""

    def __init__(self, vocab_size: int, img_size: int = 32, patch_size: int = 4) -> None:
        super().__init__()
        dim, self.grid = 64, img_size // patch_size
        self.patch_embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid**2, dim))
        self.blocks, self.lm_head = transformer(dim, 2), nn.Linear(dim, vocab_size)

    def forward_features(self, samples: Tensor, bool_masked_pos: Tensor) -> Tensor:
        """[B, 1 + L, dim]."""
        x = self.patch_embed(samples).flatten(2).transpose(1, 2)
        x = torch.where(bool_masked_pos[..., None], self.mask_token, x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return self.blocks(x + self.pos_embed)


class Tokenizer:
    """In the place of BEiT's discrete VAE: the nearest centroid by torch's own distances."""

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids

    def get_codebook_indices(self, samples: Tensor) -> Tensor:
        return torch.cdist(patchify(samples, 4), self.centroids.to(samples)).argmin(dim=-1)


def block_masks(batch: int, grid: int) -> Tensor:
    """bool [B, L]: one block of random place and size an image, so the counts differ."""
    height, width = torch.randint(grid // 2, grid, (2, batch, 1))
    top = (torch.rand(batch, 1) * (grid + 1 - height)).long()
    left = (torch.rand(batch, 1) * (grid + 1 - width)).long()
    at = torch.arange(grid)
    rows, columns = (at >= top) & (at < top + height), (at >= left) & (at < left + width)
    return (rows[:, :, None] & columns[:, None]).flatten(1)


def loss_before(
    model: nn.Module, samples: Tensor, x: Tensor, bool_masked_pos: Tensor, tokenizer: Tokenizer
) -> Tensor:
    """The cross-entropy of the masked patches' words; ``x`` comes from ``forward_features``."""
    input_ids = tokenizer.get_codebook_indices(samples)
    outputs = model.lm_head(x[:, 1:][bool_masked_pos])
    return nn.CrossEntropyLoss()(outputs, input_ids[bool_masked_pos])


def loss_after(
    model: nn.Module, samples: Tensor, x: Tensor, bool_masked_pos: Tensor, centroids: Tensor
) -> Tensor:
    """The same number."""
    input_ids = ops.patch_tokens(samples, centroids, patch_size=4)
    weight, bias = model.lm_head.weight, model.lm_head.bias
    return ops.masked_linear_cross_entropy(
        x, weight, input_ids, bool_masked_pos, linear_bias=bias, num_prefix_tokens=1
    )


def train(imgs: Tensor, vocab_size: int, loss_function: Callable, steps: int = 40) -> list[float]:
    """The loss of every step; ``loss_function(model, samples, x, bool_masked_pos)``."""
    torch.manual_seed(0)
    model = VisionTransformerForMaskedImageModeling(vocab_size, imgs.shape[-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    losses = []
    for _ in range(steps):
        mask = block_masks(len(imgs), model.grid)
        loss = loss_function(model, imgs, model.forward_features(imgs, mask), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(folder: str | None = None, steps: int = 40) -> None:
    """Trains both ways and prints how far apart they are."""
    imgs, k = load(folder), 32
    centroids = KMeans(k, random_state=0).fit(patchify(imgs, 4).flatten(0, 1)).cluster_centers_
    before = train(imgs, k, partial(loss_before, tokenizer=Tokenizer(centroids)), steps)
    after = train(imgs, k, partial(loss_after, centroids=centroids), steps)
    print(f"before: {before[0]:.6f} -> {before[-1]:.6f}, with the ids of float32 distances")
    print(f"after:  {after[0]:.6f} -> {after[-1]:.6f}, with the true nearest, the same everywhere")
    apart = max(abs(a - b) for a, b in zip(after, before, strict=True))
    print(f"largest difference of a step: {apart:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
