"""Products as tensor cores form them, interpreted: the table of docs/certificate.md, section 8."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clustermim_fast.ops.nearest_centroid import triton_probe, triton_sizes
from tests.gpu.strict_numbers import Builder, Handle

# Products that are added at once, and the bits to which each addend is cut.
MODELS = {"sm_80": (8, 25), "sm_90": (16, 26), "any other": (4, 24)}


def _cut(values: np.ndarray, like: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Values as whole multiples, cut towards zero, of the unit in which ``like`` has these bits."""
    unit = np.ldexp(1.0, np.frexp(np.abs(like))[1] - bits)
    return np.trunc(values / unit), unit


def accumulated(
    a: np.ndarray, b: np.ndarray, start: np.ndarray, group: int, bits: int
) -> np.ndarray:
    """float32 a b + start of float16 matrices. Products, and sums of what is cut, are exact."""
    a, b, total = a.astype(np.float64), b.astype(np.float64), start.astype(np.float64)
    for k in range(0, a.shape[1], group):
        products = a[:, k : k + group, None] * b[None, k : k + group]
        addends = np.concatenate([products, total[:, None]], 1)
        parts, unit = _cut(addends, np.abs(addends).max(1, keepdims=True), bits)
        total = parts.sum(1) * unit[:, 0]
        part, unit = _cut(total, total, 24)
        total = part * unit
    return total.astype(np.float32)


@contextlib.contextmanager
def emulated(arch: str) -> Iterator[None]:
    """Products of float16 are those of ``arch``, inside ``strict.checked()``, and the kernels'
    bound is the one for it."""
    group, bits = MODELS[arch]
    plain = Builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.data.dtype != np.float16:
            return plain(self, a, b, d, *rest)
        return Handle(accumulated(a.data, b.data, d.data, group, bits), d.dtype)

    def accumulation_of(_: str) -> float:
        return triton_sizes.tensor_cores_of(arch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "create_dot", create_dot)
        for module in (triton_sizes, triton_probe):
            patch.setattr(module, "accumulation_of", accumulation_of)
        yield
