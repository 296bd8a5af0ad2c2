"""Tokens of many tokenizers in one pass over images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from clustermim_fast.tokenizers.base import Tokenizer


def tokens_of_each(tokenizers: Sequence[Tokenizer], images: Tensor) -> list[Tensor]:
    """Ids [B, L] of each tokenizer; what several have in common is computed once: the features of
    equal networks.
    """
    features: dict[Any, Tensor] = {}
    found = []
    for tokenizer in tokenizers:
        key = tokenizer.vectors_key()
        if key is None:
            found.append(tokenizer(images))
            continue
        if key not in features:
            features[key] = tokenizer.features(images)  # type: ignore[attr-defined]
        found.append(tokenizer.assign(features[key]))  # type: ignore[attr-defined]
    return found


@overload
def token_class_counts(
    tokenizers: Tokenizer, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int | None = ...
) -> Tensor: ...
@overload
def token_class_counts(
    tokenizers: Sequence[Tokenizer],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int | None = ...,
) -> list[Tensor]: ...
def token_class_counts(
    tokenizers: Tokenizer | Sequence[Tokenizer],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int | None = None,
) -> Tensor | list[Tensor]:
    """How often each token occurs in each class: int64 [C, K], the table of :func:`tcas`.

    Args:
        tokenizers: one, or several for one pass over the images (then a list is returned).
        batches: (images [B, C, H, W], labels int [B]), a DataLoader for instance; all patches of
            an image count for its class. Un-normalised images, as tokenizers take them.
        num_classes: C; None: the largest label seen plus one.

    A patch with id -1 (not finite) is not counted.
    """
    several = isinstance(tokenizers, Sequence)
    every: Sequence[Tokenizer] = tokenizers if isinstance(tokenizers, Sequence) else [tokenizers]
    tables = [torch.zeros(num_classes or 0, t.num_clusters, dtype=torch.int64) for t in every]
    for images, labels in batches:
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"batches: labels must be integers [{len(images)}], one an image, got "
                f"{labels.dtype} {list(labels.shape)}"
            )
        if not len(images):
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (num_classes is not None and high >= num_classes):
            span = "0 and more" if num_classes is None else f"0 .. {num_classes - 1}"
            raise ValueError(f"batches: labels must lie in {span}, got {low} .. {high}")
        for number, ids in enumerate(tokens_of_each(every, images)):
            tables[number] = _add(tables[number], ids.cpu(), labels.cpu().long())
    return tables if several else tables[0]


def _add(table: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    classes, clusters = max(len(table), int(labels.max()) + 1), table.shape[1]
    places = labels[:, None] * clusters + ids
    found = torch.bincount(places[ids >= 0], minlength=classes * clusters).view(classes, clusters)
    found[: len(table)] += table
    return found
