"""Pictures of what a run sees and predicts, as Pillow images made of the pixels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

__all__ = [
    "Column",
    "atlas",
    "beside",
    "columns_of_images",
    "heat",
    "hide_patches",
    "keep_visible",
    "spectra",
    "token_colours",
    "token_maps",
]

HIDDEN = 0.62  # grey of a masked patch: neither black nor white, which images often hold
PAPER = 255
INK = (70, 74, 82)
RED = (208, 48, 48)


@dataclass(frozen=True)
class Column:
    """Images [N, 3, H, W], float in [0, 1], under one title."""

    title: str
    images: Tensor


def expand_mask(mask: Tensor, grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """bool [B, L] of patches -> bool [B, 1, H, W] of pixels."""
    pixels = mask.view(-1, 1, *grid).float()
    return F.interpolate(pixels, size=list(size), mode="nearest").bool()


def hide_patches(images: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Grey where ``mask`` [B, L] is True, float [B, 3, H, W] in [0, 1]."""
    return images.masked_fill(expand_mask(mask, grid, images.shape[-2:]), HIDDEN)


def keep_visible(images: Tensor, filled: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """``filled`` where ``mask`` [B, L] is True, ``images`` elsewhere."""
    return torch.where(expand_mask(mask, grid, images.shape[-2:]), filled, images)


def spectra(images: Tensor, like: Tensor) -> Tensor:
    """Log amplitude of the 2-D spectrum, zero frequency in the middle, as grey [B, 3, H, W].

    Mean over channels of ln |FFT|; black and white are the 1 % quantile and the largest value of
    the spectra of ``like``, so that pictures on one scale compare. Both are float [B, 3, H, W].
    """

    def log(pixels: Tensor) -> Tensor:
        amplitude = torch.fft.fft2(pixels.double()).abs().clamp_min(1e-6)
        return torch.fft.fftshift(amplitude.log().mean(1, keepdim=True), dim=(-2, -1))

    reference = log(like)
    low, high = reference.quantile(0.01), reference.max()
    grey = ((log(images) - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return grey.float().expand(-1, 3, -1, -1)


def heat(images: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images float [B, 3, H, W] in [0, 1], dark where weights [B, L] are low and red where high.

    Each image's own scale, from 0 to its largest weight.
    """
    share = weights.float() / weights.float().amax(1, keepdim=True).clamp_min(1e-30)
    share = F.interpolate(share.view(-1, 1, *grid), size=images.shape[-2:], mode="nearest")
    red = torch.tensor(RED).view(1, 3, 1, 1) / 255
    grey = images.mean(1, keepdim=True).expand_as(images)
    return (0.25 + 0.75 * (1 - 0.55 * share)) * (0.35 + 0.65 * share) * grey + 0.45 * share * red


def enlarge(images: Tensor, at_least: int) -> Tensor:
    """Whole-number enlargement to a side of at least ``at_least`` pixels, without smoothing."""
    factor = -(-at_least // max(images.shape[-2:]))
    return images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def to_picture(tensor: Tensor) -> Image.Image:
    """float [3, H, W] in [0, 1] -> Pillow image."""
    pixels = (tensor.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def columns_of_images(columns: list[Column], side: int = 128) -> Image.Image:
    """One line a sample, one titled column each; small images are enlarged without smoothing."""
    shown = [enlarge(column.images.float().cpu(), side) for column in columns]
    width = shown[0].shape[-1]
    gap = 6
    cells = torch.stack(shown, 1).flatten(0, 1)
    grid = make_grid(cells, nrow=len(columns), padding=gap, pad_value=1.0)
    font = ImageFont.load_default(size=max(15, width // 9))
    line = max(15, width // 9) + 12
    picture = Image.new("RGB", (grid.shape[2], grid.shape[1] + line), (PAPER,) * 3)
    picture.paste(to_picture(grid), (0, line))
    draw = ImageDraw.Draw(picture)
    for number, column in enumerate(columns):
        centre = gap + number * (width + gap) + width / 2
        draw.text((centre, line / 2 + 2), column.title, INK, font, anchor="mm")
    return picture


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures from left to right, their upper edges in line."""
    size = sum(picture.width for picture in pictures), max(picture.height for picture in pictures)
    sheet = Image.new("RGB", size, (PAPER,) * 3)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


def atlas(patches: Tensor, counts: Tensor, width: int = 960) -> Image.Image:
    """Every centroid as a patch, most used first; unused ones are framed in red.

    patches float [K, 3, p, p] in [0, 1], counts int64 [K].
    """
    order = counts.argsort(descending=True, stable=True)
    gap = 4
    across = 16 if len(patches) <= 128 else 32
    tiles = enlarge(patches.float().cpu()[order.cpu()], width // across - gap)
    picture = to_picture(make_grid(tiles, nrow=across, padding=gap, pad_value=1.0))
    draw = ImageDraw.Draw(picture)
    for place, centroid in enumerate(order.tolist()):
        if counts[centroid] == 0:
            left = gap + (place % across) * (tiles.shape[-1] + gap)
            top = gap + (place // across) * (tiles.shape[-2] + gap)
            box = (left - 2, top - 2, left + tiles.shape[-1] + 1, top + tiles.shape[-2] + 1)
            draw.rectangle(box, outline=RED, width=2)
    return picture


def token_colours(centroids: Tensor) -> Tensor:
    """A colour a centroid from the first three principal components, so that near ones look near.

    centroids [K, D] -> float [K, 3] in [0, 1]; each component is spread evenly by rank.
    """
    centred = centroids.detach().double().cpu()
    centred = torch.nan_to_num(centred - torch.nan_to_num(centred).mean(0))
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a direction is arbitrary; fixing it keeps the colours from one run to the next.
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    scores = centred @ (directions * signs)[:3].T
    if scores.shape[1] < 3:
        scores = F.pad(scores, (0, 3 - scores.shape[1]))
    ranks = scores.argsort(0).argsort(0).double()
    return (0.08 + 0.87 * ranks / max(1, len(centroids) - 1)).float()


def token_maps(
    tokens: Tensor, colours: Tensor, grid: tuple[int, int], size: Sequence[int]
) -> Tensor:
    """Token ids [B, L] painted with colours [K, 3] -> float [B, 3, H, W]; id -1 is grey."""
    palette = torch.cat([colours, torch.full((1, 3), HIDDEN)])
    painted = palette[tokens.cpu()].view(-1, *grid, 3).permute(0, 3, 1, 2)
    return F.interpolate(painted, size=list(size), mode="nearest")
