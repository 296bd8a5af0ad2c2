"""Calls that between them launch every kernel with the tiles that users get: docs/gpu_table.md.

Sizes are small: what is compiled depends on dtypes, widths, numbers of centroids or classes, and on
what divides them, not on the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from clustermim_fast import ops

HALF, FULL = torch.bfloat16, torch.float32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Rows of the benchmark's shapes, of other dtypes, and one whose width no tile divides.
ASSIGNED = (
    (768, 100, FULL, "euclidean"), (384, 1000, HALF, "euclidean"), (768, 8192, HALF, "euclidean"),
    (48, 512, HALF, "euclidean"), (48, 512, FULL, "euclidean"),
    (384, 1000, torch.float16, "cosine"), (768, 1000, torch.float64, "euclidean"),
    (384, 1000, FULL, "dot"), (100, 100, FULL, "euclidean"),
)  # fmt: skip
LOSSES = (
    (100, 512, HALF), (50, 384, HALF), (1000, 512, HALF), (8192, 768, HALF), (100, 512, FULL),
    (1000, 512, torch.float16),
)  # fmt: skip


def _assign(d: int, k: int, dtype: torch.dtype, metric: str) -> Any:
    x, c = torch.zeros(256, d, dtype=dtype), torch.zeros(k, d, dtype=dtype)
    return ops.nearest_centroid(x, c, metric=metric, return_distance=True, backend="triton")


def _images(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    images, c = torch.zeros(2, 3, 224, 224, dtype=dtype), torch.zeros(100, 768)
    return images, c, {"mean": MEAN, "std": STD} if dtype == torch.uint8 else {}


def _tokens(dtype: torch.dtype, **options: Any) -> Any:
    images, c, of_uint8 = _images(dtype)
    return ops.patch_tokens(images, c, 16, backend="triton", **of_uint8, **options)


def _lloyd(dtype: torch.dtype) -> Any:
    x, c = torch.zeros(256, 768, dtype=dtype), torch.zeros(100, 768)
    return ops.lloyd_step(x, c, backend="triton")


def _lloyd_images(dtype: torch.dtype) -> Any:
    images, c, of_uint8 = _images(dtype)
    return ops.lloyd_step_images(images, c, 16, backend="triton", **of_uint8)


def _replace(dtype: torch.dtype) -> Any:
    images, c, _ = _images(dtype)
    ids = torch.zeros(2, 196, dtype=torch.int64)
    return ops.replace_patches(images, ids, c, ids == 0, 16, backend="triton")


def _logits(k: int, dtype: torch.dtype) -> Any:
    z = torch.zeros(2, 196, k, dtype=dtype).requires_grad_()
    target = torch.zeros(2, 196, dtype=torch.int64)
    loss = ops.masked_cross_entropy(z, target, target == 0, label_smoothing=0.1, backend="triton")
    return loss.backward()


def _linear(k: int, d: int, dtype: torch.dtype) -> Any:
    x = torch.zeros(8, 197, d, dtype=dtype).requires_grad_()
    w, b = (torch.zeros(*s, dtype=dtype).requires_grad_() for s in ((k, d), (k,)))
    target = torch.zeros(8, 196, dtype=torch.int64)
    loss = ops.masked_linear_cross_entropy(
        x, w, target, target == 0, linear_bias=b, label_smoothing=0.1, num_prefix_tokens=1,
        backend="triton",
    )  # fmt: skip
    return loss.backward()


def calls() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(op, its problem in words, the call)."""
    for d, k, dtype, metric in ASSIGNED:
        name = f"D {d}, K {k}, {_short(dtype)}, {metric}"
        yield "nearest_centroid", name, partial(_assign, d, k, dtype, metric)
    for dtype in (torch.uint8, HALF, FULL):
        name = f"224 px, patch 16, K 100, {_short(dtype)}"
        yield "patch_tokens", name, partial(_tokens, dtype)
        yield "lloyd_step_images", name, partial(_lloyd_images, dtype)
        yield "replace_patches", name, partial(_replace, dtype)
    name = "224 px, patch 16, K 100, uint8, per_patch_norm"
    yield "patch_tokens", name, partial(_tokens, torch.uint8, per_patch_norm=True)
    for dtype in (HALF, FULL):
        yield "lloyd_step", f"D 768, K 100, {_short(dtype)}", partial(_lloyd, dtype)
        for k in (100, 8192):
            yield "masked_cross_entropy", f"K {k}, {_short(dtype)}", partial(_logits, k, dtype)
    for k, d, dtype in LOSSES:
        name = f"d {d}, K {k}, {_short(dtype)}"
        yield "masked_linear_cross_entropy", name, partial(_linear, k, d, dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
