"""A small problem for each op on which its GPU kernels must agree with its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from clustermim_fast.ops import _backend, _checks, _triton
from clustermim_fast.ops.lloyd_step import op as _lloyd_step
from clustermim_fast.ops.lloyd_step.reference import IMAGE_QUANTUM
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
OPS = {m.OP: m.IMPLEMENTED for m in _MODULES} | {_lloyd_step.OP_IMAGES: _lloyd_step.IMPLEMENTED}


def _same(op: str, got: Any, expected: Any) -> None:
    pairs = [(got, expected)] if isinstance(got, torch.Tensor) else zip(got, expected, strict=True)
    for a, b in pairs:
        differing = int((a != b).sum())
        if differing:
            raise AssertionError(f"{op}: {differing} of {a.numel()} values differ")


def _check_replace_patches(device: torch.device, backend: str = "triton") -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 12, generator=draw).to(device)
    centroids = torch.rand(5, 48, generator=draw).to(device)
    ids = torch.randint(-1, 5, (2, 6), generator=draw).to(device)
    where = torch.rand(2, 6, generator=draw).to(device) < 0.5
    for pictures in (images, (images * 255).to(torch.uint8)):
        got, expected = (
            _replace_patches.replace_patches(pictures, ids, centroids, where, 4, backend=name)
            for name in (backend, "reference")
        )
        _same("replace_patches", got, expected)


# Relative to the norm: a 16-bit gradient's operands and values are each rounded by 2^-9 of
# themselves, and a float32 product may run in tf32.
_LOSS_ERROR = 2.0**-7
# Of one row, whose terms may cancel. A stale row is off by 1, 16 bytes of one of 512 values by 1/8.
_ROW_ERROR = 2.0**-4


def _close(op: str, got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        error = float((a.double() - b.double()).norm() / b.double().norm())
        if not error < _LOSS_ERROR:
            raise AssertionError(f"{op}: differs by {error:.3g} of its size")
        if b.dim() < 2:
            continue
        off, size = (a.double() - b.double()).norm(dim=-1), b.double().norm(dim=-1)
        wrong = int((~(off <= _ROW_ERROR * size)).sum())
        if wrong:
            raise AssertionError(f"{op}: {wrong} of {size.numel()} rows differ")


def _check_masked_cross_entropy(device: torch.device, backend: str = "triton") -> None:
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 50, generator=draw).to(device) < 0.7
    for classes in (100, 1000):
        target = torch.randint(classes, (3, 50), generator=draw).to(device)
        values = torch.randn(3, 50, classes, generator=draw).to(device)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            found = []
            for name in (backend, "reference"):
                logits = values.to(dtype).requires_grad_()
                with torch.enable_grad():
                    loss = _masked_cross_entropy.masked_cross_entropy(
                        logits, target, mask, label_smoothing=0.1, backend=name
                    )
                found.append((loss.detach(), *torch.autograd.grad(loss, logits)))
            _close("masked_cross_entropy", *found)


class _LinearCase(NamedTuple):
    samples: int
    dim: int
    classes: int
    dtypes: tuple[torch.dtype, ...]
    masked_per_sample: int | None = None
    reduction: str = "mean"
    input_needs_grad: bool = True


def _linear_cases(device: torch.device, backend: str) -> tuple[_LinearCase, ...]:
    half, brain = torch.float16, torch.bfloat16
    if backend != "cuda":
        dtypes = (torch.float32, brain, half)
        return (
            _LinearCase(3, 64, 100, dtypes),
            _LinearCase(3, 64, 300, dtypes, masked_per_sample=_MASKED),
        )
    # One block, and two, for each tile, with more turns than a ring has slots; then every other
    # shape of a block, and products of other numbers of classes.
    blocks = _triton.properties(device).multiprocessors
    return (
        _LinearCase(12 * blocks, 64, 100, (brain, half)),
        _LinearCase(6 * blocks, 512, 100, (brain, half), masked_per_sample=_MASKED),
        _LinearCase(8, 200, 7, (brain,), reduction="none"),
        _LinearCase(8, 136, 90, (half,), input_needs_grad=False),
        _LinearCase(8, 264, 40, (half,)),
        _LinearCase(8, 512, 70, (brain,)),
    )


_MASKED = 35  # of 50 tokens


def _check_masked_linear_cross_entropy(device: torch.device, backend: str = "triton") -> None:
    draw = torch.Generator().manual_seed(0)
    for case in _linear_cases(device, backend):
        samples, dim, classes = case[:3]
        mask = torch.rand(samples, 50, generator=draw).argsort(1).to(device) < _MASKED
        x = torch.randn(samples, 51, dim, generator=draw).to(device)
        target = torch.randint(classes, (samples, 50), generator=draw).to(device)
        w = torch.randn(classes, dim, generator=draw).to(device) * 0.2
        b = torch.randn(classes, generator=draw).to(device)
        # For 16 bits no power of two: dX is made again where the forward made it.
        grad = torch.full((samples, 50) if case.reduction == "none" else (), 48.0, device=device)
        for dtype in case.dtypes:
            found = []
            for name in (backend, "reference"):
                leaves = [t.to(dtype).requires_grad_() for t in (x, w, b)]
                leaves[0].requires_grad_(case.input_needs_grad)
                with torch.enable_grad():
                    loss = _masked_linear_cross_entropy.masked_linear_cross_entropy(
                        leaves[0], leaves[1], target, mask, linear_bias=leaves[2],
                        label_smoothing=0.1, num_prefix_tokens=1,
                        masked_per_sample=case.masked_per_sample, reduction=case.reduction,
                        backend=name,
                    )  # fmt: skip
                wanted = leaves if case.input_needs_grad else leaves[1:]
                made = torch.autograd.grad(loss, wanted, grad)
                found.append((loss.detach()[..., None], *made))
            _close("masked_linear_cross_entropy", *found)


def _patch_cases(
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]:
    """Images, centroids near their patches, and options, of patch_tokens and lloyd_step_images."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 32, 48, generator=draw)
    centroids = torch.randn(70, 48, generator=draw).to(device)
    common: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    bytes_ = (images * 255).to(torch.uint8)
    for pictures, options in (
        (images, {"patch_order": "chw"}),
        (bytes_, {}),
        (bytes_.contiguous(memory_format=torch.channels_last), {"metric": "cosine"}),
        (bytes_, {"per_patch_norm": True}),
    ):
        yield pictures.to(device), centroids, {**common, **options}


