"""Patches of images as rows that the Triton kernels read in place.

A row's values stand in the order in which they lie in memory, "chw" for planes and "hwc" for
channels that lie side by side; :func:`in_order` brings centroids to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

# Places in the tuple that a kernel gets: the images, their strides, patches of an image and of a
# line of them, patch size, channels, whether channels lie side by side, whether values are
# normalised, whether none is infinite or subnormal, then the channels' means, and their standard
# deviations' inverses in float64, as integers of the same bits.
B_STRIDE, C_STRIDE, H_STRIDE, W_STRIDE = (tl.constexpr(at) for at in range(1, 5))
LENGTH, ACROSS, PATCH, CHANNELS, PACKED, NORMALISED, NORMAL, MEANS = (
    tl.constexpr(at) for at in range(5, 13)
)
# 1 / 255 in two parts: a pixel times the first, of 9 bits, is exact.
HIGH = tl.constexpr(2.0**-8 + 2.0**-16)
LOW = tl.constexpr(1 / 255 - (2.0**-8 + 2.0**-16))


def image_arguments(
    images: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    normal: bool,
) -> tuple[object, ...]:
    _, channels, height, width = images.shape
    across = width // patch_size
    inverses = 1 / np.array(std or (), np.float32).astype(np.float64)
    return (
        images, *images.stride(), height // patch_size * across, across,
        tl.constexpr(patch_size), tl.constexpr(channels), tl.constexpr(is_packed(images)),
        tl.constexpr(mean is not None), tl.constexpr(normal),
        *(mean or ()), *inverses.view(np.int64).tolist(),
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
def of_channel(
    numbers, channel, FIRST: tl.constexpr, C: tl.constexpr, TYPE: tl.constexpr = tl.float32
):
    """The numbers that begin at place FIRST of a tuple, by channel."""
    values = tl.zeros(channel.shape, TYPE) + numbers[FIRST]
    for c in tl.static_range(1, C):
        values = tl.where(channel == c, numbers[FIRST + c], values)
    return values


@triton.jit
def _quotient(values, inverse, NORMAL: tl.constexpr):
    """float64 of what float32 rounds values / std to; inverse: 1 / std in float64.

    The product is off by 2^-52 of itself, a quotient of two numbers of 24 bits at least 2^-49 from
    where float32's rounding changes, or exactly there, but then the result is subnormal, and the
    quotient has 24 bits: rounded to 50 it is right.
    """
    bits = (values.to(tl.float64) * inverse).to(tl.int64, bitcast=True)
    if NORMAL:
        return ((bits + 2**28) & -(2**29)).to(tl.float64, bitcast=True)
    else:
        near = ((bits + 4) & -8).to(tl.float64, bitcast=True)
        return near.to(tl.float32).to(tl.float64)


@triton.jit
def image_values(source, places, ds, mask, WIDE: tl.constexpr):
    """float32 numbers, each step of the normalisation rounded as the op promises, in float64 where
    ``WIDE``; 0 outside ``mask``."""
    C: tl.constexpr = source[CHANNELS]
    values = tl.load(source[0] + places, mask=mask, other=0).to(tl.float32)
    if source[0].dtype.element_ty == tl.uint8:
        values = values * HIGH + values * LOW  # off by 2^-40, and never so near to a boundary
    if source[NORMALISED]:
        channel = image_channels(source, ds)
        values = values - of_channel(source, channel, MEANS, C)
        inverse = of_channel(source, channel, MEANS + C, C, tl.int64).to(tl.float64, bitcast=True)
        values = tl.where(mask, _quotient(values, inverse, source[NORMAL]), 0.0)
    return values.to(tl.float64 if WIDE else tl.float32)
