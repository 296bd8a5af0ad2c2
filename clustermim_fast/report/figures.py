"""The figures of one run, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from clustermim_fast.losses import patchify
from clustermim_fast.tokenizers import Tokenizer

from . import charts, pictures
from .pictures import Column
from .view import RunView

__all__ = ["Figure", "codebook_picture", "figures_of", "predictions", "token_map_picture"]

LINES = 5  # samples in one picture of rows; two pictures stand side by side on a wide screen


@dataclass(frozen=True)
class Figure:
    """A picture: file name, section, the sentence below it, the one at the section's head."""

    name: str
    section: str
    caption: str
    image: Image.Image
    intro: str = ""


def figures_of(view: RunView) -> Iterator[Figure]:
    """Every figure that this run has the material for."""
    yield from _curves(view)
    yield from _rows(view)
    if view.refresh_s:  # a page that is written often: what changes while a run goes on
        return
    if view.tokenizer is None:
        yield _spectra(view)
    if view.tokenizer is not None:
        yield from _tokens(view)


def _curves(view: RunView) -> Iterator[Figure]:
    tokens = view.tokenizer
    counts = None if view.usage is None else view.usage.cpu().numpy()
    if view.metrics:
        perplexity = None if counts is None else charts.usage(counts)[0]
        classes = None if tokens is None else tokens.num_clusters
        yield Figure(
            "loss",
            "Training",
            _about_loss(view),
            charts.loss_curve(view.metrics, classes, perplexity),
        )
    if view.epochs:
        yield Figure("evaluation", "Training", _ABOUT_EPOCHS, charts.evaluation_curve(view.epochs))
    if tokens is not None and any("masked_accuracy" in line for line in view.metrics):
        majority = None if counts is None else float(counts.max() / max(1, counts.sum()))
        yield Figure(
            "accuracy",
            "Training",
            "How many masked patches get the right token, beside chance and beside always naming "
            "the commonest token.",
            charts.accuracy_curve(
                view.metrics, "masked_accuracy", 1 / tokens.num_clusters, majority
            ),
        )


_ABOUT_EPOCHS = "Features while they were learned: kNN accuracy, 95 % interval, and effective rank."


def _about_loss(view: RunView) -> str:
    terms = {key for row in view.metrics for key in row if key.endswith("_loss")}
    if view.tokenizer is not None:
        branch = "; branch loss: that of the pixel branch" if "branch_loss" in terms else ""
        return (
            "Training loss on masked patches. Below the dashed line the model knows more than a "
            "uniform guess; below the dotted one, more than how frequent each token is"
            + branch
            + "."
        )
    if terms:
        return (
            "The terms of the training loss before they are weighted: the error of hidden pixels "
            "(spatial) and of the image's spectrum (fourier)."
        )
    return "Training loss: mean squared error on masked patches."


@torch.no_grad()
def _rows(view: RunView) -> Iterator[Figure]:
    columns = predictions(view)
    for number, start in enumerate(range(0, len(view.samples), LINES), 1):
        part = [Column(c.title, c.images[start : start + LINES]) for c in columns]
        yield Figure(
            f"predictions_{number}",
            "What the model sees and predicts",
            "",
            pictures.columns_of_images(part),
            _rows_intro(view),
        )


@torch.no_grad()
def _spectra(view: RunView) -> Figure:
    """Which frequencies of the images a pixel method restores, and which it leaves out."""
    image, _, restored, predicted = (column.images[:LINES] for column in _pixel_columns(view))
    shown = [Column("image", image), Column("restored", restored), Column("predicted", predicted)]
    columns = [
        part
        for column in shown
        for part in (column, Column("spectrum", pictures.spectra(column.images, image)))
    ]
    return Figure(
        "spectra",
        "Spectra",
        "",
        pictures.columns_of_images(columns, side=110),
        "Log amplitude of each picture's spectrum (mean over channels, zero frequency in the "
        "middle), on the scale of the images' own. What a model cannot predict is dark at the rim; "
        "seams of patches are bright lines.",
    )


def predictions(view: RunView) -> list[Column]:
    """image, visible, tokens, predicted; of pixels image, visible, restored, predicted."""
    return _token_columns(view) if view.tokenizer is not None else _pixel_columns(view)


_OF_FEATURES = ", each as the patch whose features are nearest to it"


def _rows_intro(view: RunView) -> str:
    seen = "Training images without augmentation; what the encoder sees; "
    if view.tokenizer is None:
        return seen + (
            "the model's pixels in the masked patches; its pixels everywhere (it is trained on "
            "masked patches only)."
        )
    of_features = _OF_FEATURES if view.tokenizer.kind == "feature" else ""
    return seen + (
        f"every patch as its nearest centroid (the target){of_features}; the model's most likely "
        "token in each masked patch, decoded."
    )


def _base(view: RunView) -> tuple[Tensor, Tensor, tuple[int, int]]:
    images = view.samples.float() / 255
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (view.mean, view.std))
    rows, columns = cast("tuple[int, int]", view.model.grid)
    return images, (images - mean) / std, (rows, columns)


