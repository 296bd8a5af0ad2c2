"""The real rows that assignment is measured on, from the archives of images.

``load_images`` decodes an archive to one uint8 tensor; ``patch_rows`` makes the float32 matrix that
a user without this package would hand to a library (plain torch, none of our code).
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Workload:
    name: str
    archive: str
    size: int | None  # resize the short side to size * 256 / 224, then crop the centre; None: as is
    patch_size: int
    num_centroids: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CIFAR = ("cifar10-train", None, 4)
_IMAGENET = ("imagenet-sample", 224, 16)
WORKLOADS = {
    w.name: w
    for w in (
        Workload("cifar50", *_CIFAR, 50, CIFAR_MEAN, CIFAR_STD),
        Workload("cifar512", *_CIFAR, 512, CIFAR_MEAN, CIFAR_STD),
        Workload("imagenet100", *_IMAGENET, 100, IMAGENET_MEAN, IMAGENET_STD),
        Workload("imagenet1000", *_IMAGENET, 1000, IMAGENET_MEAN, IMAGENET_STD),
        Workload("imagenet8192", *_IMAGENET, 8192, IMAGENET_MEAN, IMAGENET_STD),
    )
}
DEFAULT = ("cifar50", "cifar512", "imagenet100", "imagenet1000")


def load_images(data: Path, workload: Workload, limit: int | None = None) -> torch.Tensor:
    """uint8 [B, 3, H, W] of the archive ``data/<archive>.tar.gz``, evenly thinned to ``limit``."""
    with tarfile.open(data / f"{workload.archive}.tar.gz") as tar:
        # Read in the archive's order (a gzip stream cannot seek), keep the order of the names.
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    names = sorted(n for n in files if n.lower().endswith((".jpg", ".jpeg", ".png")))
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    images = np.stack([_decode(files[name], workload.size) for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _decode(content: bytes, size: int | None) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if size is not None:
        short = round(size * 256 / 224)
        scale = short / min(image.size)
        wide, high = (max(short, round(side * scale)) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def patch_rows(images: torch.Tensor, workload: Workload) -> torch.Tensor:
    """float32 [N, D]: ``(u8 / 255 - mean) / std`` of every patch, (row, column, channel)."""
    mean = torch.tensor(workload.mean)[:, None, None]
    std = torch.tensor(workload.std)[:, None, None]
    p = workload.patch_size
    batch, channels, height, width = images.shape
    rows = torch.empty(batch, height // p * (width // p), p * p * channels)
    for begin in range(0, batch, 256):
        pixels = (images[begin : begin + 256].float() / 255 - mean) / std
        grid = pixels.reshape(-1, channels, height // p, p, width // p, p)
        rows[begin : begin + 256] = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return rows.flatten(0, 1)


def short_kmeans(rows: torch.Tensor, num_centroids: int, seed: int = 0) -> torch.Tensor:
    """float32 [K, D]: six Lloyd iterations of faiss on a sample of at most 100 rows a centroid."""
    import faiss

    per_centroid = max(40, min(100, 200_000 // num_centroids))
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(rows), generator=generator)[: num_centroids * per_centroid]
    kmeans = faiss.Kmeans(
        rows.shape[1], num_centroids, niter=6, seed=seed, min_points_per_centroid=1
    )
    kmeans.train(rows[sample].numpy())
    return torch.from_numpy(kmeans.centroids.copy())
