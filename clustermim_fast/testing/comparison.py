"""Both losses on one batch, their distance from float64, and the verdict."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from clustermim_fast import ops
from clustermim_fast.testing.peak_memory import peak_bytes

Batch = Mapping[str, Any]

_DIFFERENTIABLE = ("logits", "input", "linear_weight", "linear_bias")
_SHARED = (
    "target", "mask", "reduction", "ignore_index", "label_smoothing", "token_weight", "backend",
)  # fmt: skip
_LOGITS_KEYS = {"logits", "weight", *_SHARED}
_LINEAR_KEYS = {
    "input", "linear_weight", "linear_bias", "num_prefix_tokens", "masked_per_sample", *_SHARED,
}  # fmt: skip

# Relative errors above which a loss does not compute what ours computes, whatever its rounding:
# (loss, gradients), by the widest rounding among the tensors.
_SAME_QUANTITY = {
    torch.float64: (1e-9, 1e-7),
    torch.float32: (1e-4, 1e-3),
    torch.float16: (1e-2, 1e-1),
    torch.bfloat16: (2e-2, 1e-1),
}


@dataclass(frozen=True)
class Errors:
    """Distance of one value from float64.

    relative: |value - truth| / |truth| in the 2-norm (the norm itself where the truth is zero);
    largest: of any element.
    """

    relative: float
    largest: float


@dataclass
class Comparison:
    """What :func:`compare` found; ``str()`` is the table that it prints.

    theirs, ours: by name ("loss", "d input", ...) the distance from float64.
    seconds: median of one forward and backward, (theirs, ours). peak_bytes: likewise, the largest
    sum of tensor memory held at a time beyond what was held before, gradients included; what the
    compiled core holds inside of a call (some tens of MiB) is no tensor and not in it.
    """

    theirs: dict[str, Errors]
    ours: dict[str, Errors]
    seconds: tuple[float, float]
    peak_bytes: tuple[int, int]
    safe_to_swap: bool
    reasons: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{'relative error against float64':<32}{'yours':>12}{'ours':>12}"]
        lines += [
            f"  {name:<30}{self.theirs[name].relative:>12.2e}{ours.relative:>12.2e}"
            for name, ours in self.ours.items()
        ]
        theirs_ms, ours_ms = (1e3 * s for s in self.seconds)
        theirs_mib, ours_mib = (b / 2**20 for b in self.peak_bytes)
        lines.append(f"{'forward + backward, ms':<32}{theirs_ms:>12.2f}{ours_ms:>12.2f}")
        lines.append(f"{'peak extra memory, MiB':<32}{theirs_mib:>12.1f}{ours_mib:>12.1f}")
        lines.append(f"safe to swap: {'yes' if self.safe_to_swap else 'NO'}")
        lines += [f"  {reason}" for reason in self.reasons]
        return "\n".join(lines)


def compare(
    loss_fn: Callable[[dict[str, Any]], torch.Tensor],
    batch: Batch,
    *,
    repeats: int = 5,
    verbose: bool = True,
) -> Comparison:
    """Run a loss of your own beside ours on your tensors, and say whether to swap.

    Args:
        loss_fn: called with a dict like ``batch``; returns the scalar loss, computed from the
            dict's tensors: copies, of which input, weight and bias (or the logits) require grad.
        batch: the keyword arguments of our op: ``logits`` (then ``masked_cross_entropy``) or
            ``input`` and ``linear_weight`` (then ``masked_linear_cross_entropy``), ``target``, and
            where you use them ``mask``, ``linear_bias``, ``reduction`` ("mean" or "sum"),
            ``ignore_index``, ``label_smoothing``, ``token_weight``, ``weight``,
            ``num_prefix_tokens``, ``masked_per_sample``, ``backend``.
        repeats: timed runs of each, in turns.
        verbose: print the result.

    The truth is the same formula in float64 on the counted rows, with all their logits: it takes
    8 K bytes for each of them. It is safe to swap when your loss and gradients are ours but for
    rounding, and ours are no farther from float64 than yours. If you train under autocast, call
    this inside the same autocast: then the truth is that of the rounded input and weight.

    Raises what our op raises for a batch that it would not take, and ValueError or TypeError for
    one that it does not know.
    """
    batch = _checked(batch)
    if repeats < 1:
        raise ValueError(f"compare: repeats must be >= 1, got {repeats}")
    tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
    names = [n for n in _DIFFERENTIABLE if n in tensors and tensors[n].is_floating_point()]
    ours = _run(_our_loss, batch, names)  # first: the op's errors say most
    theirs = _run(loss_fn, batch, names)
    dtypes = _computed_in(batch, names)
    exact = {n: batch[n].detach().to(dtype).double() for n, dtype in dtypes.items()}
    truth = _run(_float64_loss, {**batch, **exact}, names)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, times in zip((_our_loss, loss_fn), reversed(seconds), strict=True):
            start = time.perf_counter()
            again = _run(function, batch, names)  # in the end: theirs
            times.append(time.perf_counter() - start)
    labels = ["loss", *(f"d {name}" for name in names)]
    their_errors = dict(zip(labels, map(_errors, theirs, truth), strict=True))
    our_errors = dict(zip(labels, map(_errors, ours, truth), strict=True))
    spread = {
        label: _errors(value.nan_to_num(), first.nan_to_num().double()).relative
        for label, value, first in zip(labels, again, theirs, strict=True)
    }
    undefined = [n for n, t in zip(labels, truth, strict=True) if not t.isfinite().all()]
    reasons = _reasons(their_errors, our_errors, spread, undefined, list(dtypes.values()))
    # The copies that _run makes are not the loss's.
    copies = sum(t.numel() * t.element_size() for t in tensors.values())

    def peak_beyond_copies(function: Callable[[dict[str, Any]], torch.Tensor]) -> int:
        peak = peak_bytes(lambda: _run(function, batch, names), batch["target"].device)
        return max(peak - copies, 0)

    result = Comparison(
        their_errors,
        our_errors,
        (statistics.median(seconds[0]), statistics.median(seconds[1])),
        (peak_beyond_copies(loss_fn), peak_beyond_copies(_our_loss)),
        safe_to_swap=not reasons,
        reasons=reasons,
    )
    if verbose:
        print(result)
    return result


def _checked(batch: Batch) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise TypeError(f"compare: batch must be a dict, got {type(batch).__name__}")
    batch = dict(batch)
    keys = _LOGITS_KEYS if "logits" in batch else _LINEAR_KEYS
    needed = {"logits", "target"} if "logits" in batch else {"input", "linear_weight", "target"}
    if not needed <= batch.keys():
        raise ValueError(
            "compare: batch must hold target, and logits or input and linear_weight; it lacks "
            + ", ".join(sorted(needed - batch.keys()))
        )
    unknown = batch.keys() - keys
    if unknown:
        raise ValueError(
            f"compare: batch has {', '.join(sorted(unknown))}, which our op does not take; "
            f"it takes {', '.join(sorted(keys))}"
        )
    if batch.get("reduction", "mean") not in ("mean", "sum"):
        raise ValueError(f"compare: reduction must be 'mean' or 'sum', got {batch['reduction']!r}")
    return batch


def _our_loss(batch: dict[str, Any]) -> torch.Tensor:
    op: Callable[..., torch.Tensor] = (
        ops.masked_cross_entropy if "logits" in batch else ops.masked_linear_cross_entropy
    )
    return op(**batch)


def _float64_loss(batch: dict[str, Any]) -> torch.Tensor:
    """The definition, by torch's own functions; the floating tensors of ``batch`` are float64."""
    target = batch["target"].long()
    counted = target != batch.get("ignore_index", -100)
    if batch.get("mask") is not None:
        counted &= batch["mask"] != 0
    if "logits" in batch:
        logits = batch["logits"][counted]
    else:
        prefix = batch.get("num_prefix_tokens", 0)
        x = batch["input"][..., prefix:, :][counted]
        logits = F.linear(x, batch["linear_weight"], batch.get("linear_bias"))
    class_weight = batch.get("weight")
    class_weight = None if class_weight is None else class_weight.double()
    rows = F.cross_entropy(
        logits,
        target[counted],
        class_weight,
        reduction="none",
        label_smoothing=batch.get("label_smoothing", 0.0),
    )
    weights = torch.ones_like(rows)
    if batch.get("token_weight") is not None:
        weights = batch["token_weight"][counted].double()
    total = (rows * weights).sum()
    if batch.get("reduction", "mean") == "sum":
        return total
    if class_weight is not None:
        weights = weights * class_weight[target[counted]]
    return total / weights.sum()


