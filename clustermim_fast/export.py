"""Write an encoder as a folder for ``timm.create_model("local-dir:DIR", pretrained=True)``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

__all__ = ["encoder_arguments", "export_timm"]

Encoder = VisionTransformer | Beit | ResNet | ConvNeXt
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def export_timm(
    encoder: nn.Module,
    out_dir: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float = 1.0,
    image_size: tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
    tokenizer_file: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Export a timm VisionTransformer, Beit, ResNet or ConvNeXt without classifier.

    Args:
        encoder: made by ``timm.create_model``; its ``num_classes`` must be 0.
        out_dir: gets model.safetensors and config.json, and tokenizer/tokenizer.safetensors where
            there is one.
        mean, std: the run's normalisation in [0, 1] pixel units, for ``pretrained_cfg``; those that
            come with the architecture's name belong to somebody else's weights.
        crop_pct: share of the resized image that the evaluation view keeps.
        image_size: the run's (height, width) in pixels, for networks that take any; a transformer's
            is its own.
        model_args: timm's keyword arguments; None reads them off the encoder.
        about: facts for config.json (run, step, method), under the key "clustermim_fast".

    Returns the folder. The files are read back and the features of a random image compared.

    Raises:
        ValueError: the encoder has a classifier, is of another kind or does not come back equal.
    """
    if not isinstance(encoder, VisionTransformer | Beit | ResNet | ConvNeXt):
        raise ValueError(
            "encoder: expected a timm VisionTransformer, Beit, ResNet or ConvNeXt, got "
            f"{type(encoder).__name__}"
        )
    if encoder.num_classes != 0:
        raise ValueError(
            f"encoder: expected num_classes=0, got num_classes={encoder.num_classes}; "
            "call encoder.reset_classifier(0)"
        )
    arguments = dict(model_args) if model_args is not None else encoder_arguments(encoder)
    source: Any = getattr(encoder, "pretrained_cfg", None) or {}
    # A VisionTransformer made without a name is told apart by its arguments alone.
    architecture = str(source.get("architecture", "vit_base_patch16_224"))
    convolutional = isinstance(encoder, ResNet | ConvNeXt)
    size = image_size or (224, 224)
    if not convolutional:
        size = tuple(encoder.patch_embed.img_size)  # type: ignore[union-attr, arg-type]
    layers = ("first_conv", "classifier") if convolutional else ()
    pretrained_cfg = {
        "tag": "clustermim_fast",
        "custom_load": False,
        "input_size": [3, *(int(side) for side in size)],
        "fixed_input_size": not convolutional,
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **{name: source[name] for name in layers if name in source},
    }
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.num_features,
        "global_pool": arguments.get("global_pool", ""),
        "model_args": arguments,
        "pretrained_cfg": pretrained_cfg,
        "clustermim_fast": dict(about or {}),
    }
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    # Not save_file, whose files only their owner may read: an export is made to be shared.
    (folder / f"{WEIGHTS}.partial").write_bytes(save(state, metadata={"format": "pt"}))
    os.replace(folder / f"{WEIGHTS}.partial", folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer_file is not None:
        # In a folder of its own: some versions of timm stumble over two weight files in one.
        (folder / "tokenizer").mkdir(exist_ok=True)
        shutil.copyfile(tokenizer_file, folder / "tokenizer" / "tokenizer.safetensors")
    _require_equal(encoder, folder, architecture, arguments, size)
    return folder


def encoder_arguments(encoder: Encoder) -> dict[str, Any]:
    """The keyword arguments with which ``timm.create_model`` makes this encoder again."""
    # Newer timm keeps what create_model was given; it covers what cannot be read off.
    recorded = getattr(encoder, "_model_args", {})
    kept = {k: v for k, v in recorded.items() if isinstance(v, (bool, int, float, str))}
    kept.pop("num_classes", None)
    if isinstance(encoder, ResNet | ConvNeXt):
        network: Any = encoder
        stride = int(network.feature_info[-1]["reduction"])
        return {**kept, **({"output_stride": stride} if stride < 32 else {})}
    blocks: Any = encoder.blocks
    embed = encoder.patch_embed
    arguments = {
        **kept,
        "img_size": [int(side) for side in embed.img_size],
        "patch_size": int(embed.patch_size[0]),
        "embed_dim": int(encoder.embed_dim),
        "depth": len(blocks),
        "num_heads": int(blocks[0].attn.num_heads),
        "global_pool": encoder.global_pool,
    }
    if isinstance(encoder, Beit):
        return {
            **arguments,
            # Whatever LayerScale began with: it is loaded.
            "init_values": None if blocks[0].gamma_1 is None else 1.0,
            "use_abs_pos_emb": encoder.pos_embed is not None,
            "use_rel_pos_bias": blocks[0].attn.relative_position_bias_table is not None,
            "use_shared_rel_pos_bias": encoder.rel_pos_bias is not None,
        }
    return {
        **arguments,
        "class_token": encoder.cls_token is not None,
        "reg_tokens": int(encoder.num_reg_tokens),
        "fc_norm": not isinstance(encoder.fc_norm, torch.nn.Identity),
    }


@torch.no_grad()
def _require_equal(
    encoder: Any,
    folder: Path,
    architecture: str,
    arguments: dict[str, Any],
    size: tuple[int, ...],
) -> None:
    try:
        again: Any = timm.create_model(architecture, num_classes=0, **arguments)
        again.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"model_args: {arguments} do not make this encoder again ({error}); "
            "pass all that timm.create_model was called with"
        ) from error
    parameter = next(encoder.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *size, generator=generator).to(parameter)
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    ours = encoder.forward_features(image)
    for module, training in modes:
        module.training = training
    theirs = again.to(parameter).eval().forward_features(image)
    if not torch.equal(ours, theirs):
        raise ValueError(
            f"encoder: features differ by up to {(ours - theirs).abs().max():.3g} after reading it "
            "back; pass as model_args all that timm.create_model was called with"
        )
