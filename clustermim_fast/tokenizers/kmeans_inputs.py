"""numpy and torch inputs of the KMeans estimator, without copies where none is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class _SharedMemory:
    """Offers an array's memory as writable, so that torch takes read-only arrays without a warning.

    Nothing here writes to it: rows are only read. Keeps the array alive.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def tensor_view(array: npt.NDArray[Any]) -> torch.Tensor:
    """The array as a CPU tensor on the same memory (one copy if its strides are negative)."""
    if any(s < 0 or s % array.itemsize for s in array.strides):
        array = np.ascontiguousarray(array)
    if not array.flags.writeable and array.size:
        array = np.asarray(_SharedMemory(array))
    return torch.from_numpy(array)


def read_rows(estimator: Any, X: Any, *, reset: bool, fewest: int = 1) -> tuple[torch.Tensor, bool]:
    """X as a tensor [N, D], and whether it was a tensor; sets or checks ``n_features_in_``.

    numpy and array-likes follow scikit-learn's rules: float32 and float64 stay, the rest becomes
    float64. NaN is found later, in the first pass over the rows.
    """
    if not isinstance(X, torch.Tensor):
        from sklearn.utils.validation import validate_data

        array = validate_data(
            estimator,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            ensure_all_finite=False,
            ensure_min_samples=fewest,
        )
        return tensor_view(array), False
    if X.layout is not torch.strided or X.dtype not in FLOATING:
        names = ", ".join(str(d).removeprefix("torch.") for d in FLOATING)
        got = f"{X.dtype}, {X.layout}"
        raise TypeError(f"KMeans: X must be a dense tensor of dtype {names}, got {got}; X.float()")
    if X.dim() != 2 or len(X) < fewest or X.shape[1] == 0:
        expected = f"of shape [n_samples >= {fewest}, n_features >= 1]"
        raise ValueError(f"KMeans: X must be {expected}, got {tuple(X.shape)}")
    if reset:
        estimator.n_features_in_ = int(X.shape[1])
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif X.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"X has {X.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input"
        )
    return X.detach(), True


def read_weights(sample_weight: Any, x: torch.Tensor, *, some: bool = True) -> torch.Tensor | None:
    """``sample_weight`` as float64 [N] on x's device, or None; finite, >= 0, ``some`` not zero."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, torch.Tensor):
        weights = sample_weight.detach().to(x.device, torch.float64)
    elif isinstance(sample_weight, (int, float)):
        weights = torch.full((x.shape[0],), float(sample_weight), dtype=torch.float64)
    else:
        weights = torch.from_numpy(np.array(sample_weight, dtype=np.float64))
    weights = weights.to(x.device)
    if weights.shape != (x.shape[0],):
        raise ValueError(
            f"sample_weight.shape == {tuple(weights.shape)}, expected {(x.shape[0],)}!"
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError("sample_weight must be finite and >= 0")
    if some and not bool((weights > 0).any()):
        raise ValueError("sample_weight must have a value > 0, got zeros only")
    return weights


def as_input_kind(tensor: torch.Tensor, is_tensor: bool, device: torch.device | None = None) -> Any:
    """A result in the kind of the input: a tensor on ``device``, or a numpy array."""
    if is_tensor:
        return tensor if device is None else tensor.to(device)
    return tensor.cpu().numpy()
