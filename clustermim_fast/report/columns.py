"""What a model sees and predicts, as columns of pictures."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from clustermim_fast.losses import patchify

from . import pictures
from .pictures import Column
from .view import RunView

__all__ = [
    "about_contrast",
    "images_of",
    "paints_pixels",
    "pixel_columns",
    "predictions",
    "token_columns",
]


def predictions(view: RunView) -> list[Column]:
    """image, visible, tokens, predicted, and the pixels of a second branch; of a method of pixels
    image, visible, restored, predicted.
    """
    return token_columns(view) if view.tokenizer is not None else pixel_columns(view)


def paints_pixels(view: RunView) -> bool:
    """Whether a method of tokens has a branch that predicts pixels."""
    return view.tokenizer is not None and getattr(view.model, "has_pixel_branch", False)


def about_contrast(view: RunView) -> str:
    """What pixels that were predicted in units of their patch do not show; "" of others."""
    pixels = view.tokenizer is None or paints_pixels(view)
    own = "; mean and contrast of each patch are the image's own"
    return own if view.per_patch_norm and pixels else ""


def images_of(view: RunView) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Its samples in [0, 1] and normalised, and the grid (rows, columns) of their patches."""
    images = view.samples.float() / 255
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (view.mean, view.std))
    rows, columns = cast("tuple[int, int]", view.model.grid)
    return images, (images - mean) / std, (rows, columns)


def token_columns(view: RunView) -> list[Column]:
    """image, visible, tokens, predicted; pixels where there is a branch of them."""
    assert view.tokenizer is not None  # the caller asked for tokens
    images, _, grid = images_of(view)
    targets = view.tokenizer.decode(view.tokenizer(view.samples), grid)
    seen = images
    if view.replaced is not None:
        seen = pictures.keep_visible(images, targets, view.replaced, grid)
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (view.mean, view.std))
    shown = (seen - mean) / std
    predicted = view.model.logits(shown, view.mask).argmax(-1)  # type: ignore[operator]
    columns = [
        Column("image", images),
        Column("visible", pictures.hide_patches(seen, view.mask, grid)),
        Column("tokens", targets),
        Column(
            "predicted",
            pictures.keep_visible(images, view.tokenizer.decode(predicted, grid), view.mask, grid),
        ),
    ]
    if paints_pixels(view):  # its targets are pixels in [0, 1], of replaced patches too
        patches = view.model.branch_patches(shown, view.mask).float()  # type: ignore[operator]
        filled = _filled(patches, images, grid, view.per_patch_norm).clamp(0, 1)
        where = view.mask if view.replaced is None else view.mask | view.replaced
        columns.append(Column("pixels", pictures.keep_visible(images, filled, where, grid)))
    return columns


def pixel_columns(view: RunView) -> list[Column]:
    """image, visible, restored, predicted."""
    images, normalised, grid = images_of(view)
    patches = view.model.patches(normalised, view.mask).float()  # type: ignore[operator]
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (view.mean, view.std))
    filled = (_filled(patches, normalised, grid, view.per_patch_norm) * std + mean).clamp(0, 1)
    return [
        Column("image", images),
        Column("visible", pictures.hide_patches(images, view.mask, grid)),
        Column("restored", pictures.keep_visible(images, filled, view.mask, grid)),
        Column("predicted", filled),
    ]


def _filled(patches: Tensor, targets: Tensor, grid: tuple[int, int], norm: bool) -> Tensor:
    """Predicted patches [B, L, 3 p^2] as images like `targets`, [B, 3, H, W].

    norm: they are in units of each patch's own mean and deviation: those of the target come back.
    """
    side = targets.shape[-2] // grid[0]
    if norm:
        target = patchify(targets, side)
        deviation = (target.var(-1, keepdim=True) + 1e-6).sqrt()
        patches = patches * deviation + target.mean(-1, keepdim=True)
    return _unpatchify(patches, side, grid)


def _unpatchify(patches: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    cells = patches.view(len(patches), *grid, side, side, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * side, grid[1] * side)
