"""The real images, decoded once, and the rows and centroids made of them on the device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.gpu_suite.bench import Bench
from benchmarks.gpu_suite.journal import Journal
from benchmarks.gpu_suite.prepare import CARRIED
from benchmarks.harness import REPOSITORY

# name -> (archive, side in pixels)
SETS = {"photographs": ("imagenet-sample", 224), "cifar": ("cifar10-test", 32)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def folder_of_archives() -> Path | None:
    for folder in (CARRIED / "data", REPOSITORY / "shared" / "data",
                   REPOSITORY.parent / "shared" / "data"):  # fmt: skip
        if (folder / "imagenet-sample.tar.gz").is_file():
            return folder
    return None


def decode(archive: Path, side: int, limit: int | None) -> torch.Tensor:
    """uint8 [B, 3, side, side]."""
    import tarfile

    import numpy as np

    from benchmarks.workloads import _decode

    contents = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg", ".png")):
                contents.append(tar.extractfile(member).read())
            if limit is not None and len(contents) == limit:
                break
    size = None if side == 32 else side
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda content: _decode(content, size), contents))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def run(bench: Bench, journal: Journal) -> None:
    """Decode; without the archives, noise, which is said beside every number."""
    folder = folder_of_archives()
    for name, (archive, side) in SETS.items():
        limit = 4 if bench.rehearsed else None
        images, source = None, "noise: no archives of images were carried"
        if folder is not None:
            try:
                images = decode(folder / f"{archive}.tar.gz", side, limit)
                source = f"{len(images)} images of {archive}"
            except (OSError, ImportError) as error:
                source = f"noise: {error}"
        if images is None:
            count = bench.size(1000 if side == 224 else 10_000, 4)
            images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
        torch.save(images, bench.work / f"{name}.pt")
        journal.write("note", images=name, source=source)


def load(bench: Bench, name: str, count: int | None = None) -> torch.Tensor:
    """uint8 [count, 3, H, W] on the CPU; copies beyond the first are shifted, so none repeats."""
    images = torch.load(bench.work / f"{name}.pt", weights_only=True)
    if count is None or count <= len(images):
        return images[:count]
    parts = [images.roll((3 * r, 5 * r), (2, 3)) for r in range(-(-count // len(images)))]
    return torch.cat(parts)[:count]


def normalised(images: torch.Tensor) -> torch.Tensor:
    """float32 (u8 / 255 - mean) / std."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def patches(pixels: torch.Tensor, p: int) -> torch.Tensor:
    """[B, C, H, W] -> rows [B * L, p * p * C], by (row, column, channel)."""
    b, c, h, w = pixels.shape
    grid = pixels.reshape(b, c, h // p, p, w // p, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(-1, p * p * c)


def rows(images: torch.Tensor, p: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The normalised patches of CPU images, on the device."""
    parts = (patches(normalised(part.to(device)), p).to(dtype) for part in images.split(256))
    return torch.cat(list(parts))


def features(x: torch.Tensor, width: int) -> torch.Tensor:
    """Stand-ins for pretrained features: rows times a random matrix, of length 1."""
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(x.shape[1], width, generator=draw).to(x.device, x.dtype)
    return torch.cat([torch.nn.functional.normalize(r @ matrix, dim=1) for r in x.split(2**18)])


def centroids(x: torch.Tensor, k: int, iterations: int = 2) -> torch.Tensor:
    """float32 [K, D]: k-means in plain torch on a sample, from rows evenly spread."""
    step = max(1, len(x) // (64 * k))
    sample = x[::step].float()
    c = sample[torch.arange(k, device=x.device) * len(sample) // k].clone()
    for _ in range(iterations):
        half = c.square().sum(1) / 2
        ids = torch.cat([(half - part @ c.T).argmin(1) for part in sample.split(2**15)])
        sums = torch.zeros_like(c).index_add_(0, ids, sample)
        count = torch.bincount(ids, minlength=k)[:, None]
        c = torch.where(count > 0, sums / count.clamp(min=1), c)
    return c
