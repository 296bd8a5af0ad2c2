"""Training crops as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from clustermim_fast.tokenizers import Tokenizer

from . import pictures
from .pictures import Column

__all__ = ["crop_sheet"]


def crop_sheet(
    images: Tensor,
    crops: Sequence[tuple[Tensor, Tensor]],
    grid: tuple[int, int],
    replaced: Sequence[Tensor | None],
    tokenizer: Tokenizer | None = None,
) -> Image.Image:
    """One line an image: the image, and for each epoch its crop and what the encoder sees of it.

    images uint8 [N, 3, H, W]; crops (uint8 [N, 3, H, W], mask bool [N, L]) by epoch; replaced bool
    [N, L] or None by epoch: patches shown as their centroids of ``tokenizer``.
    """
    columns = [Column("image", images.float() / 255)]
    for epoch, ((crop, mask), where) in enumerate(zip(crops, replaced, strict=True), 1):
        pixels = crop.float() / 255
        seen = pixels
        if where is not None and tokenizer is not None:
            centroids = tokenizer.decode(tokenizer(crop), grid)
            seen = pictures.keep_visible(pixels, centroids, where, grid)
        columns.append(Column(f"crop {epoch}", pixels))
        columns.append(Column("visible", pictures.hide_patches(seen, mask, grid)))
    return pictures.columns_of_images(columns)
