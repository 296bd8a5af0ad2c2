"""``replace_patches``: paste each chosen patch's centroid over it (CCViT's corruption)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clustermim_fast.ops import _backend, _checks, _images
from clustermim_fast.ops._library import define_op
from clustermim_fast.ops.nearest_centroid.op import require_centroids
from clustermim_fast.ops.replace_patches.reference import (
    centroid_pixels_reference,
    replace_patches_reference,
)

OP = "replace_patches"
IMPLEMENTED = ("reference", "cpu", "triton")


def _impl(
    images: torch.Tensor,
    ids: torch.Tensor,
    centroids: torch.Tensor,
    where: torch.Tensor,
    patch_size: int,
    mean: list[float] | None,
    std: list[float] | None,
    patch_order: str,
    backend: str,
) -> torch.Tensor:
    pixels = centroid_pixels_reference(
        centroids, images.shape[1], mean, std, patch_order, images.dtype
    )
    if images.device.type == "cpu":  # on CUDA a check would cost a host sync
        wrong = where & (ids >= len(centroids))
        if wrong.any():
            value = int(ids[wrong][0])
            expected = f"< K = {len(centroids)} wherever `where` is True"
            raise IndexError(f"{OP}: ids must be {expected}, got {value}")
    if backend == "reference":
        return replace_patches_reference(images, ids, pixels, where)
    if backend == "triton":
        from clustermim_fast.ops.replace_patches import triton_kernel

        return triton_kernel.replace_patches(images, ids, pixels, where)
    out = images.clone(memory_format=torch.contiguous_format)
    ids, where, pixels = ids.contiguous(), where.contiguous(), pixels.contiguous()
    _backend.core().replace_patches(
        images=out.data_ptr(),
        element_size=out.element_size(),
        batch=out.shape[0],
        channels=out.shape[1],
        height=out.shape[2],
        width=out.shape[3],
        patch_size=patch_size,
        ids=ids.data_ptr(),
        where=where.data_ptr(),
        pixels=pixels.data_ptr(),
        num_centroids=pixels.shape[0],
        threads=torch.get_num_threads(),
    )
    return out


def _fake(
    images: torch.Tensor,
    ids: torch.Tensor,
    centroids: torch.Tensor,
    where: torch.Tensor,
    patch_size: int,
    mean: list[float] | None,
    std: list[float] | None,
    patch_order: str,
    backend: str,
) -> torch.Tensor:
    return images.new_empty(images.shape)


_op = define_op(
    "replace_patches(Tensor images, Tensor ids, Tensor centroids, Tensor where, int patch_size,"
    " float[]? mean, float[]? std, str patch_order, str backend) -> Tensor",
    impl=_impl,
    fake=_fake,
)


def replace_patches(
    images: torch.Tensor,
    ids: torch.Tensor,
    centroids: torch.Tensor,
    where: torch.Tensor,
    patch_size: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch_order: str = "hwc",
    backend: str | None = None,
) -> torch.Tensor:
    """Images with the patches where ``where`` is True replaced by their centroid.

    Args:
        images: [B, C, H, W] uint8 or floating, not normalised; H and W multiples of ``patch_size``.
        ids: int64 or int32 [B, L] token ids, L row-major; a patch with a negative id is left alone.
        centroids: [K, D] floating, D = patch_size^2 * C, in the order ``patch_order``.
        where: [B, L] bool (another dtype means ``where != 0``), True = replaced.
        patch_size: side of a square patch, pixels.
        mean, std: one float a channel, both or neither; a centroid's pixel is ``c * std + mean`` in
            float32.
        patch_order: "hwc" or "chw", as in :func:`patch_tokens`.
        backend: "reference", "cpu", "triton" or None (chosen by device).

    Returns:
        A new contiguous tensor of the shape and dtype of ``images``; for uint8 the pixel times 255
        is rounded half to even and clamped to 0..255. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        IndexError: an id >= K where ``where`` is True (on the CPU; on CUDA "reference" has a device
            assertion, the kernels leave that patch alone).
    """
    _images.require_images(OP, images, patch_size)
    require_centroids(OP, centroids)
    _images.require_patch_width(OP, centroids, images, patch_size)
    shape = (images.shape[0], _images.num_patches(images, patch_size))
    _checks.require_tensor(
        OP, "ids", ids, dtypes=(torch.int64, torch.int32), ndim=2, shape="[B, L]"
    )
    _checks.require_tensor(OP, "where", where, ndim=2, shape="[B, L]")
    for arg, value in (("ids", ids), ("where", where)):
        if tuple(value.shape) != shape:
            raise _checks.bad_value(OP, arg, f"[B, L] = {shape}", _checks.describe(value))
    means, stds = _images.mean_and_std(OP, mean, std, images.shape[1])
    _checks.require_choice(OP, "patch_order", patch_order, _images.PATCH_ORDERS)
    device = _checks.require_same_device(
        OP, images=images, ids=ids, centroids=centroids, where=where
    )
    name = _backend.resolve(OP, backend, device, IMPLEMENTED)
    out: torch.Tensor = _op(
        images.detach(),
        ids.long(),
        centroids.detach(),
        where if where.dtype == torch.bool else where != 0,
        int(patch_size),
        means,
        stds,
        patch_order,
        name,
    )
    return out
