"""Prints what every kernel compiles to, as markdown: registers, spills, tensor cores, loads.

    python tools/print_gpu_table.py [--arch 80 90 100] [--ops NAME ...] > docs/gpu_table.md

Compiles the calls of tests/gpu/shipped.py for GPUs that are not there. 1 where a kernel spills,
does not fit, or has products without tensor cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.pop("TRITON_INTERPRET", None)
HEAD = ["kernel", "of", "sm", "warps", "stages", "regs", "spill", "stack", "KiB", "blocks/SM",
        "tensor", "128-bit", "loads, stores", "instructions"]  # fmt: skip


def line(op: str, problem: str, row: Any, tensor_cores: dict[int, str]) -> list[Any]:
    """One row of the table."""
    products = row.counts[tensor_cores[row.arch]]
    other = sum(row.counts[name] for name in set(tensor_cores.values())) - products
    return [
        f"`{row.kernel}`", f"{op}: {problem}", row.arch, row.num_warps, row.num_stages, row.regs,
        row.spill, row.stack, f"{row.smem / 1024:.1f}{'' if row.smem_fits else '!'}",
        row.ctas_per_sm, f"{products}{f' + {other} of another kind' if other else ''}",
        row.counts["G128"], row.counts["G"], row.counts["total"],
    ]  # fmt: skip


def main() -> int:
    """Compile, print, and say at the end what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", type=int, default=[80, 90, 100])
    parser.add_argument("--ops", nargs="*", default=[])
    options = parser.parse_args()

    import torch
    import triton

    from tests.gpu import shipped, static
    from tests.gpu.targets import TENSOR_CORES

    warnings.simplefilter("ignore")
    print(f"triton {triton.__version__}, torch {torch.__version__}; sm: compute capability\n")
    print("| " + " | ".join(HEAD) + " |\n|" + "-|" * len(HEAD))
    bad, kernels = [], 0
    for arch in options.arch:
        for op, problem, call in shipped.calls():
            if options.ops and op not in options.ops:
                continue
            with static.offline(arch) as rows:
                try:
                    call()
                except RuntimeError as error:
                    if "no such back-end" not in str(error):
                        raise
                    continue
            for row in rows:
                kernels += 1
                print("| " + " | ".join(map(str, line(op, problem, row, TENSOR_CORES))) + " |",
                      flush=True)  # fmt: skip
                if not row.clean:
                    bad.append(f"{row.kernel}, {op}: {problem}, sm_{arch}")
    print(f"\n{kernels} kernels, {len(bad)} of them spill or do not fit.")
    for what in bad:
        print(f"* {what}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
