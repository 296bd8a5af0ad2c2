"""Encoder on visible tokens, mask tokens, light decoder: what ClusterMIM and MAE share."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from clustermim_fast.encoders import create_vit
from clustermim_fast.models.config import ModelConfig
from clustermim_fast.models.positions import sincos_positions


class MaskedAutoencoder(nn.Module):
    """A timm VisionTransformer that sees the visible patches, and a decoder that fills in the rest.

    Position embeddings of both are fixed sines and cosines; the encoder's is written into
    `encoder.pos_embed`, so that the encoder alone is an ordinary timm model. Weights start as
    MAE's: Xavier-uniform linear layers, zero biases, normal(0.02) tokens.

    Args:
        config: names and sizes.
        image_size: (H, W), pixels, multiples of the patch size.
        head_dim: outputs per patch of the linear head; None: the patch's pixels, 3 p^2.
    """

    objective = ""
    mask_kinds = ("random", "block", "inverse_block")

    def __init__(
        self, config: ModelConfig, image_size: tuple[int, int], head_dim: int | None
    ) -> None:
        super().__init__()
        options = config.timm_options()
        self.encoder = create_vit(config.encoder, img_size=image_size, **options)
        self.decoder_positions: Tensor
        width = int(self.encoder.embed_dim)
        self.patch_size = int(self.encoder.patch_embed.patch_size[0])
        self.grid: tuple[int, int] = tuple(self.encoder.patch_embed.grid_size)
        self.num_prefix_tokens = int(self.encoder.num_prefix_tokens)

        dim, depth, heads = decoder_sizes(config, width, len(self.encoder.blocks))
        self.decoder_embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.decoder_blocks = nn.Sequential(
            *[Block(dim, heads, mlp_ratio=4.0, qkv_bias=True) for _ in range(depth)]
        )
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, head_dim or 3 * self.patch_size**2)
        positions = sincos_positions(self.grid, dim, self.num_prefix_tokens)
        self.register_buffer("decoder_positions", positions[None], persistent=False)
        self._initialise()

    @staticmethod
    def defaults(encoder: str) -> dict[str, Any]:
        """Settings of the papers, for those that a config leaves open."""
        return {"mask.kind": "random", "mask.ratio": 0.75, "loss.norm_pix_loss": False}

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def _initialise(self) -> None:
        encoder = self.encoder
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = encoder.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        for token in (encoder.cls_token, encoder.reg_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        prefix = 0 if encoder.no_embed_class else self.num_prefix_tokens
        positions = sincos_positions(self.grid, int(encoder.embed_dim), prefix)
        encoder.pos_embed = nn.Parameter(positions[None], requires_grad=False)

    def forward(self, images: Tensor, mask: Tensor, visible: Tensor | None = None) -> Tensor:
        """Decoder features of every token.

        Args:
            images: float [B, 3, H, W], normalised.
            mask: bool [B, L], True = masked, equal counts per row.
            visible: int64 [B, Lv], sorted positions of the visible patches. Found from `mask`
                otherwise, which reads a count back from the device.

        Returns:
            float [B, P + L, d]: P prefix tokens, then the patches in row-major order.
        """
        if visible is None:
            count = int((~mask[0]).sum())
            visible = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        return self.decode(self.encode(images, visible), visible)

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Encoder features of the prefix tokens and the visible patches, float [B, P + Lv, D]."""
        encoder = self.encoder
        tokens = encoder.patch_embed(images)
        if tokens.dim() == 4:  # dynamic_img_size keeps the grid
            tokens = tokens.flatten(1, 2)
        tokens = tokens + self._patch_positions()
        tokens = tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat([*self._prefix(len(tokens)), tokens], dim=1)
        tokens = encoder.norm_pre(encoder.pos_drop(tokens))
        return encoder.norm(encoder.blocks(tokens))

    def _patch_positions(self) -> Tensor:
        positions = self.encoder.pos_embed
        if positions is None:  # create_vit refuses such encoders
            raise ValueError("encoder.pos_embed: expected a position embedding, got None")
        return positions[:, positions.shape[1] - self.num_patches :]

    def _prefix(self, batch: int) -> list[Tensor]:
        # The fixed positions of prefix tokens are zero, so nothing is added to them.
        tokens = (self.encoder.cls_token, self.encoder.reg_token)
        return [token.expand(batch, -1, -1) for token in tokens if token is not None]

    def decode(self, features: Tensor, visible: Tensor) -> Tensor:
        """Decoder features float [B, P + L, d] from the encoder's float [B, P + Lv, D]."""
        embedded = self.decoder_embed(features)
        prefix, seen = embedded[:, : self.num_prefix_tokens], embedded[:, self.num_prefix_tokens :]
        index = visible[..., None].expand(-1, -1, seen.shape[-1])
        hidden = self.mask_token.to(seen.dtype).expand(len(seen), self.num_patches, -1)
        tokens = torch.cat([prefix, hidden.scatter(1, index, seen)], dim=1)
        tokens = tokens + self.decoder_positions
        return self.decoder_norm(self.decoder_blocks(tokens))


def decoder_sizes(config: ModelConfig, width: int, depth: int) -> tuple[int, int, int]:
    """(dim, depth, heads) of the decoder: the config's, else MAE's, scaled to small encoders."""
    if width >= 384:
        dim, blocks = (512 if width >= 768 else 256), 8
    else:
        dim, blocks = max(64, 64 * round(width / 128)), (2 if depth <= 6 else 4)
    dim = config.decoder_dim or dim
    heads = config.decoder_heads or max(1, dim // 32)  # 32 wide each, as both sizes of MAE
    if dim % heads or dim % 4:
        raise ValueError(
            f"model.decoder_dim must be a multiple of 4 and of model.decoder_heads, got {dim} "
            f"and {heads}"
        )
    return dim, config.decoder_depth or blocks, heads
