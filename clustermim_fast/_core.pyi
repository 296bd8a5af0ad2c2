"""The compiled kernels. Private: clustermim_fast.ops checks what these take on trust.

Addresses are ``tensor.data_ptr()``, 0 for "not given"; strides in elements; dtype codes are those
of ``ops/_backend.py``. Tier counts are rows decided in float64, rows decided exactly, invalid rows.
"""

from collections.abc import Sequence
from typing import Any

_Tiers = tuple[int, int, int, int]

def build_info() -> dict[str, Any]: ...
def set_certified(*, certified: bool) -> None: ...
def set_projection(*, when: str) -> None: ...
def share_threads(*, library: str) -> bool: ...
def set_isa(*, name: str) -> None: ...
def nearest_centroid(
    *,
    x: int,
    x_dtype: int,
    x_row_stride: int,
    num_rows: int,
    dim: int,
    centroids: int,
    centroids_dtype: int,
    centroids_row_stride: int,
    num_centroids: int,
    metric: str,
    ids: int,
    distance: int,
    threads: int,
) -> _Tiers: ...
def patch_tokens(
    *,
    images: int,
    images_dtype: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    image_strides: tuple[int, int, int, int],
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
    patch_order: str,
    centroids: int,
    centroids_dtype: int,
    centroids_row_stride: int,
    num_centroids: int,
    metric: str,
    ids: int,
    threads: int,
) -> _Tiers: ...
def lloyd_step(
    *,
    x: int,
    x_dtype: int,
    x_row_stride: int,
    num_rows: int,
    dim: int,
    weights: int,
    centroids: int,
    centroids_dtype: int,
    centroids_row_stride: int,
    num_centroids: int,
    metric: str,
    ids: int,
    sums: int,
    counts: int,
    inertia: int,
    threads: int,
) -> _Tiers: ...
def lloyd_step_images(
    *,
    images: int,
    images_dtype: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    image_strides: tuple[int, int, int, int],
    patch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    per_patch_norm: bool,
    patch_order: str,
    centroids: int,
    centroids_dtype: int,
    centroids_row_stride: int,
    num_centroids: int,
    metric: str,
    ids: int,
    sums: int,
    counts: int,
    inertia: int,
    threads: int,
) -> _Tiers: ...
def replace_patches(
    *,
    images: int,
    element_size: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    patch_size: int,
    ids: int,
    where: int,
    pixels: int,
    num_centroids: int,
    threads: int,
) -> None: ...
