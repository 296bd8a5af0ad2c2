"""Centroids made by other programs: arrays, .npy (CCViT), .pth (ClusterMIM), .safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch


def as_centroids(source: Any) -> torch.Tensor:
    """A float32 tensor [K, D] from an array, a tensor or a file.

    Raises:
        ValueError, TypeError: not a two-dimensional array of numbers, or a file that holds none.
    """
    if isinstance(source, (str, Path)):
        source = _read(Path(source))
    if not isinstance(source, torch.Tensor):
        array = np.asarray(source)
        if array.dtype.kind not in "fiu":
            raise TypeError(
                f"centroids must be an array of numbers [K, D], got dtype {array.dtype}"
            )
        source = torch.from_numpy(np.array(array, dtype=np.float32))
    if source.dim() != 2:
        raise ValueError(f"centroids must have shape [K, D], got {list(source.shape)}")
    tensor: torch.Tensor = source.detach().float()
    return tensor


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix in (".pth", ".pt"):
        return _only_matrix(path, _load_torch(path))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _only_matrix(path, load_file(path))
    raise ValueError(f"{path}: centroids are read from .npy, .pth, .pt and .safetensors files")


def _load_torch(path: Path) -> Any:
    """Tensors and numpy arrays only: any other pickled object is refused by torch."""
    from numpy import dtype, ndarray

    multiarray = getattr(np, "_core", None) or np.core
    allowed: list[Any] = [ndarray, dtype, multiarray.multiarray._reconstruct]
    for name in ("Float32DType", "Float64DType"):
        found = getattr(np.dtypes, name, None)
        allowed += [] if found is None else [found]
    # Files written with NumPy 1 name the same function by its old address.
    allowed += [(multiarray.multiarray._reconstruct, "numpy.core.multiarray._reconstruct")]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)


def _only_matrix(path: Path, loaded: Any) -> Any:
    if isinstance(loaded, dict):
        matrices = {k: v for k, v in loaded.items() if getattr(v, "ndim", 0) == 2}
        if len(matrices) != 1:
            raise ValueError(
                f"{path} holds {len(matrices)} matrices {sorted(matrices)}, expected one"
            )
        return next(iter(matrices.values()))
    return loaded
