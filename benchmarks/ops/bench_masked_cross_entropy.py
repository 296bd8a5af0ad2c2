"""The masked losses beside masked ``F.cross_entropy``: errors against float64, and time.

    python -m benchmarks.ops.bench_masked_cross_entropy [--rounds 5] [--json FILE]

Errors: relative, in the 2-norm, of the loss and of each gradient, ours and the torch composite in
the same dtypes, both against that composite in float64. Times: forward + backward, all methods
interleaved, minimum of the rounds; "3 GEMMs" is the bare matrix products of the counted rows.

    pytest benchmarks/ops/bench_masked_cross_entropy.py --benchmark-enable

times ours alone, for quick before-and-after checks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness import interleave, machine, markdown_table, write_json
from clustermim_fast import ops

GRAD_OUTPUT = 1.75  # not 1: the path that a shortcut would take; exact in every dtype


@dataclass(frozen=True)
class Case:
    """``batch`` samples of 196 tokens behind one [cls], ``masked`` of them counted."""

    classes: int
    dim: int
    batch: int
    masked: int
    dtype: torch.dtype
    label_smoothing: float = 0.0

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        rows = self.batch * self.masked
        return f"K={self.classes} d={self.dim} N={rows} {dtype} e={self.label_smoothing}"

    def tensors(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        order = torch.rand(self.batch, 196, generator=generator).argsort(1)
        return {
            "x": normal(self.batch, 197, self.dim).to(self.dtype),
            "w": (normal(self.classes, self.dim) * self.dim**-0.5).to(self.dtype),
            "b": (normal(self.classes) * 0.1).to(self.dtype),
            "target": torch.randint(0, self.classes, (self.batch, 196), generator=generator),
            "mask": order < self.masked,
        }


CASES = [
    Case(classes, dim, batch, 147, dtype, smoothing)
    for classes, dim, batch in [(50, 192, 64), (100, 512, 64), (1000, 512, 32), (8192, 768, 8)]
    for dtype in (torch.float32, torch.bfloat16)
    for smoothing in (0.0, 0.1)
]


def ours(t: dict[str, Any], case: Case) -> torch.Tensor:
    return ops.masked_linear_cross_entropy(
        t["x"],
        t["w"],
        t["target"],
        t["mask"],
        linear_bias=t["b"],
        label_smoothing=case.label_smoothing,
        num_prefix_tokens=1,
    )


def torch_composite(t: dict[str, Any], case: Case) -> torch.Tensor:
    logits = F.linear(t["x"][:, 1:][t["mask"]], t["w"], t["b"])
    return F.cross_entropy(logits, t["target"][t["mask"]], label_smoothing=case.label_smoothing)


def our_logits_loss(t: dict[str, Any], case: Case) -> torch.Tensor:
    return ops.masked_cross_entropy(
        t["z"], t["target"], t["mask"], label_smoothing=case.label_smoothing
    )


def torch_logits_loss(t: dict[str, Any], case: Case) -> torch.Tensor:
    return F.cross_entropy(
        t["z"][t["mask"]], t["target"][t["mask"]], label_smoothing=case.label_smoothing
    )


def step(
    loss_function: Callable[..., torch.Tensor], tensors: dict[str, Any], case: Case, leaves: str
) -> list[torch.Tensor]:
    """Loss and the gradients of ``leaves``."""
    given = dict(tensors)
    for name in leaves:
        given[name] = tensors[name].detach().requires_grad_()
    loss = loss_function(given, case)
    grads = torch.autograd.grad(
        loss, [given[n] for n in leaves], torch.tensor(GRAD_OUTPUT, dtype=loss.dtype)
    )
    return [loss.detach(), *grads]


def errors(values: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    return [float((v.double() - t).norm() / t.norm()) for v, t in zip(values, truth, strict=True)]


def error_rows(case: Case) -> list[dict[str, Any]]:
    tensors = case.tensors()
    tensors["z"] = F.linear(tensors["x"][:, 1:], tensors["w"], tensors["b"])
    wide = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
    table = []
    for leaves, names, mine, theirs in (
        ("xwb", ("loss", "dX", "dW", "db"), ours, torch_composite),
        ("z", ("logits loss", "dZ"), our_logits_loss, torch_logits_loss),
    ):
        truth = step(theirs, wide, case, leaves)
        ours_of, torchs = (errors(step(f, tensors, case, leaves), truth) for f in (mine, theirs))
        table += [
            {"case": case.name, "value": value, "ours": m, "torch": t}
            for value, m, t in zip(names, ours_of, torchs, strict=True)
        ]
    return table


def three_gemms(tensors: dict[str, Any]) -> Callable[[], Any]:
    """The matrix products of forward and backward on rows that are already compact."""
    x, w = tensors["x"][:, 1:][tensors["mask"]], tensors["w"]

    def run() -> Any:
        z = x @ w.T
        return z @ w, z.T @ x

    return run


def time_row(case: Case, rounds: int) -> dict[str, Any]:
    tensors = case.tensors()
    tensors["z"] = F.linear(tensors["x"][:, 1:], tensors["w"], tensors["b"])
    timings = interleave(
        {
            "ours": lambda: step(ours, tensors, case, "xwb"),
            "torch masked": lambda: step(torch_composite, tensors, case, "xwb"),
            "3 GEMMs": three_gemms(tensors),
            "ours, logits": lambda: step(our_logits_loss, tensors, case, "z"),
            "torch, logits": lambda: step(torch_logits_loss, tensors, case, "z"),
        },
        rounds=rounds,
    )
    return {"case": case.name, **{f"{k} ms": 1e3 * v.minimum for k, v in timings.items()}}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the numbers there too")
    arguments = parser.parse_args()
    print(machine(), f"threads {torch.get_num_threads()}\n")
    error_table = [row for case in CASES for row in error_rows(case)]
    cells = [(r["case"], r["value"], f"{r['ours']:.2e}", f"{r['torch']:.2e}") for r in error_table]
    print(markdown_table(("case", "relative error of", "ours", "torch"), cells), "\n")
    timed = [case for case in CASES if case.label_smoothing]
    time_table = [time_row(case, arguments.rounds) for case in timed]
    columns = [k for k in time_table[0] if k != "case"]
    times = [(r["case"], *(f"{r[k]:.1f}" for k in columns)) for r in time_table]
    print(markdown_table(("case", *columns), times))
    if arguments.json:
        write_json(arguments.json, [*error_table, *time_table])


@pytest.mark.parametrize("case", [CASES[4], CASES[6]], ids=lambda case: case.name)
def test_bench_masked_linear_cross_entropy(benchmark: Any, case: Case) -> None:
    tensors = case.tensors()
    benchmark(lambda: step(ours, tensors, case, "xwb"))


if __name__ == "__main__":
    main()