def _token_columns(view: RunView) -> list[Column]:
    assert view.tokenizer is not None  # the caller asked for tokens
    images, _, grid = _base(view)
    targets = view.tokenizer.decode(view.tokenizer(view.samples), grid)
    seen = images
    if view.replaced is not None:
        seen = pictures.keep_visible(images, targets, view.replaced, grid)
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (view.mean, view.std))
    predicted = view.model.logits((seen - mean) / std, view.mask).argmax(-1)  # type: ignore[operator]
    return [
        Column("image", images),
        Column("visible", pictures.hide_patches(seen, view.mask, grid)),
        Column("tokens", targets),
        Column(
            "predicted",
            pictures.keep_visible(images, view.tokenizer.decode(predicted, grid), view.mask, grid),
        ),
    ]


def _pixel_columns(view: RunView) -> list[Column]:
    images, normalised, grid = _base(view)
    patches = view.model.patches(normalised, view.mask).float()  # type: ignore[operator]
    side = images.shape[-2] // grid[0]
    if view.per_patch_norm:
        # Predicted in units of each patch's own mean and deviation: put those of the image back.
        target = patchify(normalised, side)
        deviation = (target.var(-1, keepdim=True) + 1e-6).sqrt()
        patches = patches * deviation + target.mean(-1, keepdim=True)
    mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (view.mean, view.std))
    filled = (_unpatchify(patches, side, grid) * std + mean).clamp(0, 1)
    return [
        Column("image", images),
        Column("visible", pictures.hide_patches(images, view.mask, grid)),
        Column("restored", pictures.keep_visible(images, filled, view.mask, grid)),
        Column("predicted", filled),
    ]


def _unpatchify(patches: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    cells = patches.view(len(patches), *grid, side, side, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * side, grid[1] * side)


def codebook_picture(tokenizer: Tokenizer, counts: Tensor) -> Image.Image:
    """All centroids as patches, by their counts [K]."""
    patches = tokenizer.decode(torch.arange(tokenizer.num_clusters)[:, None], (1, 1))
    return pictures.atlas(patches, counts)


def token_map_picture(tokenizer: Tokenizer, images: Tensor) -> Image.Image:
    """Images uint8 [B, 3, H, W], each beside its token map, both, and the tokens as patches.

    Five to a column, so that ten fit on a screen.
    """
    grid, ids = tokenizer.grid_size(*images.shape[-2:]), tokenizer(images)
    columns = _map_columns(tokenizer, images.float() / 255, ids, grid)
    columns.append(Column("tokens", tokenizer.decode(ids, grid)))
    parts = [
        [Column(c.title, c.images[start : start + LINES]) for c in columns]
        for start in range(0, len(images), LINES)
    ]
    return pictures.beside([pictures.columns_of_images(part, side=170) for part in parts])


def _map_columns(
    tokenizer: Tokenizer, images: Tensor, ids: Tensor, grid: tuple[int, int]
) -> list[Column]:
    colours = pictures.token_colours(tokenizer.centroids)
    painted = pictures.token_maps(ids, colours, grid, images.shape[-2:])
    overlay = 0.45 * images + 0.55 * painted
    return [Column("image", images), Column("token map", painted), Column("both", overlay)]


@torch.no_grad()
def _tokens(view: RunView) -> Iterator[Figure]:
    tokens = view.tokenizer
    assert tokens is not None  # the caller asked for tokens
    images, _, grid = _base(view)
    every = _map_columns(tokens, images, tokens(view.samples), grid)
    for number, start in enumerate(range(0, len(images), LINES), 1):
        columns = [Column(c.title, c.images[start : start + LINES]) for c in every]
        intro = (
            "Each patch in the colour of its token; centroids that are alike have like colours "
            "(first three principal components of the centroids)."
        )
        yield Figure(
            f"token_maps_{number}",
            "Token maps",
            "",
            pictures.columns_of_images(columns, side=170),
            intro,
        )
    if view.usage is not None:
        yield Figure(
            "codebook",
            "Codebook",
            f"All {tokens.num_clusters} centroids, most used first, by row"
            f"{_OF_FEATURES if tokens.kind == 'feature' else ''}. "
            "Centroids that no patch has are framed in red.",
            codebook_picture(tokens, view.usage),
        )
        yield Figure(
            "usage",
            "Codebook",
            f"How often each token occurs in {view.usage_images:,} un-augmented images. "
            "Perplexity is how many equally frequent tokens would be as uncertain.",
            charts.usage_chart(view.usage.cpu().numpy()),
        )
    yield from _fit(view)


def _fit(view: RunView) -> Iterator[Figure]:
    report = None if view.tokenizer is None else view.tokenizer.report
    if report is None:  # centroids made elsewhere
        return
    section = "Fit of the codebook"
    seconds = f"{report.seconds:.1f} s" if report.seconds >= 0.1 else "under 0.1 s"
    intro = (
        f"k-means ({report.algorithm}) on {report.num_rows:,} patches, {len(report.iterations)} "
        f"iterations in {seconds}; it stopped because: {report.stop}."
    )
    if len(report.iterations) > 1:
        yield Figure(
            "inertia",
            section,
            "How far patches are from their centroids (inertia, the sum over all patches, divided "
            "by their number), before each update.",
            charts.inertia_curve(report),
            intro,
        )
    if report.counts:
        yield Figure(
            "cluster_sizes",
            section,
            "How the patches of the fit share out among the clusters.",
            charts.cluster_sizes(report),
            intro,
        )
