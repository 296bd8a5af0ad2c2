"""Prints what the kernels in CUDA C++ compile to, as markdown: docs/cuda.md has its output.

    python tools/print_cuda_table.py [--all]

Compiles the calls of tests/gpu/cuda_kinds.py with torch's NVRTC, for a GPU that is not there.
--all: every kind of call. 1 where a kernel spills or its products wait for each other.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
HEAD = [
    "of",
    "threads",
    "registers",
    "spills, stack, warnings",
    "KiB",
    "HGMMA",
    "TMA",
    "128-bit loads",
    "instructions of a tile of centroids",
    "of a tile of rows or tokens besides",
]


def main() -> int:
    """Compile, print, and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()

    from clustermim_fast.ops import _nvrtc
    from tests.gpu import cuda_kinds, ptxas_log, sass

    found = _nvrtc.compiler()
    if found is None:
        print(_nvrtc.unavailable_reason(), file=sys.stderr)
        return 2
    print(f"NVRTC {found.version[0]}.{found.version[1]}, sm_90a\n")
    print("| " + " | ".join(HEAD) + " |\n|" + "-|" * len(HEAD))
    bad = []
    filters = dict(cuda_kinds.every()) if options.all else cuda_kinds.SHIPPED
    linear = dict(cuda_kinds.every_linear()) if options.all else cuda_kinds.LINEAR
    kinds: dict[str, Any] = {**filters, **{f"linear loss: {name}": k for name, k in linear.items()}}
    for name, kind in kinds.items():
        kernel = kind.kernel
        arguments = (*kernel.options, *ptxas_log.VERBOSE)
        cubin, log = _nvrtc.compile_source(kernel.source, arguments)
        problems = ptxas_log.problems(log)
        bad += [f"{name}: {problem}" for problem in problems]
        code = sass.instructions(cubin)
        counts, loops = sass.count(code), sass.loop_counts(code)
        inner = sum(loop["total"] for loop in loops if loop["HGMMA"] and loop["depth"] == 2)
        row = str(max(loop["total"] for loop in loops if loop["depth"] == 1))
        tile = ""
        if name.startswith("linear loss"):
            row += f" + {inner} for each part of dX" if kind.input else ""
        elif not kind.one_tile:
            tile = str(inner // 2)  # that loop takes two tiles of centroids at a time
        registers = re.search(r"Used (\d+) registers", log)
        cells = [
            name, kernel.threads, registers[1] if registers else "?", len(problems),
            f"{kernel.shared_bytes / 1024:.1f}", counts["HGMMA"], counts["TMA"], counts["G128"],
            tile, row,
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"\n{len(kinds)} kernels, {len({line.split(':')[0] for line in bad})} of them not clean.")
    for line, times in Counter(bad).items():
        print(f"* {line}" + (f" ({times} times)" if times > 1 else ""))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
