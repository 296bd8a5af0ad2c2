"""Weight files: read without unpickling, loaded with a verdict."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

# What torch.load raises on files that are cut or of another kind.
_NOT_A_WEIGHT_FILE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    struct.error,
)


@dataclass(frozen=True)
class Verdict:
    """What came of loading weights: names loaded, wanted but absent, present but not wanted."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]

    def line(self) -> str:
        """One line for the log."""
        text = f"{len(self.matched)} tensors loaded"
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                text += f"; {len(names)} {what} ({shown})"
        return text + ("; complete" if not self.missing else "")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weight file, safetensors or torch.load(weights_only=True): never unpickled.

    A nested dict is searched for the usual places ("model", "state_dict", "teacher"), and the
    prefixes "module.", "base_encoder." (MoCo v3), "encoder." and "backbone." are taken off.

    Raises:
        ValueError: no such file, or a file that holds something other than tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"weights: no such file: {file}")
    state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    for key in ("model", "state_dict", "teacher", "encoder"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(
            f"weights: {file} holds a {type(state).__name__}, expected a dict of tensors"
        )
    return {_strip(str(name)): value for name, value in state.items() if isinstance(value, Tensor)}


def _read_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except SafetensorError as error:
        raise ValueError(f"weights: {file} is not a safetensors file: {error}") from error


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"weights: {file} holds Python objects besides tensors, which are never unpickled "
            "here; save its state dict alone, best as safetensors"
        ) from error
    except _NOT_A_WEIGHT_FILE as error:
        raise ValueError(f"weights: {file} cannot be read as tensors: {error}") from error


def _strip(name: str) -> str:
    for prefix in ("module.", "base_encoder.", "encoder.", "backbone."):
        name = name.removeprefix(prefix)
    return name


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    keep: tuple[str, ...] = (),
    adapt: Callable[[State], State] | None = None,
    complete: bool = False,
    state: State | None = None,
) -> Verdict:
    """Load a weight file into `module` and say what matched.

    Args:
        keep: names of `module` that are never overwritten (fixed position embeddings).
        adapt: renames and resamples what the file holds, see ``encoders.timm_filter``.
        complete: refuse a file that lacks a tensor of `module`.
        state: what `read_state` made of the file, where the caller has it.

    Raises:
        ValueError: a tensor of another shape or a missing one (all are named), or no tensor in
        common.
    """
    wanted = {name: value for name, value in module.state_dict().items() if name not in keep}
    state = read_state(path) if state is None else state
    if adapt is not None:
        try:
            state = adapt(state)
        except (RuntimeError, KeyError, AttributeError, AssertionError, IndexError) as error:
            raw = Verdict(
                sorted(wanted.keys() & state.keys()),
                sorted(wanted.keys() - state.keys()),
                sorted(state.keys() - wanted.keys()),
            )
            raise ValueError(
                f"weights: {path} does not fit the model ({type(error).__name__}: {error}); by "
                f"their names as they are: {raw.line()}"
            ) from error
    state = {name: value for name, value in state.items() if name not in keep}
    matched = sorted(wanted.keys() & state.keys())
    wrong = [
        f"{name}: file {list(state[name].shape)}, model {list(wanted[name].shape)}"
        for name in matched
        if state[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(f"weights: {path} does not fit the model: " + "; ".join(wrong[:6]))
    if not matched:
        raise ValueError(
            f"weights: {path} has no tensor name in common with the model; it has "
            f"{', '.join(sorted(state)[:4]) or 'none'}, the model has "
            f"{', '.join(sorted(wanted)[:4])}"
        )
    missing = sorted(wanted.keys() - state.keys())
    verdict = Verdict(matched, missing, sorted(state.keys() - wanted.keys()))
    if complete and missing:
        raise ValueError(f"weights: {path} does not fill the model: {verdict.line()}")
    module.load_state_dict({name: state[name] for name in matched}, strict=False)
    return verdict
