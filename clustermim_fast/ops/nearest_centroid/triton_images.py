"""Patches of images as rows that the Triton kernels read in place.

A row's values stand in the order in which they lie in memory, "chw" for planes and "hwc" for
channels that lie side by side; :func:`in_order` brings centroids to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

# Places in the tuple that a kernel gets: the images, their strides, patches of an image and of a
# line of them, patch size, channels, whether channels lie side by side, whether values are
# normalised, then the channels' means and standard deviations.
B_STRIDE, C_STRIDE, H_STRIDE, W_STRIDE = (tl.constexpr(at) for at in range(1, 5))
LENGTH, ACROSS, PATCH, CHANNELS, PACKED, NORMALISED, MEANS = (
    tl.constexpr(at) for at in range(5, 12)
)


def image_arguments(
    images: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[object, ...]:
    _, channels, height, width = images.shape
    across = width // patch_size
    return (
        images, *images.stride(), height // patch_size * across, across,
        tl.constexpr(patch_size), tl.constexpr(channels), tl.constexpr(is_packed(images)),
        tl.constexpr(mean is not None), *(mean or ()), *(std or ()),
    )  # fmt: skip


def is_packed(images: torch.Tensor) -> bool:
    """Whether the channels of a pixel lie side by side, and pixels of a line do."""
    channels = images.shape[1]
    return channels > 1 and images.stride(1) == 1 and images.stride(3) == channels


def memory_order(images: torch.Tensor) -> str:
    """The patch order in which kernels read rows of ``images``."""
    return "hwc" if is_packed(images) else "chw"


def in_order(rows: torch.Tensor, channels: int, order: str, wanted: str) -> torch.Tensor:
    """Rows [K, p * p * C] in another patch order."""
    if order == wanted or channels == 1:
        return rows
    split = (-1, channels) if order == "hwc" else (channels, -1)
    return rows.unflatten(1, split).transpose(1, 2).flatten(1)


@triton.jit
def image_starts(source, rows):
    """int64 places of the patches' first pixels."""
    P: tl.constexpr = source[PATCH]
    image, patch = rows // source[LENGTH], rows % source[LENGTH]
    top, left = patch // source[ACROSS], patch % source[ACROSS]
    corner = top.to(tl.int64) * (P * source[H_STRIDE]) + left.to(tl.int64) * (P * source[W_STRIDE])
    return image.to(tl.int64) * source[B_STRIDE] + corner


@triton.jit
def image_places(source, ds):
    """int64 places of a patch's values, counted from its first."""
    P: tl.constexpr = source[PATCH]
    C: tl.constexpr = source[CHANNELS]
    ds = ds.to(tl.int64)
    if source[PACKED]:
        return ds // (P * C) * source[H_STRIDE] + ds % (P * C)
    else:
        line = ds // (P * P) * source[C_STRIDE] + ds // P % P * source[H_STRIDE]
        return line + ds % P * source[W_STRIDE]


@triton.jit
def image_channels(source, ds):
    """The channels of a patch's values."""
    P: tl.constexpr = source[PATCH]
    C: tl.constexpr = source[CHANNELS]
    return ds % C if source[PACKED] else ds // (P * P)


@triton.jit
def of_channel(numbers, channel, FIRST: tl.constexpr, C: tl.constexpr):
    """The float32 numbers that begin at place FIRST of a tuple, by channel."""
    values = tl.zeros(channel.shape, tl.float32) + numbers[FIRST]
    for c in tl.static_range(1, C):
        values = tl.where(channel == c, numbers[FIRST + c], values)
    return values


@triton.jit
def image_values(source, places, ds, mask):
    """float32, each step of the normalisation rounded as the op promises; 0 outside ``mask``."""
    C: tl.constexpr = source[CHANNELS]
    values = tl.load(source[0] + places, mask=mask, other=0).to(tl.float32)
    if source[0].dtype.element_ty == tl.uint8:
        values = tl.div_rn(values, 255.0)
    if source[NORMALISED]:
        channel = image_channels(source, ds)
        values = values - of_channel(source, channel, MEANS, C)
        values = tl.div_rn(values, of_channel(source, channel, MEANS + C, C))
        values = tl.where(mask, values, 0.0)
    return values
