"""Comparing the losses with their truth: shared by the tests of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from clustermim_fast.ops import _backend
from clustermim_fast.ops.masked_linear_cross_entropy import problem
from clustermim_fast.ops.masked_linear_cross_entropy.problem import ON_GPU
from tests.ops.harness import GPU_PATH, ON_CUDA, ON_TRITON

UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
SMALLEST = {
    torch.float64: 0.0,
    torch.float32: 2.0**-149,
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-133,
}
KERNELS = GPU_PATH if ON_TRITON else "cpu"  # those that this run is about
BACKENDS = (GPU_PATH,) if ON_TRITON else ("reference", "cpu")
# A GPU's kernels refuse float64.
FLOAT64_BACKENDS = ("reference",) if ON_TRITON else BACKENDS
DTYPES = (
    (torch.bfloat16, torch.float16)
    if ON_CUDA
    else (torch.float32, torch.bfloat16, torch.float16, *([] if ON_TRITON else [torch.float64]))
)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def operand_unit(*operands: torch.Tensor, backend: str = KERNELS) -> float:
    """What the back-end rounds the logits' gradient with before multiplying by ``operands``.

    Their own 16-bit dtype on a GPU, bfloat16 where the core multiplies that in tiles, else
    nothing.
    """
    dtype = operands[0].dtype
    if backend in ON_GPU:
        agree = dtype.itemsize == 2 and all(t.dtype == dtype for t in operands)
        return UNIT[dtype] if agree else 0.0
    narrow = all(t.dtype == torch.bfloat16 for t in operands)
    tiles = backend == "cpu" and narrow and _backend.core().linear_rows_usable()
    return UNIT[torch.bfloat16] if tiles else 0.0


def softmax_unit(x: torch.Tensor, weight: torch.Tensor, backend: str = KERNELS) -> float:
    """What the back-end may round the softmax with, before ``operand_unit``.

    float16 on Triton, where bfloat16 rows of logits do not stay and the forward pass makes the
    gradients; a backward pass of its own does not.
    """
    kept = backend == "triton" and x.dtype == weight.dtype == torch.bfloat16
    kept = kept and not problem.logits_stay(x, weight.dtype, len(weight))
    return UNIT[torch.float16] if kept else 0.0


def assert_within(
    name: str,
    got: torch.Tensor,
    want: np.ndarray,
    bound: np.ndarray,
    factor: float = 1.0,
    rounded: torch.dtype | None = None,
) -> None:
    """``got`` is ``want`` but for ``bound`` and one rounding to its own dtype.

    ``factor``: what ``got`` was multiplied by after it had been rounded: unless that is a power of
    two the product is rounded, too. ``rounded``: the dtype of those roundings where it is not
    ``got``'s own, which then adds one of its own at most.
    """
    rounded = got.dtype if rounded is None else rounded
    assert tuple(got.shape) == np.shape(want), (name, tuple(got.shape), np.shape(want))
    value = array(got)
    same = (value == want) | (np.isnan(value) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, abs(value - want))
    kept = (1 + UNIT[rounded]) ** (1 if abs(np.frexp(factor)[0]) == 0.5 else 2)
    if rounded != got.dtype:
        kept *= 1 + UNIT[got.dtype]
    allowed = (
        bound * kept
        + (kept - 1) * abs(np.nan_to_num(want))
        + max(SMALLEST[got.dtype], SMALLEST[rounded]) * max(1.0, abs(factor))
    )
    worst = np.max(error - allowed, initial=-np.inf)
    assert worst <= 0, (
        f"{name}: error {error.max():.3g}, allowed {np.max(allowed):.3g} over by {worst:.3g}"
    )


def assert_no_farther(
    name: str, ours: np.ndarray, torchs: np.ndarray, want: np.ndarray, bound: np.ndarray
) -> None:
    """The error budget, element by element: |ours - truth| <= |torch's - truth| + 2 bound.

    ``bound`` is that of the arithmetic before the last rounding. The value of ``ours``' dtype that
    is nearest to the truth is at least as near as torch's, and rounding a value off by ``bound``
    adds at most twice that.
    """
    error, theirs = abs(ours - want), abs(torchs - want)
    assert (error <= theirs + 2 * bound).all(), (name, float((error - theirs - 2 * bound).max()))
    # And as a whole, where the bound is loose: root mean square, within what reordering can change.
    assert rms(error) <= 1.25 * rms(theirs) + UNIT[torch.float32] * rms(want), (
        name,
        rms(error),
        rms(theirs),
    )


def assert_errors_no_larger(
    name: str,
    ours: np.ndarray,
    torchs: np.ndarray,
    want: np.ndarray,
    bound: np.ndarray,
    again: float = 0.0,
) -> None:
    """Root mean square and largest error of all elements: no larger than torch's.

    Slack: ``bound``, what float32 may miss the truth by where nothing is rounded to 16 bits;
    ``again``, the size of a rounding that only ours has, beside one that both have: it adds as
    squares do on the whole, and in full at worst. Both sides round other values, so that their
    errors are two samples of n: the ratio of their roots varies by 1 / sqrt(n), that of their
    largest, as a normal distribution's, by sqrt(2) pi / sqrt(6) / (2 ln n). Four times that.
    """
    error, theirs = abs(ours - want), abs(torchs - want)
    size = np.size(want)
    of_mean = 4 / size**0.5 if size > 1 else 0.0
    of_largest = 4 * np.pi / 3**0.5 / (2 * np.log(size)) if size > 1 else 0.0
    pairs = (
        (rms(error), rms(theirs) * (1 + again**2) ** 0.5 * (1 + of_mean), rms(bound)),
        (error.max(), theirs.max() * (1 + again) * (1 + of_largest), np.max(bound)),
    )
    for got, allowed, float32 in pairs:
        assert got <= allowed + float32, (name, got, allowed, float32)


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if np.size(values) else 0.0


def tokens_mask(batch: int, tokens: int, masked: int) -> torch.Tensor:
    """bool [B, L] with exactly ``masked`` True in each row."""
    order = torch.rand(batch, tokens).argsort(1)
    return order < masked
