"""Both ops in a ClusterMIM-style codebase: an MAE that predicts clusters of a network's features.

python examples/clustermim_style.py [FOLDER]     # random discs, or your images; seconds on a CPU

Three lines of the loss change, for equal numbers:

    - tokens = tokenize(tokenizer(imgs), kcenters)
    - loss = cross_entropy_of_all(model.decoder_pred(x)[:, 1:], tokens)
    - return (loss * mask).sum() / mask.sum()
    + tokens = ops.nearest_centroid(tokenizer(imgs), kcenters)
    + W, b = model.decoder_pred.weight, model.decoder_pred.bias
    + return ops.masked_linear_cross_entropy(
    +     x, W, tokens, mask, linear_bias=b, num_prefix_tokens=1, label_smoothing=0.1
    + )
"""

from __future__ import annotations

import sys
from functools import partial

import torch
import torch.nn.functional as F
from example_parts import load
from mae_style import MaskedAutoencoderViT, train
from torch import Tensor, nn

from clustermim_fast import KMeans, ops


class FrozenNetwork(nn.Module):
    """In DINO's place: two random convolutions. Not a part of the model that is trained, or its
    optimizer, checkpoint and initialisation would have it too."""

    def __init__(self, dim: int = 24, patch_size: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, dim, patch_size, patch_size), nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1)
        )

    @torch.no_grad()
    def forward(self, imgs: Tensor) -> Tensor:
        """Features of the patches, [B, L, dim]."""
        return self.layers(imgs).flatten(2).transpose(1, 2)


def tokenize(features: Tensor, kcenters: Tensor) -> Tensor:
    """int64 [B, L] by the expanded distance, which rounds: a near tie may go to the wrong one."""
    squares = features.square().sum(-1, keepdim=True) + kcenters.square().sum(-1)
    return (squares - 2 * features @ kcenters.T).argmin(dim=-1)


def cross_entropy_of_all(pred: Tensor, tokens: Tensor) -> Tensor:
    """[B, L]: 0.9 for the token and 0.1 for all K alike."""
    log_p = F.log_softmax(pred, dim=-1)
    return -0.9 * log_p.take_along_dim(tokens[..., None], -1)[..., 0] - 0.1 * log_p.mean(-1)


def loss_before(
    model: MaskedAutoencoderViT,
    imgs: Tensor,
    x: Tensor,
    mask: Tensor,
    tokenizer: nn.Module,
    kcenters: Tensor,
) -> Tensor:
    """Logits of every patch, then the mean over the hidden ones; ``x`` is the decoder's output."""
    tokens = tokenize(tokenizer(imgs), kcenters)
    loss = cross_entropy_of_all(model.decoder_pred(x)[:, 1:], tokens)
    return (loss * mask).sum() / mask.sum()


def loss_after(
    model: MaskedAutoencoderViT,
    imgs: Tensor,
    x: Tensor,
    mask: Tensor,
    tokenizer: nn.Module,
    kcenters: Tensor,
) -> Tensor:
    """The same number without the logits of the visible patches; the mask stays the float one."""
    tokens = ops.nearest_centroid(tokenizer(imgs), kcenters)
    W, b = model.decoder_pred.weight, model.decoder_pred.bias
    return ops.masked_linear_cross_entropy(
        x, W, tokens, mask, linear_bias=b, num_prefix_tokens=1, label_smoothing=0.1
    )


def main(folder: str | None = None, steps: int = 40) -> None:
    """Trains both ways and prints how far apart they are."""
    torch.manual_seed(0)
    imgs, tokenizer, k = load(folder), FrozenNetwork(), 100
    features = tokenizer(imgs)
    kcenters = KMeans(k, random_state=0).fit(features.flatten(0, 1)).cluster_centers_.float()
    options = {"tokenizer": tokenizer, "kcenters": kcenters}
    before = train(imgs, k, partial(loss_before, **options), steps)
    after = train(imgs, k, partial(loss_after, **options), steps)
    ids, used = tokenize(features, kcenters), ops.nearest_centroid(features, kcenters)
    print(f"before: {before[0]:.6f} -> {before[-1]:.6f}, {ids.numel() * k} logits a step")
    print(f"after:  {after[0]:.6f} -> {after[-1]:.6f}, {ids.numel() * 3 // 4 * k} logits a step")
    apart = max(abs(a - b) for a, b in zip(after, before, strict=True))
    print(f"largest difference of a step: {apart:.1e}; {int((ids != used).sum())} ids differ")


if __name__ == "__main__":
    main(*sys.argv[1:2])
