"""The masked linear loss beside every way of writing it in torch: time, memory, errors.

    python -m benchmarks.ops.bench_masked_cross_entropy [--cases "K=100 d=512" ...] [--json FILE]

For each case all methods run in one process, in turn, round by round; the table shows forward +
backward (minimum and median of the rounds), the ratio to the best peer and to the floor (the three
bare matrix products of the masked rows), peak memory beyond what was held before, and relative
errors in the 2-norm of the loss and each gradient against float64. A second table has the goals.

    pytest benchmarks/ops/bench_masked_cross_entropy.py --benchmark-enable

times ours alone, for quick before-and-after checks.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import interleave, limited_threads, machine, say, write_json
from benchmarks.losses import tables
from benchmarks.losses.cases import Case, chosen
from benchmarks.losses.methods import METHODS, Loss, step, three_products
from benchmarks.resident import peak_bytes

FLOOR = "three products"


def ready(case: Case, tensors: dict[str, Any], keys: list[str]) -> dict[str, Loss]:
    """The methods that run here, compiled for the case; one that fails is named and left out."""
    found = {}
    for method in METHODS:
        if method.key != "ours" and "all" not in keys and method.key not in keys:
            continue
        if method.missing:
            say(f"LEFT OUT: {method.name}: {method.missing}")
            continue
        torch._dynamo.reset()
        function = method.make()
        try:
            step(function, tensors)
        except (RuntimeError, ValueError, TypeError) as error:
            if method.key == "ours":
                raise
            say(f"LEFT OUT: {method.name} in {case.name}: {str(error).splitlines()[0]}")
            continue
        found[method.name] = function
    return found


def measure(case: Case, options: Any) -> list[dict[str, Any]]:
    """One row of the table for each method."""
    tensors = case.tensors()
    truth = case.truth(tensors)
    for name in "xwb":
        tensors[name].requires_grad_()
    losses = ready(case, tensors, options.peers)
    errors, peaks = {}, {}
    for name, function in losses.items():
        values = step(function, tensors)
        errors[name] = {
            label: float((v.double() - t).norm() / t.norm())
            for label, v, t in zip(tables.ERRORS, values, truth, strict=True)
        }
        del values
        peaks[name] = peak_bytes(partial(step, function, tensors)) / 2**20
    calls = {name: partial(step, function, tensors) for name, function in losses.items()}
    timings = interleave(
        {**calls, FLOOR: three_products(tensors)},
        rounds=options.rounds,
        max_seconds=options.max_seconds,
    )
    peers = [name for name in losses if name != "ours"]
    best = min(peers, key=lambda name: timings[name].minimum, default="")
    return [
        {
            "case": case.name,
            "classes": case.classes,
            "dim": case.dim,
            "rows": case.rows,
            "threads": torch.get_num_threads(),
            "method": name,
            "ms": 1e3 * timings[name].minimum,
            "ms_median": 1e3 * timings[name].median,
            "rounds": len(timings[name].seconds),
            "best_peer": best,
            "best_peer_ms": 1e3 * timings[best or name].minimum,
            "floor_ms": 1e3 * timings[FLOOR].minimum,
            "peak_mib": peaks[name],
            "gradient_mib": case.gradient_bytes / 2**20,
            "errors": errors[name],
        }
        for name in losses
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=[],
                        help='words of their names, as "K=100 d=512" or "bf16 75%%"')  # fmt: skip
    keys = [method.key for method in METHODS if method.key != "ours"]
    parser.add_argument("--peers", nargs="*", choices=["all", *keys], default=["all"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=4.0,
                        help="of all rounds of one method in one case")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


def main() -> None:
    """Measure the chosen cases and print both tables."""
    options = parse()
    cases, rows = chosen(options.cases), []
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    with limited_threads(options.threads):
        print(machine(), f"threads {torch.get_num_threads()}\n")
        for i, case in enumerate(cases):
            say(f"{i + 1} of {len(cases)}: {case.name}, {case.rows} rows")
            found = measure(case, options)
            say(tables.goal_table(found))
            rows += found
            if options.json:  # after each case: an hour's work survives an interruption
                write_json(options.json, rows)
    print(tables.method_table(rows), "\n")
    print(tables.goal_table(rows))


@pytest.mark.parametrize("name", ["K=100 d=512 fp32 75%", "K=1000 d=512 bf16 75%"])
def test_bench_masked_linear_cross_entropy(benchmark: Any, name: str) -> None:
    tensors = chosen([name])[0].tensors()
    for leaf in "xwb":
        tensors[leaf].requires_grad_()
    benchmark(partial(step, METHODS[0].make(), tensors))


if __name__ == "__main__":
    main()
