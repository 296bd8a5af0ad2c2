"""Checks and kernel arguments shared by the ops that read images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clustermim_fast.ops import _backend, _checks

IMAGE_DTYPES = (torch.uint8, *_checks.FLOATING)
PATCH_ORDERS = ("hwc", "chw")
TO_CHANNELS_FIRST = "pass images.permute(0, 3, 1, 2)"


def require_images(op: str, images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """``images`` [B, C, H, W] of an accepted dtype whose sides are multiples of ``patch_size``."""
    _checks.require_tensor(op, "images", images, dtypes=IMAGE_DTYPES, ndim=4, shape="[B, C, H, W]")
    integral = isinstance(patch_size, (int, np.integer)) and not isinstance(patch_size, bool)
    if not integral or patch_size < 1:
        raise _checks.bad_value(op, "patch_size", "an int >= 1", repr(patch_size))
    if images.shape[1] == 0:
        raise _checks.bad_value(op, "images", "[B, C, H, W] with C >= 1", tuple(images.shape))
    height, width = images.shape[2:]
    if height % patch_size or width % patch_size:
        raise _checks.bad_value(
            op,
            "images",
            f"[B, C, H, W] with H and W multiples of patch_size = {patch_size}",
            f"H = {height}, W = {width}",
            size_remedy(images),
        )
    return images


def size_remedy(images: torch.Tensor) -> str:
    """What to do about ``images`` [B, C, H, W] whose sides no patch divides."""
    if images.shape[3] <= 4 < images.shape[1]:
        return f"the channels seem to stand last, {TO_CHANNELS_FIRST}"
    return "crop or resize the images"


def require_patch_width(
    op: str, centroids: torch.Tensor, images: torch.Tensor, patch_size: int
) -> None:
    width = patch_size**2 * images.shape[1]
    if centroids.shape[1] != width:
        expected = f"[K, D] with D = patch_size^2 * C = {width}"
        turned = centroids.shape[1] == patch_size**2 * images.shape[3]
        remedy = f"or, if the channels of images stand last, {TO_CHANNELS_FIRST}" if turned else ""
        raise _checks.bad_value(op, "centroids", expected, tuple(centroids.shape), remedy)


def channel_values(
    op: str, arg: str, values: Any, channels: int, *, positive: bool = False
) -> list[float] | None:
    """``mean`` or ``std`` as a list of one float a channel, or None."""
    if values is None:
        return None
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().flatten().tolist()
    if isinstance(values, (int, float)):
        values = [values]
    try:
        floats = [float(v) for v in values]
    except TypeError:
        expected = "a sequence of floats, one a channel"
        raise _checks.bad_type(op, arg, expected, type(values).__name__) from None
    if len(floats) == 1:
        floats = floats * channels
    if len(floats) != channels:
        raise _checks.bad_value(
            op, arg, f"{channels} values, one a channel", f"{len(floats)} values"
        )
    lowest = torch.finfo(torch.float32).tiny
    if not all(math.isfinite(v) and (v >= lowest or not positive) for v in floats):
        expected = "finite and > 0" if positive else "finite"
        raise _checks.bad_value(op, arg, expected, floats)
    return floats


def mean_and_std(
    op: str, mean: Any, std: Any, channels: int
) -> tuple[list[float] | None, list[float] | None]:
    """Both as lists of one float a channel, or both None: half of the two is a slip."""
    means = channel_values(op, "mean", mean, channels)
    stds = channel_values(op, "std", std, channels, positive=True)
    if (means is None) != (stds is None):
        absent, given, neutral = ("std", "mean", 1.0) if stds is None else ("mean", "std", 0.0)
        remedy = f"pass {absent}={neutral} if none is meant"
        raise _checks.bad_value(op, absent, f"given where {given} is", None, remedy)
    return means, stds


def num_patches(images: torch.Tensor, patch_size: int) -> int:
    return int((images.shape[2] // patch_size) * (images.shape[3] // patch_size))


def kernel_arguments(
    images: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
    patch_order: str,
) -> dict[str, Any]:
    """The arguments with which ``_core`` reads images in place, any memory format."""
    batch, channels, height, width = images.shape
    return dict(
        images=images.data_ptr(),
        images_dtype=_backend.DTYPE_CODES[images.dtype],
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        image_strides=tuple(images.stride()),
        patch_size=patch_size,
        mean=None if mean is None else list(mean),
        std=None if std is None else list(std),
        per_patch_norm=per_patch_norm,
        patch_order=patch_order,
    )
