"""uint8 pixels as the filter's operands: p - 128 is exact in float16, whatever mean and std are.

Bounds: ``docs/certificate.md``, section 8 (images).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
import triton.language as tl

MIDDLE = tl.constexpr(128)
# Places in a line's tuple: s, then the middles and the factors of the channels.
POWER, MIDDLES = tl.constexpr(0), tl.constexpr(1)
_WIDEST = 16.0  # quotient of two channels' factors beyond which rows take the general way


@dataclass(frozen=True)
class Line:
    """The line on which the values of each channel's pixels lie, but for their rounding.

    In the frame x' = (x - middle) s, s a power of two, pixel p is factor (p - 128).
    arguments: s, middles, factors; all float32's. rho_square: of rows, |x' - xr|^2 at most.
    """

    arguments: tuple[float, ...]
    rho_square: float


def _rounded(values: Any) -> Any:
    return values.astype(np.float32).astype(np.float64)


@functools.lru_cache(maxsize=32)
def line_of(
    patch_size: int, channels: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Line | None:
    """None where mean and std are too far from usual ones."""
    pixels = np.arange(256, dtype=np.float32)
    with np.errstate(all="ignore"):
        table = np.repeat((pixels / np.float32(255))[None], channels, 0)
        if mean is not None and std is not None:
            means, deviations = (np.array(v, np.float32)[:, None] for v in (mean, std))
            table = (table - means) / deviations
        exact = table.astype(np.float64)
        slopes = _rounded((exact[:, 255] - exact[:, 0]) / 255)
        middles = _rounded(exact[:, 0] + MIDDLE.value * slopes)
        points = middles[:, None] + slopes[:, None] * (pixels - MIDDLE.value)
        eta = abs(exact - points).max(1)
        spread = float(slopes.max() / slopes.min())
        sizes = abs(exact[exact != 0])
        # Comparisons are false for NaN.
        usual = sizes.min() > 2.0**-120 and sizes.max() < 2.0**120 and spread <= _WIDEST
    if not (usual and 2.0**-60 < slopes.max() < 2.0**60):
        return None
    power = 2.0 ** -math.frexp(slopes.max())[1]
    rho_square = float((eta * power) @ (eta * power)) * patch_size**2 * (1 + 2.0**-20)
    factors = slopes * power
    return Line((power, *middles.tolist(), *factors.tolist()), rho_square)


def pixel_line(
    patch_size: int, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Line | None:
    of_mean, of_std = (None if values is None else tuple(values) for values in (mean, std))
    return line_of(patch_size, channels, of_mean, of_std)


@triton.jit
def pixel_operands(images, places, mask):
    """float16 p - 128; anything finite outside ``mask``."""
    pixels = tl.load(images + places, mask=mask, other=0)
    # The float16 of these bits is 1024 + p.
    return (pixels.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + MIDDLE)
