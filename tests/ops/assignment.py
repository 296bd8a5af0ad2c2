"""The check that the tests of nearest_centroid share: ids on every path against the truth."""

from __future__ import annotations

import numpy as np
import torch

from clustermim_fast import ops
from tests.ops.harness import fewer, running, usable_paths
from tests.ops.truth import nearest_ids


def check_ids(
    x: torch.Tensor, c: torch.Tensor, metric: str = "euclidean", path: str | None = None
) -> np.ndarray:
    """Ids on one path, or on all that this machine has, are the truth's; returns them."""
    expected = nearest_ids(x, c, metric)
    _compare(x, c, metric, [path] if path else usable_paths(), expected)
    return expected


def check_compiled(x: torch.Tensor, c: torch.Tensor, metric: str) -> np.ndarray:
    """The same on every compiled path: the reference takes seconds where many centroids tie.

    Interpreted, the first rows alone.
    """
    n = min(len(x), fewer(len(x), 16))
    expected = nearest_ids(x, c, metric)
    _compare(x[:n], c, metric, usable_paths()[1:], expected[:n])
    return expected


def _compare(
    x: torch.Tensor, c: torch.Tensor, metric: str, paths: list[str], expected: np.ndarray
) -> None:
    for name in paths:
        with running(name) as backend:
            ids = ops.nearest_centroid(x, c, metric=metric, backend=backend)
        assert ids.dtype == torch.int64
        wrong = np.flatnonzero(ids.numpy().ravel() != expected.ravel())
        assert ids.shape == expected.shape
        assert len(wrong) == 0, (
            f"{name}: {len(wrong)} wrong of {ids.numel()}, row {wrong[0]}: "
            f"{ids.numpy().ravel()[wrong[0]]}, not {expected.ravel()[wrong[0]]}"
        )
