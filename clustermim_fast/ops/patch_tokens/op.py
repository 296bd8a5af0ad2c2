"""``patch_tokens``: images straight to token ids, the patch matrix never made."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clustermim_fast.ops import _backend, _checks, _images, _stats
from clustermim_fast.ops._library import define_op
from clustermim_fast.ops.nearest_centroid.op import (
    METRICS,
    MOST_CUDA_VALUES,
    choose_backend,
    require_centroids,
    too_wide,
)
from clustermim_fast.ops.nearest_centroid.reference import nearest_centroid_reference
from clustermim_fast.ops.patch_tokens.reference import patch_rows_reference

OP = "patch_tokens"
IMPLEMENTED = ("reference", "cpu", "triton", "cuda")


def _impl(
    images: torch.Tensor,
    centroids: torch.Tensor,
    patch_size: int,
    mean: list[float] | None,
    std: list[float] | None,
    per_patch_norm: bool,
    patch_order: str,
    metric: str,
    backend: str,
) -> torch.Tensor:
    length = _images.num_patches(images, patch_size)
    if backend == "reference":
        rows = patch_rows_reference(images, patch_size, mean, std, per_patch_norm, patch_order)
        ids, _, counts = nearest_centroid_reference(rows.flatten(0, 1), centroids, metric)
        ids = ids.reshape(images.shape[0], length)
    elif backend in ("triton", "cuda"):
        from clustermim_fast.ops.nearest_centroid.triton_kernel import counts_of
        from clustermim_fast.ops.patch_tokens import triton_kernel

        ids, tiers = triton_kernel.patch_tokens(
            images, centroids, patch_size, mean, std, per_patch_norm, patch_order, metric,
            hopper=backend == "cuda",
        )  # fmt: skip
        ids = ids.reshape(images.shape[0], length)
        counts = counts_of(tiers) if _stats.recording() else (0, 0, 0, 0)
    else:
        centroids = centroids.contiguous()
        ids = torch.empty(images.shape[0], length, dtype=torch.int64)
        counts = _backend.core().patch_tokens(
            **_images.kernel_arguments(images, patch_size, mean, std, per_patch_norm, patch_order),
            centroids=centroids.data_ptr(),
            centroids_dtype=_backend.DTYPE_CODES[centroids.dtype],
            centroids_row_stride=centroids.stride(0),
            num_centroids=centroids.shape[0],
            metric=metric,
            ids=ids.data_ptr(),
            threads=torch.get_num_threads(),
        )
    _stats.note(ids.numel(), *counts)
    return ids


def _fake(
    images: torch.Tensor,
    centroids: torch.Tensor,
    patch_size: int,
    mean: list[float] | None,
    std: list[float] | None,
    per_patch_norm: bool,
    patch_order: str,
    metric: str,
    backend: str,
) -> torch.Tensor:
    shape = (images.shape[0], (images.shape[2] // patch_size) * (images.shape[3] // patch_size))
    return images.new_empty(shape, dtype=torch.int64)


_op = define_op(
    "patch_tokens(Tensor images, Tensor centroids, int patch_size, float[]? mean, float[]? std,"
    " bool per_patch_norm, str patch_order, str metric, str backend) -> Tensor",
    impl=_impl,
    fake=_fake,
)


def _refused_by_cuda(
    images: torch.Tensor,
    centroids: torch.Tensor,
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
    metric: str,
) -> _backend.Refusal | None:
    if not per_patch_norm:  # which makes rows of a matrix
        if images.dtype != torch.uint8:
            return "images", 'uint8 for backend "cuda"', _checks.describe(images)
        if metric != "euclidean":
            return "metric", '"euclidean" for backend "cuda" and uint8 images', metric
        from clustermim_fast.ops.nearest_centroid.triton_pixels import pixel_line

        if pixel_line(patch_size, images.shape[1], mean, std) is None:
            return "std", 'of channels within a factor of 16 for backend "cuda"', std
    return too_wide("cuda", centroids, MOST_CUDA_VALUES)


def patch_tokens(
    images: torch.Tensor,
    centroids: torch.Tensor,
    patch_size: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    per_patch_norm: bool = False,
    patch_order: str = "hwc",
    metric: str = "euclidean",
    backend: str | None = None,
) -> torch.Tensor:
    """Token id of every patch: patchify, normalise in float32, nearest centroid, in one pass.

    A pixel's value is ``(u8 / 255 - mean) / std``, each step a correctly rounded float32 operation,
    as torchvision's ToTensor + Normalize. Ids are those of :func:`nearest_centroid` on these rows,
    exact in the same sense, but the patch matrix is never made.

    Args:
        images: [B, C, H, W] uint8 (0..255) or floating (taken as float32), any memory format;
            H and W multiples of ``patch_size``.
        centroids: [K, D] floating, D = patch_size^2 * C, in the order ``patch_order``.
        patch_size: side of a square patch, pixels.
        mean, std: one float a channel in [0, 1] pixel units, both or neither (0 and 1).
        per_patch_norm: then normalise each patch by its own mean and unbiased variance (+ 1e-6),
            taken in float64, result rounded to float32.
        patch_order: "hwc" = (row, column, channel), as MAE; "chw" = (channel, row, column).
        metric: as in :func:`nearest_centroid`.
        backend: "reference", "cpu", "triton", "cuda" (Hopper; uint8 images, or per_patch_norm,
            D <= 768) or None (chosen by device).

    Returns:
        int64 [B, L], L = (H / patch_size) * (W / patch_size), row-major; -1 for a patch with NaN
        or Inf.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    _images.require_images(OP, images, patch_size)
    require_centroids(OP, centroids)
    _images.require_patch_width(OP, centroids, images, patch_size)
    means, stds = _images.mean_and_std(OP, mean, std, images.shape[1])
    if per_patch_norm and centroids.shape[1] < 2:
        raise _checks.bad_value(OP, "per_patch_norm", "False for one-value patches", True)
    _checks.require_choice(OP, "patch_order", patch_order, _images.PATCH_ORDERS)
    _checks.require_choice(OP, "metric", metric, METRICS)
    device = _checks.require_same_device(OP, images=images, centroids=centroids)
    name = choose_backend(
        OP, backend, device, centroids, IMPLEMENTED,
        lambda: _refused_by_cuda(
            images, centroids, patch_size, means, stds, per_patch_norm, metric
        ),
    )  # fmt: skip
    ids: torch.Tensor = _op(
        images.detach(),
        centroids.detach(),
        int(patch_size),
        means,
        stds,
        per_patch_norm,
        patch_order,
        metric,
        name,
    )
    return ids
