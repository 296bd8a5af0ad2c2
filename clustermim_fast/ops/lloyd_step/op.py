"""``lloyd_step``: one Lloyd iteration's assignment and accumulation in one pass over the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clustermim_fast.ops import _backend, _checks, _images, _stats
from clustermim_fast.ops._library import define_op
from clustermim_fast.ops.lloyd_step.reference import image_quantum, lloyd_step_reference
from clustermim_fast.ops.nearest_centroid.op import METRICS, choose_backend, require_centroids
from clustermim_fast.ops.patch_tokens.reference import patch_rows_reference

OP, OP_IMAGES = "lloyd_step", "lloyd_step_images"
IMPLEMENTED = ("reference", "cpu", "triton")

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _empty_outputs(
    like: torch.Tensor, rows: int, centroids: torch.Tensor, weighted: bool
) -> Outputs:
    count_dtype = torch.float64 if weighted else torch.int64
    return (
        like.new_empty(rows, dtype=torch.int64),
        like.new_empty(centroids.shape, dtype=torch.float64),
        like.new_empty(centroids.shape[0], dtype=count_dtype),
        like.new_empty((), dtype=torch.float64),
    )


def _impl(
    x: torch.Tensor,
    centroids: torch.Tensor,
    weights: torch.Tensor | None,
    metric: str,
    backend: str,
) -> Outputs:
    # On CUDA a check would cost a host sync.
    if weights is not None and weights.device.type == "cpu":
        unusable = ~((weights >= 0) & (weights < torch.inf))
        if unusable.any():
            got = float(weights[unusable][0])
            raise _checks.bad_value(OP, "weights", "finite and >= 0", got)
    if backend == "reference":
        *outputs, tiers = lloyd_step_reference(x, centroids, weights, metric)
        _stats.note(x.shape[0], *tiers)
        return outputs[0], outputs[1], outputs[2], outputs[3]
    if backend == "triton":
        from clustermim_fast.ops.lloyd_step import triton_kernel
        from clustermim_fast.ops.nearest_centroid.triton_kernel import counts_of

        *outputs, counts = triton_kernel.lloyd_step(x, centroids, weights, metric)
        if _stats.recording():
            _stats.note(x.shape[0], *counts_of(counts))
        return outputs[0], outputs[1], outputs[2], outputs[3]
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    centroids = centroids.contiguous()
    if weights is not None:
        weights = weights.double().contiguous()
    ids, sums, counts, inertia = _empty_outputs(x, x.shape[0], centroids, weights is not None)
    tiers = _backend.core().lloyd_step(
        x=x.data_ptr(),
        x_dtype=_backend.DTYPE_CODES[x.dtype],
        x_row_stride=x.stride(0),
        num_rows=x.shape[0],
        dim=x.shape[1],
        weights=0 if weights is None else weights.data_ptr(),
        centroids=centroids.data_ptr(),
        centroids_dtype=_backend.DTYPE_CODES[centroids.dtype],
        centroids_row_stride=centroids.stride(0),
        num_centroids=centroids.shape[0],
        metric=metric,
        ids=ids.data_ptr(),
        sums=sums.data_ptr(),
        counts=counts.data_ptr(),
        inertia=inertia.data_ptr(),
        threads=torch.get_num_threads(),
    )
    _stats.note(x.shape[0], *tiers)
    return ids, sums, counts, inertia


def _fake(
    x: torch.Tensor,
    centroids: torch.Tensor,
    weights: torch.Tensor | None,
    metric: str,
    backend: str,
) -> Outputs:
    return _empty_outputs(x, x.shape[0], centroids, weights is not None)


def _images_impl(
    images: torch.Tensor,
    centroids: torch.Tensor,
    patch_size: int,
    mean: list[float] | None,
    std: list[float] | None,
    per_patch_norm: bool,
    patch_order: str,
    metric: str,
    backend: str,
) -> Outputs:
    length = _images.num_patches(images, patch_size)
    rows = images.shape[0] * length
    if backend == "reference":
        x = patch_rows_reference(images, patch_size, mean, std, per_patch_norm, patch_order)
        quantum = image_quantum(images, patch_size, mean, std, per_patch_norm)
        ids, sums, counts, inertia, tiers = lloyd_step_reference(
            x.flatten(0, 1), centroids, None, metric, quantum
        )
    elif backend == "triton":
        from clustermim_fast.ops.lloyd_step import triton_kernel
        from clustermim_fast.ops.nearest_centroid.triton_kernel import counts_of

        quantised = image_quantum(images, patch_size, mean, std, per_patch_norm) is not None
        ids, sums, counts, inertia, on_device = triton_kernel.lloyd_step_images(
            images, centroids, patch_size, mean, std, per_patch_norm, patch_order, metric, quantised
        )
        tiers = counts_of(on_device) if _stats.recording() else (0, 0, 0, 0)
    else:
        centroids = centroids.contiguous()
        ids, sums, counts, inertia = _empty_outputs(images, rows, centroids, False)
        tiers = _backend.core().lloyd_step_images(
            **_images.kernel_arguments(images, patch_size, mean, std, per_patch_norm, patch_order),
            centroids=centroids.data_ptr(),
            centroids_dtype=_backend.DTYPE_CODES[centroids.dtype],
            centroids_row_stride=centroids.stride(0),
            num_centroids=centroids.shape[0],
            metric=metric,
            ids=ids.data_ptr(),
            sums=sums.data_ptr(),
            counts=counts.data_ptr(),
            inertia=inertia.data_ptr(),
            threads=torch.get_num_threads(),
        )
    _stats.note(rows, *tiers)
    return ids.reshape(images.shape[0], length), sums, counts, inertia


def _images_fake(
    images: torch.Tensor,
    centroids: torch.Tensor,
    patch_size: int,
    mean: list[float] | None,
    std: list[float] | None,
    per_patch_norm: bool,
    patch_order: str,
    metric: str,
    backend: str,
) -> Outputs:
    length = (images.shape[2] // patch_size) * (images.shape[3] // patch_size)
    _, sums, counts, inertia = _empty_outputs(images, 0, centroids, False)
    return images.new_empty((images.shape[0], length), dtype=torch.int64), sums, counts, inertia


_op = define_op(
    "lloyd_step(Tensor x, Tensor centroids, Tensor? weights, str metric, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    impl=_impl,
    fake=_fake,
)
_images_op = define_op(
    "lloyd_step_images(Tensor images, Tensor centroids, int patch_size, float[]? mean,"
    " float[]? std, bool per_patch_norm, str patch_order, str metric, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    impl=_images_impl,
    fake=_images_fake,
)


def lloyd_step(
    x: torch.Tensor,
    centroids: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    metric: str = "euclidean",
    backend: str | None = None,
) -> Outputs:
    """Nearest centroid of every row, and what Lloyd's update needs, in one pass.

    Bit-equal for any thread count: rows are added in their order. Rows with NaN or Inf get id -1
    and are left out of everything.

    Args:
        x: [N, D] float64, float32, float16 or bfloat16.
        centroids: [K, D] of any of these dtypes.
        weights: optional [N] floating, finite and >= 0.
        metric: as in :func:`nearest_centroid`.
        backend: "reference", "cpu", "triton" or None (chosen by device).

    Returns:
        ids: int64 [N].
        sums: float64 [K, D], the (weighted) sum of the rows of each centroid.
        counts: int64 [K] (float64 with ``weights``: the sum of weights).
        inertia: float64 [], the sum of squared distances in the direct form; for "cosine" of
            1 - cosine, for "dot" of -dot.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    _checks.require_tensor(OP, "x", x, dtypes=_checks.FLOATING, ndim=2, shape="[N, D]")
    require_centroids(OP, centroids)
    if x.shape[1] != centroids.shape[1]:
        expected = f"[N, D] with D = centroids.shape[1] = {centroids.shape[1]}"
        raise _checks.bad_value(OP, "x", expected, _checks.describe(x))
    if weights is not None:
        _checks.require_tensor(OP, "weights", weights, dtypes=_checks.FLOATING, ndim=1, shape="[N]")
        if weights.shape[0] != x.shape[0]:
            got = _checks.describe(weights)
            raise _checks.bad_value(OP, "weights", f"[N] with N = {x.shape[0]}", got)
        weights = weights.detach()
    _checks.require_choice(OP, "metric", metric, METRICS)
    device = _checks.require_same_device(OP, x=x, centroids=centroids, weights=weights)
    name = choose_backend(OP, backend, device, centroids, IMPLEMENTED)
    outputs: Outputs = _op(x.detach(), centroids.detach(), weights, metric, name)
    return outputs


