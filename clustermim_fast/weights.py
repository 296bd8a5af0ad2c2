"""timm encoders: creation with a refusal that helps, weight files with a verdict."""

from __future__ import annotations

import difflib
import inspect
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

_NAMES_THAT_WORK = (
    "vit_tiny_patch16_224, vit_small_patch16_224, vit_base_patch16_224, vit_large_patch16_224, "
    "deit_small_patch16_224, deit3_small_patch16_224, vit_small_patch14_reg4_dinov2"
)

State = dict[str, Tensor]

# What torch.load raises on files that are cut or of another kind.
_NOT_A_WEIGHT_FILE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    struct.error,
)


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
    try:
        encoder: VisionTransformer = timm.create_model(name, pretrained=False, **options)  # type: ignore[assignment]
    except (TypeError, AssertionError) as error:
        raise ValueError(
            f"model.encoder: timm cannot make {name!r} with {options}: {error}"
        ) from error
    _require_divisible(encoder)
    return encoder


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


def _require_divisible(encoder: VisionTransformer) -> None:
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


def timm_filter(name: str, module: nn.Module) -> Callable[[State], State]:
    """What timm does to checkpoints of this architecture's codebases: their names, other sizes."""
    family = sys.modules[timm.models.model_entrypoint(name).__module__]
    adapt: Any = getattr(family, "checkpoint_filter_fn", None)
    return (lambda state: state) if adapt is None else (lambda state: adapt(state, module))


@dataclass(frozen=True)
class Verdict:
    """What came of loading weights: names loaded, wanted but absent, present but not wanted."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]

    def line(self) -> str:
        """One line for the log."""
        text = f"{len(self.matched)} tensors loaded"
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                text += f"; {len(names)} {what} ({shown})"
        return text + ("; complete" if not self.missing else "")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weight file, safetensors or torch.load(weights_only=True): never unpickled.

    A nested dict is searched for the usual places ("model", "state_dict", "teacher"), and the
    prefixes "module.", "encoder." and "backbone." are taken off.

    Raises:
        ValueError: no such file, or a file that holds something other than tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"weights: no such file: {file}")
    state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    for key in ("model", "state_dict", "teacher", "encoder"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(
            f"weights: {file} holds a {type(state).__name__}, expected a dict of tensors"
        )
    return {_strip(str(name)): value for name, value in state.items() if isinstance(value, Tensor)}


def _read_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except SafetensorError as error:
        raise ValueError(f"weights: {file} is not a safetensors file: {error}") from error


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"weights: {file} holds Python objects besides tensors, which are never unpickled "
            "here; save its state dict alone, best as safetensors"
        ) from error
    except _NOT_A_WEIGHT_FILE as error:
        raise ValueError(f"weights: {file} cannot be read as tensors: {error}") from error


def _strip(name: str) -> str:
    for prefix in ("module.", "encoder.", "backbone."):
        name = name.removeprefix(prefix)
    return name


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    keep: tuple[str, ...] = (),
    adapt: Callable[[State], State] | None = None,
    complete: bool = False,
) -> Verdict:
    """Load a weight file into `module` and say what matched.

    Args:
        keep: names of `module` that are never overwritten (fixed position embeddings).
        adapt: renames and resamples what the file holds, see :func:`timm_filter`.
        complete: refuse a file that lacks a tensor of `module`.

    Raises:
        ValueError: a tensor of another shape or a missing one (all are named), or no tensor in
        common.
    """
    wanted = {name: value for name, value in module.state_dict().items() if name not in keep}
    state = read_state(path)
    if adapt is not None:
        try:
            state = adapt(state)
        except (RuntimeError, KeyError, AttributeError, AssertionError, IndexError) as error:
            raise ValueError(
                f"weights: {path} does not fit the model ({type(error).__name__}: {error})"
            ) from error
    state = {name: value for name, value in state.items() if name not in keep}
    matched = sorted(wanted.keys() & state.keys())
    wrong = [
        f"{name}: file {list(state[name].shape)}, model {list(wanted[name].shape)}"
        for name in matched
        if state[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(f"weights: {path} does not fit the model: " + "; ".join(wrong[:6]))
    if not matched:
        raise ValueError(
            f"weights: {path} has no tensor name in common with the model; it has "
            f"{', '.join(sorted(state)[:4]) or 'none'}, the model has "
            f"{', '.join(sorted(wanted)[:4])}"
        )
    missing = sorted(wanted.keys() - state.keys())
    verdict = Verdict(matched, missing, sorted(state.keys() - wanted.keys()))
    if complete and missing:
        raise ValueError(f"weights: {path} does not fill the model: {verdict.line()}")
    module.load_state_dict({name: state[name] for name in matched}, strict=False)
    return verdict
