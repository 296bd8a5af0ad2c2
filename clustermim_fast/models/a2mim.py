"""A2MIM (Li et al.; ICML 2023): predict hidden pixels with a transformer or a convolutional net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.weight_init import trunc_normal_
from timm.models.resnet import ResNet
from torch import Tensor, nn

from clustermim_fast.encoders import create_cnn, create_vit, is_convolutional
from clustermim_fast.models.config import ModelConfig
from clustermim_fast.models.registry import register_method
from clustermim_fast.patch_grid import expand_mask, patchify


@register_method("a2mim")
class A2MIM(nn.Module):
    """A timm VisionTransformer, ResNet or ConvNeXt that sees hidden squares in the image's mean
    colour, a learned token on its feature map, and one convolution back to pixels.

    The mean is that of the whole image, hidden squares included (as released). At `mask_layer` the
    map z becomes z + T m ("add"), z (1 - m) + gamma z m + T m ("gated", gamma one number a channel
    that starts at 1e-6, so that hidden places begin almost erased), z (1 - m) + T m ("replace") or
    stays ("none"). Layer 0 of a transformer is its patch embedding, before positions and [cls], and
    layer l stands before its l-th block; layer l of a convolutional network is the input of its
    stage l, from 0; in a ConvNeXt after the stage's downsampling.

    Where this differs from the released code: timm's vit_* has learned absolute positions and no
    relative ones; nothing is dropped in pretraining (a run resumes bit for bit); both forms of the
    mean fill hide the masked squares (one there hides the visible ones).
    """

    objective = "images"
    mask_kinds = ("random", "block", "inverse_block")
    undecayed = ("encoder.pos_embed", "encoder.cls_token", "encoder.reg_token")

    def __init__(
        self, config: ModelConfig, image_size: tuple[int, int], num_clusters: int | None = None
    ) -> None:
        super().__init__()
        self.encoder: Any
        self.convolutional = is_convolutional(config.encoder)
        create = create_cnn if self.convolutional else create_vit
        self.encoder = create(config.encoder, img_size=image_size, **self._options(config))
        last = 3 if self.convolutional else len(self.encoder.blocks)
        self.mask_layer = 3 * self.convolutional if config.mask_layer is None else config.mask_layer
        if not 0 <= self.mask_layer <= last:
            raise ValueError(
                f"model.mask_layer must be one of the layers 0 to {last}, got {self.mask_layer}"
            )
        (width, stride), (token_width, token_stride) = self._maps()
        self.patch_size = config.patch_size or token_stride
        height, columns = (side // self.patch_size for side in image_size)
        self.grid = (height, columns)
        if self.patch_size % token_stride:
            raise ValueError(
                f"model.patch_size = {self.patch_size}: masks are drawn in squares of that side, "
                f"and it must be a multiple of the {token_stride} pixels of a place at layer "
                f"{self.mask_layer} of {config.encoder}; choose one, or another model.mask_layer "
                "or model.output_stride"
            )
        self.fill = config.fill
        self.token_mode = config.token_mode or ("gated" if self.convolutional else "add")
        if self.token_mode != "none":
            self.mask_token = nn.Parameter(torch.empty(token_width))
            trunc_normal_(self.mask_token, std=0.02)
        if self.token_mode == "gated":
            self.gamma = nn.Parameter(torch.full((token_width,), config.token_gamma))
        kernel = config.decoder_kernel
        convolution = nn.Conv2d(width, 3 * stride**2, kernel, padding=kernel // 2)
        trunc_normal_(convolution.weight, std=0.02)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(convolution, nn.PixelShuffle(stride))

    def _options(self, config: ModelConfig) -> dict[str, Any]:
        options: dict[str, Any] = config.timm_options()
        if self.convolutional:  # there it is the side of the squares in which masks are drawn
            options.pop("patch_size", None)
        return options

    def _maps(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(channels, pixels of a place) of the last map and of the one that gets the token."""
        encoder, layer = self.encoder, self.mask_layer
        if not self.convolutional:
            both = int(encoder.embed_dim), int(encoder.patch_embed.patch_size[0])
            return both, both
        info = [(int(one["num_chs"]), int(one["reduction"])) for one in encoder.feature_info]
        if not isinstance(encoder, ResNet):
            return info[-1], info[layer]
        # Of a ResNet the first is the stem before its pooling; the first stage keeps its size.
        return info[-1], info[layer] if layer else (info[0][0], info[1][1])

    @staticmethod
    def defaults(encoder: str) -> dict[str, Any]:
        """The released settings of each kind of network, for those that a config leaves open."""
        values: dict[str, Any] = {
            "mask.kind": "random", "mask.ratio": 0.6, "mask.unit": 32, "loss.norm_pix_loss": False,
            "loss.spatial": "l1", "loss.fourier_weight": 0.1, "loss.fourier_focal": True,
            "loss.fourier_unmasked_weight": 0.0,
        }  # fmt: skip
        if is_convolutional(encoder):
            values |= {"loss.spatial": "focal_l1", "loss.fourier_unmasked_weight": 1e-3}
            name = encoder.partition(".")[0]
            if "convnext" in name or "resnet200" in name:
                values["loss.fourier_weight"] = 0.0
            elif "resnet101" in name or "resnet152" in name:
                values["loss.fourier_focal"] = False
            else:
                values["loss.fourier_weight"] = 0.5
        return values

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def forward(self, images: Tensor, mask: Tensor, visible: Tensor | None = None) -> Tensor:
        """The last feature map, float [B, D, H / stride, W / stride], for `head`.

        Args:
            images: float [B, 3, H, W], normalised.
            mask: bool [B, L], True = hidden.
            visible: not used: every position goes through the encoder.
        """
        height, width = images.shape[2:]
        where = expand_mask(mask, self.grid, (height, width))
        colour = images.mean((2, 3), keepdim=True) if self.fill == "mean" else images.new_zeros(())
        shown = torch.where(where, colour, images)
        return self.features(shown, lambda z: self.add_token(z, mask))

    def add_token(self, z: Tensor, mask: Tensor) -> Tensor:
        """A map [B, D, h, w], or tokens [B, L, D], with the mask token where patches are hidden."""
        if self.token_mode == "none":
            return z
        if z.dim() == 4:
            m = expand_mask(mask, self.grid, (z.shape[2], z.shape[3])).to(z.dtype)
            channels: tuple[int, ...] = (-1, 1, 1)
        else:
            m, channels = mask[..., None].to(z.dtype), (-1,)
        token = self.mask_token.to(z.dtype).view(channels) * m
        if self.token_mode == "replace":
            return z * (1 - m) + token
        if self.token_mode == "gated":
            return z * (1 - m) + self.gamma.to(z.dtype).view(channels) * z * m + token
        return z + token

    def features(self, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """timm's forward_features as a map [B, D, h, w], with `change` applied at mask_layer."""
        encoder, here = self.encoder, self.mask_layer
        if isinstance(encoder, ResNet):
            z = encoder.maxpool(encoder.act1(encoder.bn1(encoder.conv1(images))))
            for layer in range(4):
                stage = encoder.get_submodule(f"layer{layer + 1}")
                z = stage(change(z) if layer == here else z)
            return z
        if self.convolutional:
            z = encoder.stem(images)
            for layer, stage in enumerate(encoder.stages):
                z = stage.downsample(z)
                z = stage.blocks(change(z) if layer == here else z)
            return encoder.norm_pre(z)
        z = encoder.patch_embed(images)
        z = encoder.norm_pre(encoder._pos_embed(change(z) if here == 0 else z))
        prefix = int(encoder.num_prefix_tokens)
        for layer, block in enumerate(encoder.blocks, 1):
            if layer == here:
                z = torch.cat([z[:, :prefix], change(z[:, prefix:])], dim=1)
            z = block(z)
        return encoder.norm(z)[:, prefix:].transpose(1, 2).unflatten(2, self.grid)

    def patches(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted patches of every position, float [B, L, 3 p^2]; for pictures."""
        return patchify(self.head(self(images, mask)), self.patch_size)
