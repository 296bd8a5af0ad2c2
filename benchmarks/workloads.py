"""The real rows that assignment is measured on, from the archives of images.

``load_images`` decodes an archive to one uint8 tensor; ``patch_rows`` makes the float32 matrix that
a user without this package would hand to a library (plain torch, none of our code). Centroids come
from a short k-means by faiss on the same rows. :class:`Store` keeps all of it, and the true ids,
in a :class:`benchmarks.cache.Cache`.
"""

from __future__ import annotations

import functools
import io
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.cache import Cache, content_key
from benchmarks.harness import say
from clustermim_fast.bench.assigners import import_faiss
from tests.ops.truth import nearest_ids

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageSource:
    """size: the short side becomes size * 256 / 224, then the centre is cropped; None: as is."""

    archive: str
    size: int | None
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR = ImageSource("cifar10-train", None, 4, CIFAR_MEAN, CIFAR_STD)
IMAGENET = ImageSource("imagenet-sample", 224, 16, IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class Workload:
    """features: "patches" | "vit" | "rp"; timed_images: rows of so many images are timed."""

    name: str
    source: ImageSource
    num_centroids: int
    timed_images: int
    features: str = "patches"


WORKLOADS = {
    w.name: w
    for w in (
        Workload("inet100", IMAGENET, 100, 500),
        Workload("inet1000", IMAGENET, 1000, 250),
        Workload("inet8192", IMAGENET, 8192, 170),
        Workload("cifar50", CIFAR, 50, 15_625),
        Workload("cifar512", CIFAR, 512, 6_250),
        Workload("vit1000", IMAGENET, 1000, 250, "vit"),
        Workload("rp1000", IMAGENET, 1000, 250, "rp"),
    )
}


def load_images(data: Path, source: ImageSource, limit: int | None = None) -> torch.Tensor:
    """uint8 [B, 3, H, W] of the archive ``data/<archive>.tar.gz``, evenly thinned to ``limit``."""
    with tarfile.open(data / f"{source.archive}.tar.gz") as tar:
        # Read in the archive's order (a gzip stream cannot seek), keep the order of the names.
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    names = sorted(n for n in files if n.lower().endswith((".jpg", ".jpeg", ".png")))
    if limit is not None:
        names = [names[i] for i in thinned(len(names), limit).tolist()]
    images = np.stack([_decode(files[name], source.size) for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def thinned(count: int, limit: int) -> torch.Tensor:
    """``limit`` positions of ``count``, evenly spread: archives are sorted by class."""
    limit = min(limit, count)
    return torch.arange(limit) * count // limit


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


def normalised(images: torch.Tensor, source: ImageSource) -> torch.Tensor:
    """float32 ``(u8 / 255 - mean) / std``."""
    mean = torch.tensor(source.mean)[:, None, None]
    std = torch.tensor(source.std)[:, None, None]
    return (images.float() / 255 - mean) / std


def patchify(pixels: torch.Tensor, p: int) -> torch.Tensor:
    """[B, C, H, W] -> [B, L, p * p * C], a patch's values by (row, column, channel)."""
    batch, channels, height, width = pixels.shape
    grid = pixels.reshape(batch, channels, height // p, p, width // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def patch_rows(images: torch.Tensor, source: ImageSource) -> torch.Tensor:
    """float32 [N, D]: the normalised patches."""
    parts = images.split(256)
    return torch.cat([patchify(normalised(p, source), source.patch_size) for p in parts]).flatten(
        0, 1
    )


@torch.no_grad()
def vit_rows(images: torch.Tensor, source: ImageSource) -> torch.Tensor:
    """float32 [N, 384]: patch tokens of an untrained ViT-S/16 (seed 0), of length 1."""
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224").eval()
    parts = [model.forward_features(normalised(p, source))[:, 1:] for p in images.split(50)]
    return torch.nn.functional.normalize(torch.cat(parts).flatten(0, 1), dim=1)


def projected_rows(images: torch.Tensor, source: ImageSource) -> torch.Tensor:
    """float32 [N, 384]: patches times a random matrix (seed 0), of length 1."""
    rows = patch_rows(images, source)
    matrix = torch.randn(rows.shape[1], 384, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows @ matrix / rows.shape[1] ** 0.5, dim=1)


def short_kmeans(rows: torch.Tensor, num_centroids: int, seed: int = 0) -> torch.Tensor:
    """float32 [K, D]: six Lloyd iterations of faiss on a sample of at most 100 rows a centroid."""
    faiss = import_faiss()
    per_centroid = max(40, min(100, 200_000 // num_centroids))
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(rows), generator=generator)[: num_centroids * per_centroid]
    limits = dict(min_points_per_centroid=1, max_points_per_centroid=per_centroid)
    kmeans = faiss.Kmeans(rows.shape[1], num_centroids, niter=6, seed=seed, **limits)
    kmeans.train(rows[sample].numpy())
    return torch.from_numpy(kmeans.centroids.copy())


@dataclass(frozen=True)
class Rows:
    """x [N, D], centroids [K, D], the true ids [N], the images they are of (``per_image`` each)."""

    x: torch.Tensor
    centroids: torch.Tensor
    truth: np.ndarray
    images: torch.Tensor
    per_image: int

    def some(self, num_images: int) -> Rows:
        """The same of ``num_images`` images, evenly spread."""
        if num_images >= len(self.images):
            return self
        chosen = thinned(len(self.images), num_images)
        x = self.x.reshape(len(self.images), self.per_image, -1)[chosen].flatten(0, 1)
        truth = self.truth.reshape(len(self.images), self.per_image)[chosen.numpy()].reshape(-1)
        return Rows(x, self.centroids, truth, self.images[chosen], self.per_image)


class Store:
    """Workloads made from the archives in ``data``; ``limit`` images of each archive."""

    def __init__(self, data: Path, cache: Path, limit: int | None = None) -> None:
        self.data, self.cache, self.limit = data, Cache(cache), limit
        self.rows_of = functools.lru_cache(maxsize=1)(self._rows_of)

    def images(self, source: ImageSource) -> torch.Tensor:
        """uint8 [B, 3, H, W]."""
        archive = self.data / f"{source.archive}.tar.gz"
        key = content_key(archive, source.size, self.limit)
        return self.cache.tensor("images", key, lambda: load_images(self.data, source, self.limit))

    def _rows_of(self, source: ImageSource, features: str) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.images(source)
        if features == "patches":
            return images, patch_rows(images, source)
        make = {"vit": vit_rows, "rp": projected_rows}[features]
        key = content_key(images, source, features, torch.__version__, timm.__version__)
        return images, self.cache.tensor(features, key, lambda: make(images, source))

    def load(self, workload: Workload) -> Rows:
        """Rows, centroids and truth; what is not in the cache is made, which takes minutes."""
        start = time.perf_counter()
        images, x = self.rows_of(workload.source, workload.features)
        k = min(workload.num_centroids, max(1, len(x) // 4))  # fewer with few images
        rows_key = content_key(x)
        centroids = self.cache.tensor(
            f"centroids{k}", content_key(rows_key, k), lambda: short_kmeans(x, k)
        )
        truth = self.cache.tensor(
            f"truth{k}",
            content_key(rows_key, centroids),
            lambda: torch.from_numpy(nearest_ids(x, centroids, "euclidean")),
        )
        seconds = time.perf_counter() - start
        say(f"{workload.name}: {len(x):,} rows, D = {x.shape[1]}, K = {k}, {seconds:.0f} s to load")
        return Rows(x, centroids, truth.numpy(), images, len(x) // len(images))


def main() -> None:
    """Fill the cache: python -m benchmarks.workloads ../shared/data [--cache DIR]."""
    import argparse

    from benchmarks import cache

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, default=cache.DEFAULT)
    parser.add_argument("--images", type=int, help="of each archive; default all")
    options = parser.parse_args()
    store = Store(options.data, options.cache, options.images)
    for workload in WORKLOADS.values():
        store.load(workload)


if __name__ == "__main__":
    main()
