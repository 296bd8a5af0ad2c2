"""The network of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Encoder (a timm model) and what a method puts on it.

    Attributes:
        encoder: timm name.
        patch_size: side of a patch, pixels; None: as the name says.
        embed_dim, depth, num_heads: None: as the name says.
        class_token, reg_tokens: None: as the name says.
        init_values: of the LayerScale; None: as the name says.
        decoder_dim, decoder_depth, decoder_heads: None: 512 / 8 / 16 from width 768 up, 256 / 8 / 8
            from 384 up (MAE, ClusterMIM), and about half the encoder's width, 2 or 4 blocks, below.
        early_layer: of ccvit, the layer (from 1) whose patches its pixel branch takes; None: the
            third before the last.
        branch_depth: of ccvit, blocks of the pixel branch.
        shared_rel_pos: of ccvit, one relative position bias for all blocks; False: one a block.
        shared_head: of ccvit, the branch predicts tokens with the same classifier, not pixels.
        weights: a weight file that the encoder starts from; "" starts from random weights.
    """

    encoder: str = "vit_small_patch16_224"
    patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    class_token: bool | None = None
    reg_tokens: int | None = None
    init_values: float | None = None
    decoder_dim: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    early_layer: int | None = None
    branch_depth: int = 2
    shared_rel_pos: bool = True
    shared_head: bool = False
    weights: str = ""

    def timm_options(self) -> dict[str, int | float | bool]:
        """The keyword arguments that timm.create_model gets, besides img_size."""
        names = ["patch_size", "embed_dim", "depth", "num_heads", "class_token", "reg_tokens"]
        names.append("init_values")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}
