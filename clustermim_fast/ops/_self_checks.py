"""A small problem for each op on which its Triton kernels must agree with its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from clustermim_fast.ops import _backend
from clustermim_fast.ops.lloyd_step import op as _lloyd_step
from clustermim_fast.ops.masked_cross_entropy import op as _masked_cross_entropy
from clustermim_fast.ops.masked_linear_cross_entropy import op as _masked_linear_cross_entropy
from clustermim_fast.ops.nearest_centroid import op as _nearest_centroid
from clustermim_fast.ops.patch_tokens import op as _patch_tokens
from clustermim_fast.ops.replace_patches import op as _replace_patches

_MODULES: tuple[Any, ...] = (
    _nearest_centroid,
    _patch_tokens,
    _lloyd_step,
    _replace_patches,
    _masked_cross_entropy,
    _masked_linear_cross_entropy,
)


def _same(op: str, got: Any, expected: Any) -> None:
    pairs = [(got, expected)] if isinstance(got, torch.Tensor) else zip(got, expected, strict=True)
    for a, b in pairs:
        differing = int((a != b).sum())
        if differing:
            raise AssertionError(f"{op}: {differing} of {a.numel()} values differ")


def _check_replace_patches(device: torch.device) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 12, generator=draw).to(device)
    centroids = torch.rand(5, 48, generator=draw).to(device)
    ids = torch.randint(-1, 5, (2, 6), generator=draw).to(device)
    where = torch.rand(2, 6, generator=draw).to(device) < 0.5
    for pictures in (images, (images * 255).to(torch.uint8)):
        got, expected = (
            _replace_patches.replace_patches(pictures, ids, centroids, where, 4, backend=name)
            for name in ("triton", "reference")
        )
        _same("replace_patches", got, expected)


CHECKS: dict[str, Callable[[torch.device], None]] = {
    "replace_patches": _check_replace_patches,
}


def warmup(device: torch.device | str | None = None) -> dict[str, str]:
    """Check the GPU kernels of every op on ``device`` now, instead of at the first call of each.

    Call it before ``torch.compile`` or CUDA graph capture: there nothing can be checked, and an op
    without a checked kernel runs as plain torch. Takes a few seconds once per device and version.

    Args:
        device: a CUDA device; None: the current one, or the CPU where there is none.

    Returns:
        For each op the name of the back-end that serves it on ``device`` from now on.
    """
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.empty(0, device=wanted).device  # with its index
    return {m.OP: _backend.resolve(m.OP, None, chosen, m.IMPLEMENTED) for m in _MODULES}
