"""RandomResizedCrop and flip whose parameters are a function of (seed, epoch, sample)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from clustermim_fast import counter_rng

_TRIES = 10


@dataclass(frozen=True)
class CropParams:
    """Boxes int64 [B, 4] (top, left, height, width) in the pixels of each image; flip bool [B]."""

    boxes: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]


def crop_params(
    seed: int,
    epoch: int,
    samples: npt.ArrayLike,
    heights: npt.ArrayLike,
    widths: npt.ArrayLike,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> CropParams:
    """Draw the crop of each sample as torchvision's RandomResizedCrop defines it.

    Area share uniform in `scale`, log aspect ratio uniform in the logs of `ratio`; the first of ten
    tries that fits into the image, else the largest centred box whose ratio is allowed.

    Args:
        samples: int64 [B], data set ids.
        heights, widths: [B], pixels of the stored images.
    """
    height = np.asarray(heights, dtype=np.float64)[:, None]
    width = np.asarray(widths, dtype=np.float64)[:, None]
    draws = counter_rng.uniform(seed, epoch, samples, counter_rng.STREAM_CROP, 2 * _TRIES + 3)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:, :_TRIES])
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    box_w = np.round(np.sqrt(area * aspect))
    box_h = np.round(np.sqrt(area / aspect))
    fits = (box_w >= 1) & (box_w <= width) & (box_h >= 1) & (box_h <= height)
    first = fits.argmax(axis=1)[:, None]
    found = fits.any(axis=1)
    box_h = np.take_along_axis(box_h, first, axis=1)[:, 0]
    box_w = np.take_along_axis(box_w, first, axis=1)[:, 0]
    height, width = height[:, 0], width[:, 0]
    top = np.floor(draws[:, -3] * (height - box_h + 1))
    left = np.floor(draws[:, -2] * (width - box_w + 1))

    whole_h = np.clip(np.round(width / ratio[0]), 1, height)
    whole_w = np.clip(np.round(height * ratio[1]), 1, width)
    box_h = np.where(found, box_h, whole_h)
    box_w = np.where(found, box_w, whole_w)
    top = np.where(found, top, np.floor((height - whole_h) / 2))
    left = np.where(found, left, np.floor((width - whole_w) / 2))
    boxes = np.stack([top, left, box_h, box_w], axis=1).astype(np.int64)
    mirrored = (draws[:, -1] < 0.5) if flip else np.zeros(len(boxes), dtype=bool)
    return CropParams(boxes, mirrored)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, h, w] -> uint8 [3, H, W], bicubic, antialiased; the image itself where h, w = H,
    W.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    return transforms.resize(image, list(size), InterpolationMode.BICUBIC, antialias=True)


def evaluation_view(image: Tensor, size: tuple[int, int], keep: float) -> Tensor:
    """Resize uint8 [3, h, w] so that its centre H x W is a share `keep` of each side, and cut
    it.
    """
    height, width = image.shape[-2:]
    target_h, target_w = size[0] / keep, size[1] / keep
    factor = max(target_h / height, target_w / width)
    resized = resize(
        image, (max(size[0], round(height * factor)), max(size[1], round(width * factor)))
    )
    top = (resized.shape[-2] - size[0]) // 2
    left = (resized.shape[-1] - size[1]) // 2
    return resized[:, top : top + size[0], left : left + size[1]]