def _computed_in(batch: dict[str, Any], names: list[str]) -> dict[str, torch.dtype]:
    """Each operand's dtype; under autocast, the one that F.linear rounds it to."""
    dtypes = {name: batch[name].dtype for name in names}
    device = batch["target"].device.type
    if torch.is_autocast_enabled(device):
        for name in {"input", "linear_weight"} & dtypes.keys():
            if dtypes[name] != torch.float64:
                dtypes[name] = torch.get_autocast_dtype(device)
    return dtypes


def _run(
    function: Callable[[dict[str, Any]], torch.Tensor], batch: dict[str, Any], names: list[str]
) -> list[torch.Tensor]:
    """Loss and gradients, of copies."""
    copies = {k: v.detach().clone() if torch.is_tensor(v) else v for k, v in batch.items()}
    leaves = {name: copies[name].requires_grad_() for name in names}
    with torch.enable_grad():
        loss = function(copies)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"compare: loss_fn must return a scalar tensor, got {got}")
    if not loss.requires_grad:
        raise ValueError("compare: loss_fn returned a loss without a graph; is it detached?")
    with torch.autocast(loss.device.type, enabled=False):
        loss.backward(torch.ones_like(loss))
    grads = [leaf.grad for leaf in leaves.values()]
    missing = [name for name, grad in zip(names, grads, strict=True) if grad is None]
    if missing:
        raise ValueError(
            f"compare: loss_fn gave no gradient to {', '.join(missing)}; it must compute from the "
            "tensors of the dict that it is called with"
        )
    if loss.device.type == "cuda":
        torch.cuda.synchronize(loss.device)
    return [loss.detach(), *(grad for grad in grads if grad is not None)]


