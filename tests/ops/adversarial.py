"""Rows and centroids on which a wrong nearest centroid is likely: named, seeded generators.

``make(name, n, d, k, ...)`` gives ``x`` [n, d] and ``c`` [k, d]. Which id is right is not known
here; ``truth.py`` says. No generator looks at how the package computes: each aims at one way in
which a low-precision filter, a bound, a list of candidates or a tie rule can fail.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

from tests.ops import adversarial_sizes, adversarial_ties
from tests.ops.adversarial_base import GENERATORS, ROUNDED, Ask

__all__ = ["GENERATORS", "adversarial_sizes", "adversarial_ties", "make"]


def make(
    name: str,
    n: int,
    d: int,
    k: int,
    metric: str = "euclidean",
    dtype: torch.dtype = torch.float32,
    c_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` of ``dtype`` and ``c`` of ``c_dtype`` (default: the same), equal at every call."""
    c_dtype = c_dtype or dtype
    seed = zlib.crc32(f"{name} {n} {d} {k} {metric} {dtype} {c_dtype}".encode())
    narrow = min(dtype, c_dtype, key=lambda t: ROUNDED[t][1])
    x, c = GENERATORS[name](Ask(np.random.default_rng(seed), n, d, k, metric, dtype))
    assert x.shape == (n, d), name
    assert c.shape == (k, d), name
    largest = max((np.abs(v[np.isfinite(v)]).max(initial=0.0) for v in (x, c)), default=0.0)
    shift = min(0, ROUNDED[narrow][1] - int(np.frexp(largest)[1]))  # float16 keeps 1e6 finite
    with np.errstate(under="ignore"):
        x, c = np.ldexp(x, shift), np.ldexp(c, shift)
    return torch.from_numpy(x).to(dtype), torch.from_numpy(c).to(c_dtype)
