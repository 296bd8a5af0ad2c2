"""The masked linear loss, forward and backward, beside every way of writing it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite import hopper
from benchmarks.gpu_suite.bench import Bench, Ceilings
from benchmarks.gpu_suite.cases import Call, Case, Method, run_case
from benchmarks.gpu_suite.journal import Journal
from benchmarks.losses import methods as written
from clustermim_fast import ops
from clustermim_fast.ops.masked_linear_cross_entropy.problem import refused_by_cuda

TOKENS, MASKED, SMOOTHING = 196, 147, 0.1
# classes, dim, samples, goal ms, floor ms; rehearsed: classes, dim, samples
SHAPES = ((100, 512, 4096, 0.70, 0.34), (1000, 512, 4096, 3.8, 2.3), (8192, 768, 1024, 9.9, 7.2))
REHEARSED = ((10, 16, 1), (37, 16, 1), (130, 32, 1))
# Of benchmarks/losses/methods.py; each compiled one costs seconds before its first call.
KEYS = ("clustermim", "masked", "clustermim-compiled", "compacted", "torch-lce")


def tensors(device: torch.device, classes: int, dim: int, batch: int) -> dict[str, Any]:
    """As benchmarks.losses.cases makes them, on the device."""
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(*shape, generator=draw, device=device) * scale
        return values.to(torch.bfloat16).requires_grad_()

    order = torch.rand(batch, TOKENS, generator=draw, device=device).argsort(1)
    target = torch.randint(0, classes, (batch, TOKENS), generator=draw, device=device)
    return {
        "x": normal(batch, TOKENS + 1, dim), "w": normal(classes, dim, scale=dim**-0.5),
        "b": normal(classes, scale=0.1), "target": target, "mask": order < MASKED,
        "label_smoothing": SMOOTHING,
    }  # fmt: skip


@torch.no_grad()
def truth(t: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Loss and the gradients of w and b in float64, some rows at a time; those of the counted
    tokens, kept as float32."""
    w, b = t["w"].double(), t["b"].double()
    x, target = t["x"][:, 1:][t["mask"]], t["target"][t["mask"]]
    e, rows = t["label_smoothing"], len(x)
    found = {"loss": w.new_zeros(()), "w": torch.zeros_like(w), "b": torch.zeros_like(b)}
    found["x"] = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    parts = (t.split(2**14) for t in (x, target, found["x"]))
    for part, ids, dx in zip(*parts, strict=True):
        log_p = (part.double() @ w.T + b).log_softmax(1)
        soft = torch.full_like(log_p, e / len(w))
        soft.scatter_add_(1, ids[:, None], torch.full_like(soft[:, :1], 1 - e))
        found["loss"] -= (soft * log_p).sum() / rows
        dz = (log_p.exp() - soft) / rows
        found["w"] += dz.T @ part.double()
        found["b"] += dz.sum(0)
        dx.copy_(dz @ w)
    return found


def _liger(t: dict[str, Any]) -> torch.Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    x, target = written._picked(t)
    return liger_fused_linear_cross_entropy(
        x, t["w"], target, bias=t["b"], label_smoothing=t["label_smoothing"]
    )


def _cce(t: dict[str, Any]) -> torch.Tensor:
    from cut_cross_entropy import linear_cross_entropy

    x, target = written._picked(t)
    return linear_cross_entropy(x, t["w"], target, filter_eps=None)


def _cce_step(t: dict[str, Any]) -> list[torch.Tensor]:
    """It has neither bias nor smoothing: loss and the gradients of x and w."""
    loss = _cce(t)
    return [loss.detach(), *torch.autograd.grad(loss, [t["x"], t["w"]])]


def _ours(t: dict[str, Any], backend: str) -> list[torch.Tensor]:
    with ops.use_backend(backend):
        return written.step(written.ours, t)


def _step_of(make: Callable[[], Any], t: dict[str, Any]) -> Call:
    torch._dynamo.reset()
    return partial(written.step, make(), t)


def _missing(module: str) -> str:
    return "" if importlib.util.find_spec(module) else "not installed"


def methods(t: dict[str, Any], bench: Bench) -> list[Method]:
    ours = [Method("ours", lambda: partial(_ours, t, "triton"))]
    if refused_by_cuda(t["x"], t["w"]) is None:
        cuda = partial(_ours, t, "cuda")
        ours.append(Method(hopper.OURS, lambda: cuda, hopper.missing(bench)))
    in_torch = [
        Method(method.name, partial(_step_of, method.make, t), method.missing)
        for method in written.METHODS
        if method.key in KEYS
    ]
    return [
        *ours,
        *in_torch,
        Method("Liger", partial(_step_of, lambda: _liger, t), _missing("liger_kernel")),
        Method("CCE (no bias, no smoothing)", lambda: partial(_cce_step, t),
               _missing("cut_cross_entropy")),
        Method("QuACK", dict, "nvidia-cutlass-dsl, which it needs, is over the 64 MiB that travel"),
    ]  # fmt: skip


def checker(t: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """Relative errors against float64; of dX that of the worst counted token."""
    right = truth(t)

    def error(name: str, value: torch.Tensor) -> float:
        return float((value.double() - right[name]).norm() / right[name].norm())

    def check(out: list[torch.Tensor]) -> dict[str, Any]:
        names = ("loss", "x", "w", "b")[: len(out)]
        found = dict(zip(names, out, strict=True))
        errors = {f"error_{n}": error(n, v) for n, v in found.items() if n != "x"}
        if "x" not in found:
            return errors
        dx = found["x"][:, 1:][t["mask"]].float()
        off, size = (dx - right["x"]).norm(dim=1), right["x"].norm(dim=1)
        return errors | {"worst_row_x": float((off / size).max())}

    return check


def repeatable(call: Call) -> dict[str, Any]:
    """Whether two calls give the same bits."""
    first, second = call(), call()
    return {"same_bits": all(torch.equal(a, b) for a, b in zip(first, second, strict=True))}


def run(bench: Bench, journal: Journal) -> None:
    ceilings = Ceilings(bench)
    for (classes, dim, batch, goal, floor), tiny in zip(SHAPES, REHEARSED, strict=True):
        if bench.rehearsed:
            classes, dim, batch = tiny
        rows = batch * MASKED
        name = f"masked linear CE, {rows:,} of {batch * TOKENS:,} rows, d {dim}, K {classes}"
        if journal.finished(name):
            continue
        t = tensors(bench.device, classes, dim, batch)
        gradients = 2 * (t["x"].numel() + t["w"].numel() + t["b"].numel())
        case = Case(
            name, methods(t, bench),
            moved=2 * (2 * rows * dim + 3 * classes * dim), flops=6 * rows * dim * classes,
            check=checker(t), goal_ms=goal, paper_floor_ms=floor,
            facts=lambda call, g=gradients: {"gradient_mib": g / 2**20, **repeatable(call)},
        )  # fmt: skip
        run_case(bench, journal, case, ceilings)
        del t, case
