"""Both losses' ops in somebody else's training loop: MAE-style, nothing else of this package.

python examples/plain_loop.py            # 200 steps on random shapes, a few seconds
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from clustermim_fast import ops


def make_images(count: int, size: int, seed: int) -> torch.Tensor:
    """uint8 [count, 3, size, size]: bright discs on dark ground, so that it can be learned."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    cx, cy, r = torch.rand(3, count, 1, 1, generator=g) * size
    disc = ((x - cx) ** 2 + (y - cy) ** 2 < (0.3 * size + 0.2 * r) ** 2).float()
    colour = torch.rand(count, 3, 1, 1, generator=g)
    return (disc[:, None] * colour * 200 + 20).to(torch.uint8)


def train(
    loss_function: Callable = ops.masked_linear_cross_entropy, steps: int = 200, lr: float = 1e-3
) -> list[float]:
    """Loss at every step. ``loss_function`` has the op's signature."""
    torch.manual_seed(0)
    patch, dim, classes, tokens, masked = 4, 64, 16, 64, 48
    images = make_images(256, 32, 0)
    pixels = images.float().unfold(2, patch, patch).unfold(3, patch, patch)
    patches = (
        pixels.permute(0, 2, 3, 4, 5, 1).reshape(256, tokens, -1) / 255
    )  # (row, column, channel)
    centroids = patches.reshape(-1, patches.shape[-1])[torch.randperm(256 * tokens)[:classes]]

    embed, position = (
        nn.Linear(patches.shape[-1], dim),
        nn.Parameter(torch.randn(tokens, dim) * 0.02),
    )
    layer = nn.TransformerEncoderLayer(dim, 4, 128, 0.0, batch_first=True, norm_first=True)
    encoder, decoder = (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        nn.Linear(dim, dim),
    )
    mask_token, head = nn.Parameter(torch.zeros(dim)), nn.Linear(dim, classes)
    parts = nn.ModuleList([embed, encoder, decoder, head])
    optimizer = torch.optim.AdamW([*parts.parameters(), position, mask_token], lr=lr)

    losses = []
    for _ in range(steps):
        index = torch.randint(0, 256, (32,))
        target = ops.patch_tokens(images[index], centroids, patch)
        mask = torch.rand(32, tokens).argsort(1) < masked
        hidden = torch.where(mask[..., None], mask_token, embed(patches[index])) + position
        hidden = decoder(encoder(hidden))
        loss = loss_function(hidden, head.weight, target, mask, linear_bias=head.bias)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    for step, value in enumerate(train()):
        if step % 20 == 0 or step == 199:
            print(f"step {step:4d}  loss {value:.4f}")