def lloyd_step_images(
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
) -> Outputs:
    """:func:`lloyd_step` on the patches of images, the patch matrix never made.

    For uint8 images normalised pixel values and costs are rounded to multiples of 2^-28 (4e-9) and
    summed as integers: adding the results of parts of the data (other calls, other ranks) gives the
    result of the whole, bit for bit, while a sum stays below 2^25. Floating images, and uint8
    images whose normalised values pass 64 in magnitude, are summed in float64 in the order of the
    patches. Both are the same for any thread count.

    Args:
        images, patch_size, mean, std, per_patch_norm, patch_order: as in :func:`patch_tokens`.
        centroids: [K, D] floating, D = patch_size^2 * C, in the order ``patch_order``.
        metric, backend: as in :func:`lloyd_step`.

    Returns:
        ids int64 [B, L]; sums float64 [K, D]; counts int64 [K]; inertia float64 [].

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    _images.require_images(OP_IMAGES, images, patch_size)
    require_centroids(OP_IMAGES, centroids)
    _images.require_patch_width(OP_IMAGES, centroids, images, patch_size)
    means, stds = _images.mean_and_std(OP_IMAGES, mean, std, images.shape[1])
    if per_patch_norm and centroids.shape[1] < 2:
        raise _checks.bad_value(OP_IMAGES, "per_patch_norm", "False for one-value patches", True)
    _checks.require_choice(OP_IMAGES, "patch_order", patch_order, _images.PATCH_ORDERS)
    _checks.require_choice(OP_IMAGES, "metric", metric, METRICS)
    device = _checks.require_same_device(OP_IMAGES, images=images, centroids=centroids)
    name = choose_backend(OP_IMAGES, backend, device, centroids, IMPLEMENTED)
    outputs: Outputs = _images_op(
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
    return outputs
