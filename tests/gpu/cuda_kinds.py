"""The calls whose Hopper kernels are compiled and read: those of the GPU suite, and odd ones."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from clustermim_fast.ops import _triton
from clustermim_fast.ops.masked_linear_cross_entropy import cuda_few
from clustermim_fast.ops.nearest_centroid import cuda_filter, triton_sizes
from clustermim_fast.ops.nearest_centroid.triton_rows import RowSource, image_rows, matrix_rows

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def matrix(
    dtype: torch.dtype, dim: int, K: int, *, step: int = 1, metric: str = "euclidean"
) -> cuda_filter.Kind:
    """The kernel for rows of ``dim`` values, ``step`` apart."""
    rows = matrix_rows(torch.empty(300, dim * step, dtype=dtype)[:, ::step])
    return _kind(rows, K, metric)


def images(patch: int, size: int, K: int, *, packed: bool = False) -> cuda_filter.Kind:
    """The kernel for patches of uint8 images, by plane or with channels side by side."""
    pictures = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    if packed:
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    return _kind(image_rows(pictures, patch, **IMAGENET), K, "euclidean")


def _kind(rows: RowSource, K: int, metric: str) -> cuda_filter.Kind:
    sizes = triton_sizes.choose(_triton.INTERPRETED, rows, K)
    tile = cuda_filter.sizes_for(sizes, rows.dim).filter
    shape = (-(-K // tile.columns) * tile.columns, -(-rows.dim // tile.values) * tile.values)
    book: Any = SimpleNamespace(packed=torch.empty(shape, dtype=torch.float16), metric=metric)
    return cuda_filter.kind_of(rows, book)


SHIPPED = {
    "a: D 768, K 100, float32": matrix(torch.float32, 768, 100),
    "b: uint8 images, patch 16, K 100": images(16, 224, 100),
    "c: D 384, K 1000, bfloat16": matrix(torch.bfloat16, 384, 1000),
    "d: D 768, K 8192, bfloat16": matrix(torch.bfloat16, 768, 8192),
    "e: D 48, K 512, bfloat16": matrix(torch.bfloat16, 48, 512),
    "uint8 images, patch 16, K 8192": images(16, 224, 8192),
    "uint8 images, patch 4, K 512": images(4, 32, 512),
    "uint8 images, patch 14, K 1000, packed": images(14, 224, 1000, packed=True),
    "D 768, K 1000, float32, strided": matrix(torch.float32, 768, 1000, step=2),
    "D 7, K 20, float16, cosine": matrix(torch.float16, 7, 20, metric="cosine"),
}


def every() -> Iterator[tuple[str, cuda_filter.Kind]]:
    """Every depth, either side of 128 centroids, every kind of row."""
    for dim in range(64, 769, 64):
        for K in (100, 1000):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                yield f"D {dim}, K {K}, {dtype}", matrix(dtype, dim, K)
            yield f"D {dim}, K {K}, strided", matrix(torch.float32, dim, K, step=2)
            yield f"D {dim}, K {K}, dot", matrix(torch.bfloat16, dim, K, metric="dot")
    for patch in (4, 7, 8, 14, 16):
        for K in (100, 1000):
            for packed in (False, True):
                name = f"patch {patch}, K {K}, {'packed' if packed else 'planes'}"
                yield name, images(patch, 224, K, packed=packed)


LINEAR = {
    "the GPU suite's: d 512, K 100, bfloat16": cuda_few.Kind(
        torch.bfloat16, 112, 256, 2, input=True, weight=True
    ),
    "its dX again": cuda_few.Kind(torch.bfloat16, 112, 256, 2, input=True, weight=False),
    "d 384, K 50, float16, losses": cuda_few.Kind(
        torch.float16, 64, 256, 2, input=False, weight=False
    ),
    "d 192, K 128, float16": cuda_few.Kind(torch.float16, 128, 256, 1, input=True, weight=True),
    "d 64, K 10, bfloat16, input frozen": cuda_few.Kind(
        torch.bfloat16, 16, 128, 1, input=False, weight=True
    ),
}


def every_linear() -> Iterator[tuple[str, cuda_few.Kind]]:
    """Both types, what lies either side of a chunk of classes, every shape of a cluster."""
    for dtype in (torch.float16, torch.bfloat16):
        for classes in range(16, 129, 16):
            for depth, cluster in ((128, 1), (256, 1), (256, 2)):
                for gradients in range(4):
                    kind = cuda_few.Kind(
                        dtype, classes, depth, cluster, gradients % 2 > 0, gradients > 1
                    )
                    yield ", ".join(map(str, vars(kind).values())), kind
