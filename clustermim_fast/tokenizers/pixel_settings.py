"""Checks of a pixel tokenizer's settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clustermim_fast.tokenizers.image_rows import PatchSettings


def require_count(name: str, value: Any) -> int:
    """``value`` as an int >= 1."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"tokenizer: {name} must be an int >= 1, got {value!r}")
    return int(value)


def channel_tuple(name: str, values: Any) -> tuple[float, ...] | None:
    """``mean`` or ``std`` as floats."""
    if values is None:
        return None
    if isinstance(values, torch.Tensor):
        values = values.flatten().tolist()
    floats = (values,) if isinstance(values, (int, float)) else tuple(values)
    return tuple(float(v) for v in floats)


def grid_of(patch_size: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of patches of an image of this size."""
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"{height} x {width} pixels are not a multiple of patch_size = {patch_size}"
        )
    return height // patch_size, width // patch_size


def read_settings(
    patch_size: Any, mean: Any, std: Any, per_patch_norm: Any, patch_order: str
) -> PatchSettings:
    """Settings from a user's values."""
    return PatchSettings(
        require_count("patch_size", patch_size),
        channel_tuple("mean", mean),
        channel_tuple("std", std),
        bool(per_patch_norm),
        patch_order,
    )


def check_settings(settings: PatchSettings) -> None:
    """Raise ValueError for settings that no images can have."""
    require_choice("patch_order", settings.patch_order, ("hwc", "chw"))
    for name in ("mean", "std"):
        values = getattr(settings, name)
        if values is not None and not all(math.isfinite(v) for v in values):
            raise ValueError(f"tokenizer: {name} must be finite, got {values}")
    if settings.std is not None and min(settings.std) <= 0:
        raise ValueError(f"tokenizer: std must be > 0, got {settings.std}")
    if (settings.mean is None) != (settings.std is None):
        absent, given, neutral = ("std", "mean", 1.0) if settings.mean else ("mean", "std", 0.0)
        raise ValueError(
            f"tokenizer: {absent} must be given where {given} is, got None; "
            f"pass {absent}={neutral} if none is meant"
        )


def check_channels(settings: PatchSettings, channels: int) -> None:
    """Raise ValueError when mean or std have another number of values than there are channels."""
    for name in ("mean", "std"):
        values: Sequence[float] | None = getattr(settings, name)
        if values is not None and len(values) not in (1, channels):
            raise ValueError(
                f"tokenizer: {name} must have one value a channel ({channels}), got {values}"
            )


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"tokenizer: {name} must be one of {expected}, got {value!r}")
