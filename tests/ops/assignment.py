"""The check that the tests of nearest_centroid share: ids on every path against the truth."""

from __future__ import annotations

import numpy as np
import torch

from clustermim_fast import ops
from tests.ops.harness import running, usable_paths
from tests.ops.truth import nearest_ids


def check_ids(
    x: torch.Tensor, c: torch.Tensor, metric: str = "euclidean", path: str | None = None
) -> np.ndarray:
    """Ids on one path, or on all that this machine has, are the truth's; returns them."""
    expected = nearest_ids(x, c, metric)
    for name in [path] if path else usable_paths():
        with running(name) as backend:
            ids = ops.nearest_centroid(x, c, metric=metric, backend=backend)
        assert ids.dtype == torch.int64
        wrong = np.flatnonzero(ids.numpy().ravel() != expected.ravel())
        assert ids.shape == expected.shape
        assert len(wrong) == 0, (
            f"{name}: {len(wrong)} wrong of {ids.numel()}, row {wrong[0]}: "
            f"{ids.numpy().ravel()[wrong[0]]}, not {expected.ravel()[wrong[0]]}"
        )
    return expected
