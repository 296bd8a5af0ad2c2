"""Centroids made by other programs: arrays, .npy (CCViT), .pth (ClusterMIM), .safetensors."""

from __future__ import annotations

import codecs
from pathlib import Path
from pickle import UnpicklingError
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
    # codecs.encode makes the bytes of an array; torch before 2.5 does not allow it by itself.
    allowed: list[Any] = [np.ndarray, np.dtype, codecs.encode, *_array_makers()]
    for name in ("Float32DType", "Float64DType"):
        found = getattr(getattr(np, "dtypes", None), name, None)  # NumPy 1.25 and newer
        allowed += [] if found is None else [found]
    before = list(torch.serialization.get_safe_globals())  # torch 2.4 gives its own list
    torch.serialization.add_safe_globals(allowed)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as tensors or arrays; other Python objects are never "
            f"unpickled: {str(error).partition(chr(10))[0]}"
        ) from error
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _array_makers() -> list[Any]:
    """The function that pickled arrays name, under the addresses that NumPy 1 and 2 write."""
    reconstruct: Any = np.empty(0).__reduce__()[0]
    makers = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):

        def make(*arguments: Any) -> Any:
            return reconstruct(*arguments)

        make.__module__, make.__name__, make.__qualname__ = module, "_reconstruct", "_reconstruct"
        makers.append(make)
    return makers


def _only_matrix(path: Path, loaded: Any) -> Any:
    if isinstance(loaded, dict):
        matrices = {k: v for k, v in loaded.items() if getattr(v, "ndim", 0) == 2}
        if len(matrices) != 1:
            raise ValueError(
                f"{path} holds {len(matrices)} matrices {sorted(matrices)}, expected one"
            )
        return next(iter(matrices.values()))
    return loaded
