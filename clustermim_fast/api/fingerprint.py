"""Content keys of image sets, for what is kept and used again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from clustermim_fast.data import ImageSet
from clustermim_fast.train import TrainConfig

__all__ = ["files_fingerprint", "images_fingerprint", "tokenizer_key"]


def images_fingerprint(images: ImageSet) -> str:
    """Hash of the content of a set: all its pixels in memory, else 1,024 evenly spaced images."""
    digest = hashlib.sha256(f"{len(images)} {images.image_size} {images.eval_crop}".encode())
    count = len(images) if images.in_memory else min(len(images), 1024)
    for index in np.linspace(0, len(images) - 1, count).round().astype(np.int64):
        pixels = images.pixels(int(index))
        digest.update(repr(tuple(pixels.shape)).encode())
        digest.update(pixels.contiguous().numpy().data)
    if images.labels is not None:
        digest.update(np.ascontiguousarray(images.labels).tobytes())
    return digest.hexdigest()


def files_fingerprint(files: Sequence[Path]) -> str:
    """Hash of the content of files, of 1,024 evenly spaced ones where there are more."""
    digest = hashlib.sha256(f"{len(files)}".encode())
    for place in np.linspace(0, len(files) - 1, min(len(files), 1024)).round().astype(np.int64):
        with files[place].open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def tokenizer_key(config: TrainConfig, images: ImageSet) -> str:
    """Hash of what a fitted tokenizer depends on: the images it sees, and the settings."""
    settings = {
        "tokenizer": asdict(config.tokenizer),
        "patch_size": config.model.patch_size,
        "image_size": config.data.image_size,
        "mean": config.data.mean,
        "std": config.data.std,
        "seed": config.seed,
        "images": images_fingerprint(images),
    }
    if config.tokenizer.kind == "feature":
        settings["network"] = _files_digest(config.tokenizer.weights or config.tokenizer.model)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _files_digest(path: str) -> str:
    """Hash of a file, or of a folder's weights; "" for a timm name."""
    place = Path(path.removeprefix("local-dir:")).expanduser()
    folders = (place, place / "export")
    files = [place, *(folder / "model.safetensors" for folder in folders)]
    for file in files:
        if file.is_file():
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
    return ""
