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
        output_stride: of a convolutional network, 8, 16 or 32; None: 32. 8 is for small images.
        decoder_dim, decoder_depth, decoder_heads: None: 512 / 8 / 16 from width 768 up, 256 / 8 / 8
            from 384 up (MAE, ClusterMIM), and about half the encoder's width, 2 or 4 blocks, below.
        early_layer: of ccvit, the layer (from 1) whose patches its pixel branch takes; None: the
            third before the last.
        branch_depth: of ccvit, blocks of the pixel branch.
        shared_rel_pos: of ccvit, one relative position bias for all blocks; False: one a block.
        shared_head: of ccvit, the branch predicts tokens with the same classifier, not pixels.
        fill: of a2mim, what hidden pixels show: "mean", the image's mean colour, or "zero".
        mask_layer: of a2mim, where the mask token goes; None: 0 in a transformer, 3 in others.
        token_mode: of a2mim, "add", "gated", "replace" or "none"; None: gated in a convolutional
            network, add in a transformer.
        token_gamma: of a2mim, what the gate starts from.
        decoder_kernel: of a2mim, side of the last convolution, odd.
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
    output_stride: int | None = None
    decoder_dim: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    early_layer: int | None = None
    branch_depth: int = 2
    shared_rel_pos: bool = True
    shared_head: bool = False
    fill: str = "mean"
    mask_layer: int | None = None
    token_mode: str | None = None
    token_gamma: float = 1e-6
    decoder_kernel: int = 1
    weights: str = ""

    def __post_init__(self) -> None:
        for name, known in (
            ("fill", ("mean", "zero")),
            ("token_mode", (None, "add", "gated", "replace", "none")),
            ("output_stride", (None, 8, 16, 32)),
        ):
            value = getattr(self, name)
            if value not in known:
                names = ", ".join(repr(one) for one in known if one is not None)
                raise ValueError(f"model.{name} must be one of {names}, got {value!r}")
        if self.decoder_kernel < 1 or self.decoder_kernel % 2 == 0:
            raise ValueError(f"model.decoder_kernel must be odd, got {self.decoder_kernel}")
        if self.branch_depth < 1:
            raise ValueError(f"model.branch_depth must be at least 1, got {self.branch_depth}")

    def timm_options(self) -> dict[str, int | float | bool]:
        """The keyword arguments that timm.create_model gets, besides img_size."""
        names = ["patch_size", "embed_dim", "depth", "num_heads", "class_token", "reg_tokens"]
        names += ["init_values", "output_stride"]
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}
