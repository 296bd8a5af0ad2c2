"""timm encoders by name, refused with a reason where a method is not defined on them."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Collection
from typing import Any, cast

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

_NAMES_THAT_WORK = (
    "vit_tiny_patch16_224, vit_small_patch16_224, vit_base_patch16_224, vit_large_patch16_224, "
    "deit_small_patch16_224, deit3_small_patch16_224, vit_small_patch14_reg4_dinov2"
)

State = dict[str, Tensor]
_BEIT_NAMES = ("beit_base_patch16_224", "beit_large_patch16_224", "beitv2_base_patch16_224")


def create_vit(name: str, **options: Any) -> VisionTransformer:
    """A timm VisionTransformer without classifier whose last layer is its final norm over all
    tokens.

    Args:
        name: a timm model name. Its class must be VisionTransformer itself, with a plain PatchEmbed
            and an absolute position embedding; [cls] and register tokens as the name has them.
        options: timm's keyword arguments (img_size, patch_size, embed_dim, depth, num_heads, ...).

    Raises:
        ValueError: unknown name (with near misses), or an encoder of another kind, with the reason
            and names that work.
    """
    require_plain_vit(name)
    options = {"num_classes": 0, "fc_norm": False, **options}
    with_cls = options.get("class_token", _probe(name).has_class_token)
    # Pooling heads (map, prr) have weights that pretraining does not train; norm before pooling
    # (fc_norm=False) makes the token features and the pooled feature the same quantity.
    options.setdefault("global_pool", "token" if with_cls else "avg")
    encoder: VisionTransformer = _made_by_timm(name, options)
    _require_divisible(encoder)
    return encoder


def create_beit(name: str, *, shared_rel_pos: bool = True, **options: Any) -> Beit:
    """A timm Beit without classifier whose last layer is its final norm over all tokens.

    Args:
        name: a timm model name whose class is Beit.
        shared_rel_pos: one relative position bias for all blocks; False: one a block.
        options: timm's keyword arguments.

    Raises:
        ValueError: unknown name or an encoder of another kind, with the reason and names that work.
    """
    probe = _probe(name)
    if type(probe) is not Beit:
        raise ValueError(
            f"model.encoder = {name!r} cannot be used: it is a {type(probe).__name__}, and the "
            "method is defined on a Beit, with relative positions. Names that work: "
            f"{', '.join(_BEIT_NAMES)}"
        )
    # With "token" the norm stands before pooling: token features are the pooled ones' own.
    options = {
        "num_classes": 0,
        "global_pool": "token",
        "use_rel_pos_bias": not shared_rel_pos,
        "use_shared_rel_pos_bias": shared_rel_pos,
        **options,
    }
    encoder: Beit = _made_by_timm(name, options)
    _require_divisible(encoder)
    return encoder


CNN = ResNet | ConvNeXt


def is_convolutional(name: str) -> bool:
    """Whether a timm name is a ResNet or a ConvNeXt; ValueError where it is no timm model."""
    return type(_probe(name)) in (ResNet, ConvNeXt)


def create_cnn(name: str, img_size: tuple[int, int], **options: Any) -> CNN:
    """A timm ResNet or ConvNeXt without classifier; a ConvNeXt's last norm, which stands behind its
    pooling, is frozen.

    Raises:
        ValueError: another kind of network, or sides that are no multiples of its stride.
    """
    if not is_convolutional(name):
        raise ValueError(f"model.encoder = {name!r} is neither a ResNet nor a ConvNeXt of timm")
    encoder = _made_by_timm(name, {"num_classes": 0, **options})
    stride = int(encoder.feature_info[-1]["reduction"])
    if any(side % stride for side in img_size):
        raise ValueError(
            f"data.image_size {img_size} is not a multiple of {stride}, the stride of {name}; "
            "choose another size, or model.output_stride = 8 or 16"
        )
    if isinstance(encoder, ConvNeXt):
        encoder.head.requires_grad_(False)
    return cast("CNN", encoder)


def _made_by_timm(name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=False, **options)
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"model.encoder: timm cannot make {name!r} with {options}: {error}"
        ) from error


def require_plain_vit(name: str) -> None:
    """Refuse a timm name on which masked pretraining with visible tokens only is not defined."""
    probe = _probe(name)
    reason = None
    if type(probe) is not VisionTransformer:
        reason = (
            f"it is a {type(probe).__name__}, and an encoder that sees only the visible tokens "
            "must be a plain VisionTransformer (no windows, no convolution stages, no relative "
            "positions)"
        )
    elif type(probe.patch_embed) is not PatchEmbed:
        reason = (
            f"its patch embedding is a {type(probe.patch_embed).__name__}, whose tokens overlap, "
            "so that hidden patches would leak into visible ones"
        )
    elif probe.pos_embed is None:
        reason = "it has no absolute position embedding"
    if reason is not None:
        raise ValueError(
            f"model.encoder = {name!r} cannot be used: {reason}. Names that work: "
            f'{_NAMES_THAT_WORK}; timm.list_models("vit_*") lists more'
        )


def _probe(name: str, setting: str = "model.encoder") -> Any:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"for instance {_NAMES_THAT_WORK}"
        raise ValueError(f"{setting} = {name!r} is not a timm model; {hint}")
    with torch.device("meta"):  # the shape of the network, without memory or time for its weights
        return timm.create_model(name, pretrained=False)


def _require_divisible(encoder: VisionTransformer | Beit) -> None:
    embed = encoder.patch_embed
    for side, patch in zip(embed.img_size, embed.patch_size, strict=True):
        if side % patch:
            raise ValueError(
                f"img_size {tuple(embed.img_size)} is not a multiple of patch_size {patch}: "
                f"choose data.image_size = {max(1, round(side / patch)) * patch} or another "
                "patch_size"
            )


def create_backbone(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Any timm model without classifier, in eval mode; ViTs take images of any size.

    Args:
        name: a timm name, with or without a tag (``vit_small_patch16_224.dino``).
        pretrained: fetch the weights of the tag, as timm does.
        options: timm's keyword arguments.

    Raises:
        ValueError: unknown name (with near misses), or weights that cannot be fetched.
    """
    probe = _probe(name, "model")
    if "dynamic_img_size" in inspect.signature(type(probe).__init__).parameters:
        options = {"dynamic_img_size": True, **options}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options).eval()
    except TypeError as error:
        raise ValueError(f"model: timm cannot make {name!r} with {options}: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise
        raise ValueError(
            f"model: the weights of {name!r} could not be fetched ({error}); give weights=FILE, "
            "a checkpoint on this machine"
        ) from error


def create_for_state(name: str, names: Collection[str], **options: Any) -> nn.Module:
    """The network of a timm name with the parts that a weight file with tensors ``names`` has.

    ViTs and Beits end with their norm over all tokens, as pretraining leaves them; a Beit's
    relative positions are shared by all blocks or each block's own, as in the file.
    """
    probe = _probe(name, "model")
    if type(probe) is VisionTransformer and type(probe.patch_embed) is PatchEmbed:
        options = {"fc_norm": False, **options}
        options.setdefault("global_pool", "token" if probe.has_class_token else "avg")
    if type(probe) is Beit:
        shared = "rel_pos_bias.relative_position_bias_table" in names
        return create_beit(name, shared_rel_pos=shared, **options).eval()
    return create_backbone(name, **options)


def timm_filter(name: str, module: nn.Module) -> Callable[[State], State]:
    """What timm does to checkpoints of this architecture's codebases: their names, other sizes."""
    family = sys.modules[timm.models.model_entrypoint(name).__module__]
    adapt: Any = getattr(family, "checkpoint_filter_fn", None)
    return (lambda state: state) if adapt is None else (lambda state: adapt(state, module))