def _check_patch_tokens(device: torch.device, backend: str = "triton") -> None:
    for images, centroids, options in _patch_cases(device):
        if backend == "cuda":  # which takes no others
            if images.is_floating_point():
                continue
            options["metric"] = "euclidean"
        got, expected = (
            _patch_tokens.patch_tokens(images, centroids, 4, **options, backend=name)
            for name in (backend, "reference")
        )
        _same("patch_tokens", got, expected)


def _check_sums(op: str, got: Any, expected: Any, dim: int, quantum: float = 0.0) -> None:
    """Two results of a Lloyd step but for their ids: float64 sums in any order, of values below 8
    and costs whose terms' magnitudes are below 100 a row on average."""
    n, unit = expected[0].numel(), 2.0**-52
    count = expected[2]
    bounds = (
        0.0 * count[:, None] if quantum else unit * n * 8 * count[:, None],
        unit * n * count,
        unit * (n + dim + 8) * (expected[3].abs() + 100 * n) + quantum * n,
    )
    for a, b, bound in zip(got[1:], expected[1:], bounds, strict=True):
        if not ((a - b).abs() <= bound).all():
            raise AssertionError(f"{op}: sums differ by more than their rounding")


def _check_lloyd_step(device: torch.device, backend: str = "triton") -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(700, 48, generator=draw).to(device)
    rows[5, 3] = float("nan")
    centroids = torch.randn(70, 48, generator=draw).to(device)
    weights = torch.rand(700, generator=draw).to(device)
    for metric in ("euclidean", "dot"):
        for weight in (None, weights):
            got, expected = (
                _lloyd_step.lloyd_step(rows, centroids, weights=weight, metric=metric, backend=name)
                for name in (backend, "reference")
            )
            _same("lloyd_step", got[0], expected[0])
            _check_sums("lloyd_step", got, expected, 48)


def _check_lloyd_step_images(device: torch.device, backend: str = "triton") -> None:
    op = _lloyd_step.OP_IMAGES
    for images, centroids, options in _patch_cases(device):
        got, expected = (
            _lloyd_step.lloyd_step_images(images, centroids, 4, **options, backend=name)
            for name in (backend, "reference")
        )
        _same(op, got[0], expected[0])
        _check_sums(op, got, expected, 48, IMAGE_QUANTUM if images.dtype == torch.uint8 else 0.0)


def _check_nearest_centroid(device: torch.device, backend: str = "triton") -> None:
    from clustermim_fast.ops.nearest_centroid.triton_probe import worst_product

    worst = worst_product(device, _triton.properties(device).arch)
    if not worst <= 1.0:
        raise AssertionError(f"nearest_centroid: a product is off by {worst:.2f} of its bound")
    draw = torch.Generator().manual_seed(0)
    for n, d, k in ((300, 48, 200), (100, 384, 300)):
        centroids = torch.randint(-9, 10, (k, d), generator=draw) / 8
        x = torch.randn(n, d, generator=draw)
        x[:9], x[9, 1] = (centroids[:9] + centroids[9:18]) / 2, float("nan")  # near ties, ties
        for metric in _nearest_centroid.METRICS:
            for dtype in _checks.FLOATING:
                if backend == "cuda" and dtype == torch.float64:
                    continue  # which it does not take
                got, expected = (
                    _nearest_centroid.nearest_centroid(
                        x.to(device, dtype), centroids.to(device), metric=metric, backend=name
                    )
                    for name in (backend, "reference")
                )
                _same("nearest_centroid", got, expected)


CHECKS: dict[str, Callable[..., None]] = {
    "lloyd_step": _check_lloyd_step,
    "lloyd_step_images": _check_lloyd_step_images,
    "patch_tokens": _check_patch_tokens,
    "nearest_centroid": _check_nearest_centroid,
    "replace_patches": _check_replace_patches,
    "masked_cross_entropy": _check_masked_cross_entropy,
    "masked_linear_cross_entropy": _check_masked_linear_cross_entropy,
}


def warmup(device: torch.device | str | None = None) -> dict[str, str]:
    """Check the GPU kernels of every op on ``device`` now, instead of at the first call of each.

    Call it before ``torch.compile`` or CUDA graph capture: there nothing can be checked. An op
    without a checked kernel is compiled as plain torch; in a graph that is a RuntimeError, but for
    the losses. Takes a few seconds once per device and version.

    Args:
        device: a CUDA device; None: the current one, or the CPU where there is none.

    Returns:
        For each op the name of the back-end that serves it on ``device`` from now on.
    """
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.empty(0, device=wanted).device  # with its index
    return {op: _backend.resolve(op, None, chosen, names) for op, names in OPS.items()}
