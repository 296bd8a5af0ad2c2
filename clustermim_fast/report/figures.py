"""The figures of one run, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clustermim_fast.tokenizers import Tokenizer

from . import charts, pictures
from .columns import about_contrast, images_of, paints_pixels, pixel_columns, predictions
from .pictures import Column
from .view import RunView

__all__ = [
    "Figure",
    "codebook_picture",
    "figures_of",
    "paints_pixels",
    "predictions",
    "token_map_picture",
]

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
        caption = _about_epochs(view.epochs[-1])
        yield Figure("evaluation", "Training", caption, charts.evaluation_curve(view.epochs))
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


def _about_epochs(row: Mapping[str, Any]) -> str:
    accuracy = "kNN accuracy with its 95 % interval, and " if "knn_percent" in row else ""
    of = f", of {row['images']}" if "images" in row else ""
    note = f" {row['note']}." if "note" in row else ""
    return f"Features while they were learned: {accuracy}effective rank (RankMe){of}.{note}"


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
    image, _, restored, predicted = (column.images[:LINES] for column in pixel_columns(view))
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


_OF_FEATURES = ", each as the patch whose features are nearest to it"


def _rows_intro(view: RunView) -> str:
    seen = "Training images without augmentation; what the encoder sees; "
    if view.tokenizer is None:
        return seen + (
            "the model's pixels in the masked patches; its pixels everywhere (it is trained on "
            f"masked patches only){about_contrast(view)}."
        )
    branch = paints_pixels(view)
    of_features = _OF_FEATURES if view.tokenizer.kind == "feature" else ""
    return seen + (
        f"every patch as its nearest centroid (the target){of_features}; the model's most likely "
        "token in each masked patch, decoded"
        + ("; the pixels of the second branch, also where patches are replaced" * branch)
        + f"{about_contrast(view)}."
    )


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
    images, _, grid = images_of(view)
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
