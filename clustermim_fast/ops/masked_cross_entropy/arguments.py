"""What both masked losses check of their target, mask, token_weight and options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from clustermim_fast.ops import _backend, _checks

REDUCTIONS = ("mean", "sum", "none")
_TARGET_DTYPES = (torch.int64, torch.int32)
_TARGET_REMEDY = "it holds class ids; call target.long() if yours have another dtype"


def check_tokens(
    op: str, target: Any, mask: Any, token_weight: Any, shape: Sequence[int], what: str
) -> None:
    """``target``, ``mask`` and ``token_weight`` have the shape [..., L] that ``what`` gives."""
    shape = tuple(shape)
    _checks.require_tensor(op, "target", target, dtypes=_TARGET_DTYPES, remedy=_TARGET_REMEDY)
    given = [("target", target)]
    if mask is not None:
        _checks.require_tensor(op, "mask", mask)
        if mask.is_complex():
            raise _checks.bad_type(op, "mask", "bool, integer or floating", _checks.describe(mask))
        given.append(("mask", mask))
    if token_weight is not None:
        _checks.require_tensor(op, "token_weight", token_weight, dtypes=_checks.FLOATING)
        refuse_grad(op, "token_weight", token_weight)
        given.append(("token_weight", token_weight))
    for name, tensor in given:
        if tuple(tensor.shape) != shape:
            raise _checks.bad_value(
                op, name, f"of shape {shape} ({what})", _checks.describe(tensor)
            )


def refuse_grad(op: str, name: str, tensor: torch.Tensor) -> None:
    """The losses have no gradient for weights; silence would look like a zero one."""
    if tensor.requires_grad:
        raise _checks.bad_value(
            op, name, "a tensor that requires no grad", "one that does", f"pass {name}.detach()"
        )


def check_options(op: str, reduction: Any, ignore_index: Any, label_smoothing: Any) -> None:
    """The options that both losses share."""
    _checks.require_choice(op, "reduction", reduction, REDUCTIONS)
    check_int(op, "ignore_index", ignore_index)
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)):
        raise _checks.bad_type(op, "label_smoothing", "a float", type(label_smoothing).__name__)
    if not 0.0 <= label_smoothing <= 1.0:
        raise _checks.bad_value(op, "label_smoothing", "in [0, 1]", label_smoothing)


def check_int(op: str, name: str, value: Any) -> None:
    """An int, and no bool."""
    # SymInt: a size that torch.compile left open.
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise _checks.bad_type(op, name, "an int", type(value).__name__)


def choose_backend(
    op: str,
    backend: str | None,
    device: torch.device,
    implemented: tuple[str, ...],
    refused_by_cuda: Callable[[], _backend.Refusal | None] = lambda: None,
    **operands: torch.Tensor | None,
) -> str:
    """The back-end of a loss; float64 ``operands`` are left to the reference (a GPU's kernels
    accumulate in float32), unless another was named."""
    wide = [k for k, t in operands.items() if t is not None and t.dtype == torch.float64]
    name = _backend.resolve_call(
        op, backend, device, implemented, lambda: None if wide else refused_by_cuda()
    )
    if name not in ("triton", "cuda") or not wide:
        return name
    if _backend.named(backend) is None:
        return "reference"
    expected = f'float32, float16 or bfloat16 for backend "{name}"'
    raise _checks.bad_type(op, wide[0], expected, "float64", 'pass backend="reference"')


def accumulation_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def position(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index tuple of element ``flat`` of a contiguous tensor of ``shape``."""
    index: list[int] = []
    for size in reversed(shape):
        index.append(flat % size)
        flat //= size
    return tuple(reversed(index))


def target_error(
    op: str, target: torch.Tensor, flat: int, num_classes: int, ignore_index: int
) -> IndexError:
    """The error for a counted target outside [0, num_classes) at flat position ``flat``."""
    value = int(target.reshape(-1)[flat])
    remedy = f"mask it out or set it to ignore_index ({ignore_index})"
    if value < 0:
        remedy += f", or pass ignore_index={value} if it means that there is none"
    return IndexError(
        f"{op}: target must be in [0, {num_classes}) where it counts, got {value} at position "
        f"{position(flat, target.shape)}; {remedy}"
    )


def hint_error(op: str, hint: int, sample: int, found: int) -> IndexError:
    """The error for a ``masked_per_sample`` that is not what the mask holds."""
    return IndexError(
        f"{op}: masked_per_sample must be the number of masked tokens of every sample, got {hint} "
        f"while sample {sample} has {found}; leave it None when the count varies"
    )


def check_token_weight_values(op: str, weights: torch.Tensor) -> None:
    """Weights of the counted tokens, on the CPU: finite and not negative."""
    if not bool(((weights >= 0) & (weights < torch.inf)).all()):
        raise _checks.bad_value(
            op,
            "token_weight",
            "finite and >= 0 where it counts",
            f"{float(weights.min())} as its least",
        )
