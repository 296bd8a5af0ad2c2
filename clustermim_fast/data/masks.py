"""Images with a mask of class indices each: a folder of images beside a folder of PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from clustermim_fast.data.augment import evaluation_view
from clustermim_fast.data.decode import DECODE_ERRORS, decode_image
from clustermim_fast.data.folder import list_folder
from clustermim_fast.image_files import require_folder

__all__ = ["IGNORED", "MaskedImages", "open_masked_images"]

IGNORED = 255


@dataclass(frozen=True)
class MaskedImages:
    """Image files and their masks, read when they are asked for.

    Attributes:
        pairs: (image, mask) files.
        image_size: (H, W) of both views, pixels.
        eval_crop: share of the image that the view keeps, see `DataConfig`.
    """

    pairs: list[tuple[Path, Path]]
    image_size: tuple[int, int]
    eval_crop: float

    def __len__(self) -> int:
        return len(self.pairs)

    def images(self, indices: Tensor) -> Tensor:
        """Evaluation views, un-augmented, uint8 [B, 3, H, W]."""
        views = []
        for index in indices.tolist():
            try:
                pixels = decode_image(self.pairs[index][0])
            except DECODE_ERRORS as error:
                raise ValueError(f"data: {self.pairs[index][0]} cannot be read: {error}") from error
            views.append(evaluation_view(torch.from_numpy(pixels), self.image_size, self.eval_crop))
        return torch.stack(views)

    def masks(self, indices: Tensor) -> Tensor:
        """Class indices of the same views' pixels by nearest pixel, uint8 [B, H, W]; 255: none."""
        return torch.stack([self._mask(*self.pairs[index]) for index in indices.tolist()])

    def _mask(self, image: Path, file: Path) -> Tensor:
        try:
            with Image.open(file) as opened, Image.open(image) as pixels:
                mode, sizes = opened.mode, (opened.size, pixels.size)
                values = np.array(opened)
        except DECODE_ERRORS as error:
            raise ValueError(f"masks: {file} cannot be read: {error}") from error
        if mode not in ("L", "P", "1"):
            raise ValueError(
                f"masks: {file} has mode {mode}; expected one channel of 8 bits, class indices 0 "
                "to 254 and 255 for pixels that do not count (a palette is fine)"
            )
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"masks: {file} has {sizes[0][1]} x {sizes[0][0]} pixels, its image "
                f"{sizes[1][1]} x {sizes[1][0]}"
            )
        mask = torch.from_numpy(values.astype(np.uint8))[None]
        return _nearest_view(mask, self.image_size, self.eval_crop)[0]


def _nearest_view(mask: Tensor, size: tuple[int, int], keep: float) -> Tensor:
    """`evaluation_view`'s cut of a mask uint8 [1, h, w], by nearest pixel."""
    height, width = mask.shape[-2:]
    factor = max(size[0] / keep / height, size[1] / keep / width)
    sides = [max(s, round(own * factor)) for s, own in zip(size, (height, width), strict=True)]
    resized = transforms.resize(mask, sides, InterpolationMode.NEAREST_EXACT)
    top, left = ((own - s) // 2 for own, s in zip(sides, size, strict=True))
    return resized[:, top : top + size[0], left : left + size[1]]


def open_masked_images(
    path: str | Path,
    masks: str | Path,
    *,
    size: tuple[int, int],
    split: str = "train",
    holdout: float = 0.2,
    eval_crop: float = 1.0,
) -> MaskedImages:
    """Images of ``path`` whose masks lie in ``masks`` under the same names, ending in .png.

    a/b.jpg belongs to a/b.png. Splits as `list_folder`: train/ and test/ (or val/) where there are,
    in both folders; else a share ``holdout``, fixed for ever, is the test set. Raises ValueError
    for images without a mask, and for folders that do not exist.
    """
    root, mask_root = require_folder(path), Path(masks).expanduser()
    if not mask_root.is_dir():
        raise ValueError(f"masks: expected a folder of PNG files, got {str(masks)!r}")
    holdout = 0.0 if (root / "train").is_dir() else holdout
    listing = list_folder(root, split, holdout).paths
    pairs = [(p, (mask_root / p.relative_to(root)).with_suffix(".png")) for p in listing]
    lost = [mask for _, mask in pairs if not mask.is_file()]
    if lost:
        raise ValueError(
            f"masks: {len(lost)} of {len(pairs)} images have none, for instance {lost[0]} is "
            "missing; an image a/b.jpg of data= needs a/b.png in masks="
        )
    if not pairs:
        raise ValueError(f"data: {root} has no {split} images; give more")
    return MaskedImages(pairs, size, eval_crop)
