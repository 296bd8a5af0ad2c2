"""The small steps between the ops, on one thread.

Their sums decide when a fit stops, and torch's depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# What numpy arrays and tensors of a GPU alike can do: arithmetic, comparison, indexing, sum().
Values = Any


def serially(function: Callable[..., Values], *tensors: torch.Tensor) -> torch.Tensor:
    """``function`` of the tensors; of numpy arrays on their memory where that is the CPU's."""
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return torch.as_tensor(function(*tensors))
    with np.errstate(all="ignore"):  # as torch: infinity and NaN
        return torch.from_numpy(np.asarray(function(*(tensor.numpy() for tensor in tensors))))


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``values`` in ``dtype``, float32 or float64."""
    if values.dtype == dtype:
        return values
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.to(dtype)
    wanted = np.float32 if dtype == torch.float32 else np.float64
    with np.errstate(all="ignore"):
        return torch.from_numpy(values.numpy().astype(wanted))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all elements are equal."""
    return bool(serially(lambda x, y: (x == y).all(), a, b))
