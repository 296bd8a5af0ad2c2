"""The three rows of every evaluation: the pretrained encoder, the same network untrained, and the
pixels.

A pretrained score means little alone: on small images an untrained ViT and plain pixels are strong.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .features import Images, encoder_features, pixel_features

__all__ = ["Labelled", "Subject", "feature_rows", "weights_fingerprint"]


@dataclass(frozen=True)
class Labelled:
    """Images with one class index each, int64 [N]; fingerprint names their content."""

    images: Images
    labels: Tensor
    fingerprint: str


@dataclass(frozen=True)
class Subject:
    """What is evaluated, on what.

    ``encoders`` maps a row's name to a frozen timm encoder, the pretrained one first. ``about``
    goes into the result as it is (run, checkpoint step, where the test images come from).
    """

    encoders: Mapping[str, nn.Module]
    train: Labelled
    test: Labelled
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def feature_rows(
    subject: Subject,
    *,
    pool: str = "mean",
    batch_size: int = 256,
    device: str = "cpu",
    cache_dir: Path | None = None,
    progress: bool = False,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (row name, train features [N, D], test features [M, D]) for each encoder, then for raw
    pixels.

    With ``cache_dir`` an encoder's features are kept in a file that is used again only for the
    same weights, images and normalisation, so that `evaluate linear` after `evaluate knn` runs no
    network.
    """
    common = {
        "mean": subject.mean,
        "std": subject.std,
        "batch_size": batch_size,
        "progress": progress,
    }
    for name, encoder in subject.encoders.items():
        key = _key(encoder, subject, pool)
        path = cache_dir / f"{name}.safetensors" if cache_dir else None
        rows = _cached(path, key)
        if rows is None:
            rows = [
                encoder_features(
                    encoder,
                    part.images,
                    pool=pool,
                    device=device,
                    name=f"{name} ({split})",
                    **common,  # type: ignore[arg-type]
                )
                for split, part in (("train", subject.train), ("test", subject.test))
            ]
            if path is not None:
                _save(path, key, rows)
        yield name, rows[0], rows[1]
    train, test = (
        pixel_features(part.images, **common)  # type: ignore[arg-type]
        for part in (subject.train, subject.test)
    )
    yield "raw_pixels", train, test


def _key(encoder: nn.Module, subject: Subject, pool: str) -> str:
    digest = hashlib.sha256()
    for part in (
        subject.train.fingerprint,
        subject.test.fingerprint,
        subject.mean,
        subject.std,
        pool,
    ):
        digest.update(repr(part).encode())
    digest.update(weights_fingerprint(encoder).encode())
    return digest.hexdigest()


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 of the names and values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cached(path: Path | None, key: str) -> list[Tensor] | None:
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return [file.get_tensor("train"), file.get_tensor("test")]
    except SafetensorError:  # damaged on the disk; features can be computed again
        return None


def _save(path: Path, key: str, rows: list[Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    tensors = {"train": rows[0].contiguous(), "test": rows[1].contiguous()}
    save_file(tensors, temporary, metadata={"key": key})
    os.replace(temporary, path)  # a killed run leaves no half file that looks whole
