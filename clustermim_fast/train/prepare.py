"""Everything a run decides before its first step: images, normalisation, tokenizer, device."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clustermim_fast import counter_rng
from clustermim_fast.data import IMAGENET_MEAN, IMAGENET_STD, ImageSet, open_images
from clustermim_fast.masking import MaskConfig, Masker
from clustermim_fast.models import create_model, method_class
from clustermim_fast.ranks import everyone
from clustermim_fast.tokenizers import (
    FeatureTokenizer,
    PixelTokenizer,
    Tokenizer,
    load_tokenizer,
)
from clustermim_fast.train.config import TokenizerConfig, TrainConfig
from clustermim_fast.train.distributed import choose_device
from clustermim_fast.train.state import find_checkpoint

_TOLERANCE = 1e-6
# Views that a fit holds at once: 7,000 of 224 pixels, with 1.4 million patches of 16.
_FIT_BYTES = 1024**3
_FIT_BATCH = 128


def open_run_images(config: TrainConfig, split: str = "train") -> ImageSet:
    """The images of a config whose data.image_size is set."""
    data = config.data
    if not data.path:
        raise ValueError('data: expected a folder of images or "digits", got nothing (data=DIR)')
    if data.image_size is None:
        raise ValueError("data.image_size: expected (height, width), got None (img_size=32)")
    return open_images(
        data.path,
        size=data.image_size,
        split=split,
        in_memory=data.in_memory,
        holdout=data.holdout,
        eval_crop=data.eval_crop,
    )


def resolve(config: TrainConfig, images: ImageSet) -> TrainConfig:
    """Fill in what the config leaves to the method and the images: their size, mean and std, the
    patch size.
    """
    method = method_class(config.method)
    config = _fill_in(config, method.defaults(config.model.encoder))
    if config.mask.kind not in method.mask_kinds:
        raise ValueError(
            f"mask.kind = {config.mask.kind!r} is not defined for method {config.method}; choose "
            f"one of {', '.join(method.mask_kinds)}"
        )
    data = config.data
    if data.mean is None:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if data.normalize == "data":
            measured = images.channel_stats()
            # Six digits: the same config.json whatever library sums the pixels.
            mean, std = (tuple(round(value, 6) for value in part) for part in measured)  # type: ignore[assignment]
        data = dataclasses.replace(data, mean=mean, std=std)
    data = dataclasses.replace(data, image_size=images.image_size)
    model = config.model
    if model.patch_size is None:
        with torch.device("meta"):
            probe = create_model(config.method, model, images.image_size, 1)
        model = dataclasses.replace(model, patch_size=int(probe.patch_size))  # type: ignore[arg-type]
    _require_patches(images.image_size, model.patch_size or 1, config.mask)
    return dataclasses.replace(config, data=data, model=model)


def _fill_in(config: TrainConfig, defaults: Mapping[str, Any]) -> TrainConfig:
    """Settings that are None take the method's value."""
    for key, value in defaults.items():
        group, _, name = key.partition(".")
        part = getattr(config, group)
        if getattr(part, name) is None:
            changed = dataclasses.replace(part, **{name: value})
            config = dataclasses.replace(config, **{group: changed})
    return config