def _errors(value: torch.Tensor, truth: torch.Tensor) -> Errors:
    difference = value.double().reshape(truth.shape) - truth
    if difference.numel() == 0:
        return Errors(0.0, 0.0)
    if not torch.isfinite(difference).all():
        return Errors(float("inf"), float("inf"))
    norm = float(truth.norm()) or 1.0
    return Errors(float(difference.norm()) / norm, float(difference.abs().max()))


def _reasons(
    theirs: dict[str, Errors],
    ours: dict[str, Errors],
    spread: dict[str, float],
    undefined: list[str],
    dtypes: list[torch.dtype],
) -> list[str]:
    """Why not to swap; empty when it is safe.

    spread: between two runs of theirs. undefined: what is not finite in float64.
    """
    widest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    loss_limit, grad_limit = _SAME_QUANTITY[widest]
    reasons = []
    for name, error in ours.items():
        if name in undefined:
            reasons.append(f"{name}: not finite in float64 either; try a batch where it is")
            continue
        limit = loss_limit if name == "loss" else grad_limit
        if theirs[name].relative > limit and spread[name] > limit:
            reasons.append(
                f"{name}: yours differs by {spread[name]:.1e} from one run to the next; leave out "
                "what is random in it (dropout)"
            )
        elif theirs[name].relative > limit:
            reasons.append(
                f"{name}: yours is {theirs[name].relative:.1e} away from float64, more than "
                "rounding explains: it computes another quantity, or loses precision"
            )
        # One rounding of float32 is no difference.
        if error.relative > 1.25 * theirs[name].relative + 2.0**-22:
            reasons.append(f"{name}: ours is farther from float64 than yours; please report this")
    sixteen_bits = _SAME_QUANTITY[torch.bfloat16]
    if reasons and all(e.relative <= sixteen_bits[n != "loss"] for n, e in theirs.items()):
        reasons.append("if your loss runs under autocast, call compare inside the same autocast")
    return reasons
