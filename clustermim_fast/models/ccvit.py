"""CCViT (Yan, Li, Zhang; arXiv 2303.04664): predict patches as centroid ids and pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.layers.weight_init import trunc_normal_
from timm.models.beit import Block
from torch import Tensor, nn

from clustermim_fast.encoders import create_beit
from clustermim_fast.models.config import ModelConfig
from clustermim_fast.models.registry import register_method


class CCViTHidden(NamedTuple):
    """Normalised features of every token, float [B, 1 + L, D]: last layer, and stacked branch."""

    tokens: Tensor
    branch: Tensor


@register_method("ccvit")
class CCViT(nn.Module):
    """A timm Beit that sees mask tokens and centroids, a token classifier, and a pixel branch.

    Hidden patches enter as a learned token; "replaced" ones as their own centroid, which the caller
    has put into the image. head["tokens"] classifies the last layer's patches. The branch takes the
    patches of an earlier layer (the 9th of 12, the 21st of 24) and the last layer's [cls] through
    two more blocks with the same relative positions; head["pixels"] gives the patches' pixels.

    Where this differs from the released code: the two blocks start as all others do (normal of
    deviation 0.02, zero biases, outputs divided by the root of twice their depth), not as torch's
    Linear; 0.02 is the deviation itself, not one cut at +-0.02 (an effective 0.011); counts follow
    the grid, which there is 14 x 14.

    A replaced patch shows the centroid whose id is its label, so that its id can be copied; only
    its pixels are a task. That is the paper's corruption ("loss.token_patches=masked" leaves those
    ids out).
    """

    objective = "tokens_and_pixels"
    mask_kinds = ("random", "block", "inverse_block", "replaced")
    undecayed = ("encoder.cls_token",)

    def __init__(self, config: ModelConfig, image_size: tuple[int, int], num_clusters: int) -> None:
        super().__init__()
        shared = config.shared_rel_pos
        encoder = self.encoder = create_beit(
            config.encoder, shared_rel_pos=shared, img_size=image_size, **config.timm_options()
        )
        first: Any = encoder.blocks[0]
        width, depth, heads = int(encoder.embed_dim), len(encoder.blocks), first.attn.num_heads
        self.patch_size = int(encoder.patch_embed.patch_size[0])
        self.grid: tuple[int, int] = tuple(encoder.patch_embed.grid_size)
        self.num_prefix_tokens = 1
        self.early_layer = max(1, depth - 3) if config.early_layer is None else config.early_layer
        if not 0 < self.early_layer <= depth:
            raise ValueError(
                f"model.early_layer must be one of the layers 1 to {depth}, got {self.early_layer}"
            )
        self.mask_token = nn.Parameter(torch.empty(width))
        self.branch_blocks = nn.ModuleList(
            Block(
                width,
                heads,
                qkv_bias=True,
                mlp_ratio=first.mlp.fc1.out_features / width,
                init_values=None if first.gamma_1 is None else 1.0,
                window_size=None if shared else self.grid,
            )
            for _ in range(config.branch_depth)
        )
        self.branch_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.ModuleDict({"tokens": nn.Linear(width, num_clusters)})
        if not config.shared_head:
            self.head["pixels"] = nn.Linear(width, 3 * self.patch_size**2)
        self._initialise()

    @staticmethod
    def defaults(encoder: str) -> dict[str, Any]:
        """The paper's settings, for those that a config leaves open."""
        return {
            "mask.kind": "replaced",
            "mask.ratio": 75 / 196,
            "loss.norm_pix_loss": True,
            "tokenizer.normalize": False,
        }

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def _initialise(self) -> None:
        """As timm's Beit begins, the branch's blocks counted on from the early layer."""
        trunc_normal_(self.mask_token, std=0.02)
        for part in (self.branch_blocks, self.head):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        for layer, block in enumerate(self.branch_blocks, self.early_layer + 1):
            for name in ("attn.proj", "mlp.fc2"):
                block.get_parameter(f"{name}.weight").data.div_((2.0 * layer) ** 0.5)
            first: Any = self.encoder.blocks[0]
            if first.gamma_1 is not None:  # LayerScale begins as the encoder's, whatever its value
                for name in ("gamma_1", "gamma_2"):
                    block.get_parameter(name).data.copy_(getattr(first, name).data)

    def forward(self, images: Tensor, mask: Tensor, visible: Tensor | None = None) -> CCViTHidden:
        """Features that the two heads take.

        Args:
            images: float [B, 3, H, W], normalised, replaced patches already shown as centroids.
            mask: bool [B, L], True = hidden.
            visible: not used: every position goes through the encoder.
        """
        encoder = self.encoder
        patches = encoder.patch_embed(images)
        patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = torch.cat([encoder.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        if encoder.pos_embed is not None:
            tokens = tokens + encoder.pos_embed
        bias = None if encoder.rel_pos_bias is None else encoder.rel_pos_bias()
        early = tokens
        for layer, block in enumerate(encoder.blocks, 1):
            tokens = block(tokens, shared_rel_pos_bias=bias)
            if layer == self.early_layer:
                early = tokens
        branch = torch.cat([tokens[:, :1], early[:, 1:]], dim=1)
        for block in self.branch_blocks:
            branch = block(branch, shared_rel_pos_bias=bias)
        return CCViTHidden(encoder.norm(tokens), self.branch_norm(branch))

    def logits(self, images: Tensor, mask: Tensor) -> Tensor:
        """Cluster logits of every patch, float [B, L, K]; for pictures, not for training."""
        return self.head["tokens"](self(images, mask).tokens[:, 1:])

    @property
    def has_pixel_branch(self) -> bool:
        """Not where the branch predicts tokens through the shared classifier."""
        return "pixels" in self.head

    def branch_patches(self, images: Tensor, mask: Tensor) -> Tensor:
        """The branch's patches of every position, float [B, L, 3 p^2]; for pictures."""
        return self.head["pixels"](self(images, mask).branch[:, 1:])
