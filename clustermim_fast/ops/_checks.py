"""One message format for everything an op refuses: what, expected, got, remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _message(op: str, arg: str, expected: str, got: str, remedy: str) -> str:
    text = f"{op}: {arg} must be {expected}, got {got}"
    return f"{text}; {remedy}" if remedy else text


def bad_value(op: str, arg: str, expected: str, got: object, remedy: str = "") -> ValueError:
    return ValueError(_message(op, arg, expected, str(got), remedy))


def bad_type(op: str, arg: str, expected: str, got: object, remedy: str = "") -> TypeError:
    return TypeError(_message(op, arg, expected, str(got), remedy))


def describe(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} tensor of shape {tuple(tensor.shape)} on {tensor.device}"


def require_tensor(
    op: str,
    arg: str,
    value: Any,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    ndim: int | None = None,
    shape: str = "",
    remedy: str = "",
) -> torch.Tensor:
    """Return ``value`` if it is a plain strided tensor of one of ``dtypes`` (and rank ``ndim``)."""
    if not isinstance(value, torch.Tensor):
        remedy = "wrap numpy arrays with torch.from_numpy"
        raise bad_type(op, arg, "a torch.Tensor", type(value).__name__, remedy)
    # DTensor: its data_ptr is one shard. In the form that torch 2.4 can compile.
    if getattr(type(value), "full_tensor", None) is not None:
        raise bad_type(op, arg, "a plain tensor", "a DTensor", "pass .to_local() or .full_tensor()")
    if value.layout is not torch.strided:
        raise bad_type(
            op, arg, "a dense strided tensor", f"layout {value.layout}", "call .to_dense()"
        )
    if dtypes is not None and value.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise bad_type(op, arg, f"of dtype {names}", describe(value), remedy)
    if ndim is not None and value.dim() != ndim:
        expected = f"{ndim}-dimensional{' ' + shape if shape else ''}"
        raise bad_value(op, arg, expected, describe(value), remedy)
    return value


def require_same_device(op: str, **tensors: torch.Tensor | None) -> torch.device:
    """Return the one device all given tensors share."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first, device = next((name, t.device) for name, t in given.items())
    for name, tensor in given.items():
        if tensor.device != device:
            got = f"{tensor.device} while {first} is on {device}"
            raise bad_value(op, name, f"on {device}", got, f"call {name}.to({str(device)!r})")
    return device


def require_choice(op: str, arg: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise bad_value(op, arg, f"one of {', '.join(map(repr, choices))}", repr(value))
    return str(value)