def _require_patches(size: tuple[int, int], patch: int, mask: MaskConfig) -> None:
    if any(side % patch for side in size):
        fitting = "x".join(str(max(1, round(side / patch)) * patch) for side in size)
        raise ValueError(
            f"data.image_size {size} is not a multiple of model.patch_size {patch} on both sides; "
            f"img_size={fitting} would be, or choose another patch_size"
        )
    Masker(mask, (size[0] // patch, size[1] // patch), patch)


def needs_tokenizer(config: TrainConfig) -> bool:
    """Whether the method's targets are tokens."""
    return "tokens" in method_class(config.method).objective


def prepare_tokenizer(config: TrainConfig, images: ImageSet) -> Tokenizer:
    """The tokenizer of a resolved config: the file it names, or k-means of the run's images.

    A run that goes on takes the one it began with, from its folder; a folder with another run is
    refused here, before its tokenizer could be written over. The fit sees un-augmented evaluation
    views, evenly spaced over the set, in shuffled order; of several ranks each takes a part.
    """
    settings, group = config.tokenizer, everyone()
    begun = find_checkpoint(config, None, len(images)) is not None if config.out else False
    group.require_equal(f"pretrain: a checkpoint in {config.out or 'out'}", begun)
    if settings.path:
        given = load_tokenizer(settings.path)
        require_matching_tokenizer(config, given)  # before a network runs for its pictures
        if isinstance(given, FeatureTokenizer) and given.pictures is None:
            given.look_at(_Views(images, _spread(len(images), 1024), config.seed))  # for the report
        return given
    file = Path(config.out) / "tokenizer.safetensors"
    if begun and file.exists():
        return load_tokenizer(file)
    if config.data.mean is None or config.model.patch_size is None:
        raise ValueError("config: expected a resolved one (train.resolve), got data.mean = None")
    if settings.kind == "feature":
        return _fit_features(config, images)
    height, width = images.image_size
    ids = _to_fit_on(images, settings, max(1, _FIT_BYTES // (3 * height * width)))
    return PixelTokenizer.fit(
        images.images(np.array_split(ids, group.count)[group.rank]),
        settings.num_clusters,
        config.model.patch_size,
        mean=config.data.mean if _normalized(config) else None,
        std=config.data.std if _normalized(config) else None,
        per_patch_norm=settings.per_patch_norm,
        metric=settings.metric,
        algorithm=settings.algorithm,
        max_iter=settings.max_iter,
        tol=settings.tol,
        init=settings.init,
        batch_size=settings.batch_size,
        reassignment_ratio=settings.reassignment_ratio,
        seed=config.seed,
        verbose=sys.stderr.isatty(),
    )


def _spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """Up to ``wanted`` of ``count`` images, evenly spaced."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)


def _to_fit_on(
    images: ImageSet, settings: TokenizerConfig, most: int | None = None
) -> npt.NDArray[np.int64]:
    """Which images a fit sees: of each class, or of all, evenly spaced."""
    ids = np.arange(len(images))
    if settings.images_per_class is not None:
        if images.labels is None:
            raise ValueError(
                f"tokenizer.images_per_class: {images.source} has no class sub-folders; leave it "
                "out, or give data=DIR with DIR/<class>/"
            )
        classes = (np.flatnonzero(images.labels == label) for label in np.unique(images.labels))
        ids = np.sort(
            np.concatenate([own[_spread(len(own), settings.images_per_class)] for own in classes])
        )
    return ids[_spread(len(ids), min(settings.max_images, most or len(ids)))]


def _fit_features(config: TrainConfig, images: ImageSet) -> FeatureTokenizer:
    """Images are read again in each pass, so that there may be any number of them."""
    settings = config.tokenizer
    tokenizer = FeatureTokenizer.fit(
        _Views(images, _to_fit_on(images, settings), config.seed, settings.batch_size),
        settings.num_clusters,
        settings.model,
        weights=settings.weights or None,
        layer=settings.layer,
        apply_norm=settings.apply_norm,
        patch_size=config.model.patch_size,
        precision=settings.precision,
        metric=settings.metric,
        algorithm=settings.algorithm,
        max_iter=settings.max_iter,
        tol=settings.tol,
        init=settings.init,
        reassignment_ratio=settings.reassignment_ratio,
        keep_features=settings.keep_features,
        seed=config.seed,
        verbose=sys.stderr.isatty(),
        device=choose_device(config.efficiency.device),
    )
    return tokenizer.to("cpu")


class _Views:
    """Batches of un-augmented views, in a new order in each pass; of them this rank's part."""

    def __init__(
        self, images: ImageSet, ids: npt.NDArray[np.int64], seed: int, batch_size: int | None = None
    ) -> None:
        self._images, self._ids, self._seed, self._epoch = images, ids, seed, -1
        self._size = batch_size or _FIT_BATCH
        self._ranks = everyone()

    def __iter__(self) -> Iterator[torch.Tensor]:
        self._epoch += 1
        order = counter_rng.permutation(self._seed, self._epoch, len(self._ids))
        for start in range(0, len(order), self._size):
            batch = np.array_split(order[start : start + self._size], self._ranks.count)
            if len(mine := self._ids[batch[self._ranks.rank]]):  # the last may be too small for all
                yield self._images.images(mine)


def _normalized(config: TrainConfig) -> bool:
    return config.tokenizer.normalize is not False


def require_matching_tokenizer(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer made for other pixels: its patch size must be the run's, and so must the
    mean and std of one of pixels (a network has its own).

    Raises ValueError saying both values and both remedies.
    """
    for name, neutral in (("mean", 0.0), ("std", 1.0)) if tokenizer.kind == "pixel" else ():
        wanted = getattr(config.data, name) if _normalized(config) else (neutral,) * 3
        stored = getattr(tokenizer, name)
        values = [neutral] * 3 if stored is None else [float(value) for value in stored]
        if len(values) != 3 or any(
            abs(a - b) > _TOLERANCE for a, b in zip(values, wanted, strict=True)
        ):
            raise ValueError(
                f"tokenizer: its {name} is {values}, the run's data.{name} is {list(wanted)}; "
                "fit a tokenizer on this data, or set data.mean and data.std to the tokenizer's "
                "(tokenizer.normalize = false stands for 0 and 1)"
            )
    pixels = isinstance(tokenizer, PixelTokenizer) and not tokenizer.per_patch_norm
    if config.mask.kind == "replaced" and not (pixels and tokenizer.metric == "euclidean"):
        raise ValueError(
            'mask.kind = "replaced" shows centroids in the image, and those of features, of '
            "normalised patches and of the cosine metric are no pixels; fit a tokenizer of plain "
            "pixels, or take mask.kind = block"
        )
    if tokenizer.patch_size != config.model.patch_size:
        raise ValueError(
            f"tokenizer: its patch_size is {tokenizer.patch_size}, the model's is "
            f"{config.model.patch_size}; they must be equal"
        )


def default_out(config: TrainConfig) -> Path:
    """runs/<method>_<name of the data>, where no folder was given."""
    name = Path(config.data.path).resolve().name if config.data.path != "digits" else "digits"
    return Path("runs") / f"{config.method}_{name}"
